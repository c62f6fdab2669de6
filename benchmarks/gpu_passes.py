"""The calls that `benchmarks.gpu` measures."""

from __future__ import annotations

import torch

from benchmarks.common import random_completions
from benchmarks.naive import naive_logprobs, naive_rows, token_rows
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Completion


def use_checkpointing(policy: TransformersPolicy, on: bool) -> None:
    """Switch gradient checkpointing of a policy that was made with it and is in training mode."""
    for layer in policy.base.modules():
        if hasattr(layer, "gradient_checkpointing"):
            layer.gradient_checkpointing = on


def naive_update(policy: TransformersPolicy, prompt: VideoPrompt, G: int, L: int) -> None:
    """Gradient of G completions, each with its own vision pass and prompt, row after row."""
    naive_rows(policy, prompt, token_rows(random_completions([L] * G, 256), policy.device))
    policy.zero_grad(set_to_none=True)


def shared_update(policy: TransformersPolicy, prompt: VideoPrompt, G: int, L: int) -> None:
    """Gradient of G completions, their prompt forwarded once; its vision pass was made before."""
    completions = random_completions([L] * G, 256)
    (-policy.logprobs([prompt], [completions], 1.0).logprobs.sum()).backward()
    policy.zero_grad(set_to_none=True)


def scored(
    policy: TransformersPolicy, prompt: VideoPrompt, completions: tuple[Completion, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs ``[G, L]`` of completions of one length: shared passes' and naive ones'."""
    shared = policy.logprobs([prompt], [completions], 1.0).logprobs
    return shared, naive_logprobs(policy, prompt, token_rows(completions, policy.device))


def gradients(policy: TransformersPolicy, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of the sum of log-probs by parameter, in float32; leaves none in the policy."""
    logprobs.sum().backward()
    found = {n: p.grad.float() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return found


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of `a` from `b`, relative to `b`, over all parameters."""
    difference = torch.stack([(a[name] - b[name]).norm() for name in b]).norm()
    return float(difference / torch.stack([x.norm() for x in b.values()]).norm())
