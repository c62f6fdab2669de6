"""What shared passes are compared with: every completion's row computes all of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.logprobs import token_logprobs
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Completion


def token_rows(completions: Sequence[Completion], device: torch.device) -> torch.Tensor:
    """int64 ``[rows, L]`` of completions of one length."""
    return torch.stack([c.token_ids for c in completions if c.token_ids is not None]).to(device)


def head_logprobs(
    policy: TransformersPolicy, hidden: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Log-probs ``[rows, L]`` of tokens, from the states ``[rows, L, D]`` that predict them."""
    logprobs, _ = token_logprobs(
        hidden.flatten(0, 1),
        ids.flatten(),
        policy.base.lm_head,
        policy.network().suppressed_ids.to(ids.device),
        1.0,
        256,
    )
    return logprobs.view(ids.shape)


def naive_logprobs(
    policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor
) -> torch.Tensor:
    """Log-probs ``[rows, L]`` of completions of one prompt, everything computed in every row."""
    device, (rows, L) = policy.device, ids.shape
    steps = prompt.next_position + torch.arange(L)
    positions = torch.cat([prompt.positions, steps.expand(3, -1)], 1).to(device)
    hidden = policy.base.model(
        input_ids=torch.cat([prompt.input_ids.to(device).expand(rows, -1), ids], 1),
        position_ids=positions[:, None].expand(-1, rows, -1),
        pixel_values_videos=prompt.patches(device).repeat(rows, 1),
        video_grid_thw=torch.tensor([prompt.grid] * rows, device=device),
        use_cache=False,
    ).last_hidden_state
    return head_logprobs(policy, hidden[:, prompt.num_tokens - 1 : -1], ids)


def naive_backward(policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor) -> None:
    """Gradient of completions ``[rows, L]`` in one batch."""
    (-naive_logprobs(policy, prompt, ids).sum()).backward()


def naive_rows(policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor) -> None:
    """`naive_backward`, one row after the other."""
    for row in ids:
        naive_backward(policy, prompt, row[None])
