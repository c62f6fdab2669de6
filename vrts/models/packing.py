"""Prompts and their completions as the one packed row that the update forwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrts.models.attention import PackedLayout
from vrts.models.qwen_inputs import EncodedPrompt
from vrts.types import Rollout


@dataclass(frozen=True, slots=True)
class Packed:
    """A row of ``S`` tokens: question after question, a prompt and its completions."""

    input_ids: torch.Tensor
    """int64 ``[S]``."""
    positions: torch.Tensor
    """int64 ``[3, S]``, M-RoPE."""
    vision_places: torch.Tensor
    """int64 ``[vision tokens]``, where in the row these are."""
    predictors: torch.Tensor
    """int64, for each counted completion token the place in the row that predicts it."""
    layout: PackedLayout


def pack(prompts: Sequence[EncodedPrompt], rollout: Rollout, device: torch.device) -> Packed:
    """Put each prompt once, with its completions behind it; no padding.

    Args:
        prompts: B of them.
        rollout: N completions of theirs, none of them without a token.
        device: of the rollout, and of the result.
    """
    G = len(rollout.completion_ids) // len(prompts)
    lengths = rollout.lengths.tolist()
    ids, positions, places, predictors = [], [], [], []
    start = 0
    for b, prompt in enumerate(prompts):
        ids.append(prompt.input_ids.to(device))
        positions.append(prompt.positions.to(device))
        places.append(prompt.vision_places + start)
        last = start + len(prompt.input_ids) - 1
        start = last + 1
        for row in range(b * G, (b + 1) * G):
            # The last token predicts nothing, so it is not forwarded.
            forwarded = lengths[row] - 1
            ids.append(rollout.completion_ids[row, :forwarded])
            steps = torch.arange(forwarded, device=device)
            positions.append((prompt.next_position + steps).expand(3, -1))
            predictors.append(torch.cat([steps.new_tensor([last]), start + steps]))
            start += forwarded
    layout = PackedLayout(
        [len(p.input_ids) for p in prompts],
        [[n - 1 for n in lengths[b * G : (b + 1) * G]] for b in range(len(prompts))],
        device,
    )
    return Packed(
        torch.cat(ids),
        torch.cat(positions, 1),
        torch.cat(places).to(device),
        torch.cat(predictors),
        layout,
    )
