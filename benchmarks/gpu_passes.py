"""The calls that `benchmarks.gpu` measures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.common import random_rollout
from benchmarks.naive import naive_rows
from vrts.models.qwen import QwenPolicy
from vrts.models.qwen_inputs import vision_token_ids
from vrts.models.qwen_prompts import QwenPrompts
from vrts.types import Rollout, Sample, Sampling


def never_end(policy: QwenPolicy) -> None:
    """Let completions end at their limit alone: comparisons are then none of luck."""
    last = policy.base.config.text_config.vocab_size - 1
    policy._end_ids = torch.tensor([last])
    policy._banned_ids = torch.cat([vision_token_ids(policy.base.config), policy._end_ids])


def use_checkpointing(policy: QwenPolicy, on: bool) -> None:
    """Switch gradient checkpointing of a policy that was made with it and is in training mode."""
    for layer in policy.base.modules():
        if hasattr(layer, "gradient_checkpointing"):
            layer.gradient_checkpointing = on


def without_graphs() -> AbstractContextManager[Any]:
    """Context in which steps are launched kernel by kernel."""
    return patch("vrts.models.qwen.can_capture", return_value=False)


def roll_out(policy: QwenPolicy, prompts: QwenPrompts, G: int, L: int) -> Rollout:
    """G completions of L tokens of each prompt."""
    seeds = list(range(G * len(prompts.encoded)))
    return policy.rollout(prompts, [Sampling()] * G, seeds, L)


def encode_and_roll_out(policy: QwenPolicy, samples: list[Sample], G: int, L: int) -> Rollout:
    """The same from frames, as ``generate`` is given them."""
    return roll_out(policy, policy.encode(samples, L), G, L)


def naive_update(policy: QwenPolicy, prompts: QwenPrompts, G: int, L: int) -> None:
    """Gradient of G completions, each with its own vision pass and prompt, row after row."""
    naive_rows(policy, prompts, random_rollout([L] * G, 256, policy.device).completion_ids)
    policy.zero_grad(set_to_none=True)


def shared_update(policy: QwenPolicy, prompts: QwenPrompts, G: int, L: int) -> None:
    """Gradient of G completions, their prompt forwarded once; its vision pass was made before."""
    rollout = random_rollout([L] * G, 256, policy.device)
    (-policy.score(prompts, rollout, 1.0).logprobs.sum()).backward()
    policy.zero_grad(set_to_none=True)


def gradients(policy: QwenPolicy, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of the sum of log-probs by parameter, in float32; leaves none in the policy."""
    logprobs.sum().backward()
    found = {n: p.grad.float() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return found


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of `a` from `b`, relative to `b`, over all parameters."""
    difference = torch.stack([(a[name] - b[name]).norm() for name in b]).norm()
    return float(difference / torch.stack([x.norm() for x in b.values()]).norm())
