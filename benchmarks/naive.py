"""What shared passes are compared with: every completion's row computes all of its prompt."""

from __future__ import annotations

import torch

from vrts.models.head import token_logprobs
from vrts.models.qwen import QwenPolicy
from vrts.models.qwen_prompts import QwenPrompts


def naive_logprobs(policy: QwenPolicy, prompts: QwenPrompts, ids: torch.Tensor) -> torch.Tensor:
    """Log-probs ``[rows, L]`` of completions of one prompt, everything computed in every row."""
    prompt, device = prompts.encoded[0], policy.device
    rows, L = ids.shape
    P = len(prompt.input_ids)
    steps = prompt.next_position + torch.arange(L)
    positions = torch.cat([prompt.positions, steps.expand(3, -1)], 1).to(device)
    hidden = policy.base.model(
        input_ids=torch.cat([prompt.input_ids.to(device).expand(rows, -1), ids], 1),
        position_ids=positions[:, None].expand(-1, rows, -1),
        pixel_values_videos=prompt.patches_on(device).repeat(rows, 1),
        video_grid_thw=torch.tensor([prompt.grid] * rows, device=device),
        use_cache=False,
    ).last_hidden_state
    logprobs, _ = token_logprobs(
        hidden[:, P - 1 : -1].flatten(0, 1),
        ids.flatten(),
        policy.base.lm_head,
        policy._banned_ids.to(device),
        1.0,
        256,
    )
    return logprobs.view(rows, L)


def naive_backward(policy: QwenPolicy, prompts: QwenPrompts, ids: torch.Tensor) -> None:
    """Gradient of completions ``[rows, L]`` in one batch."""
    (-naive_logprobs(policy, prompts, ids).sum()).backward()


def naive_rows(policy: QwenPolicy, prompts: QwenPrompts, ids: torch.Tensor) -> None:
    """`naive_backward`, one row after the other."""
    for row in ids:
        naive_backward(policy, prompts, row[None])
