"""Packing prompts and their completions into one row, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrts.models.attention.shared_prefix import PackedLayout
from vrts.models.families.prompt import VideoPrompt
from vrts.types import Completion


@dataclass(frozen=True, slots=True)
class Packed:
    """A row of ``S`` tokens: question after question, a prompt and its completions."""

    input_ids: torch.Tensor
    """int64 ``[S]``."""
    positions: torch.Tensor
    """int64 ``[A, S]``."""
    vision_places: torch.Tensor
    """int64 ``[vision tokens]``, where in the row these are."""
    predictors: torch.Tensor
    """int64 ``[completion tokens]``, for each the place in the row that predicts it."""
    targets: torch.Tensor
    """int64 ``[completion tokens]``."""
    layout: PackedLayout


def pack(
    prompts: Sequence[VideoPrompt],
    completions: Sequence[Sequence[Completion]],
    device: torch.device,
) -> Packed:
    """Put each prompt once, followed by its completions; no padding.

    Args:
        prompts: B of them.
        completions: of each, none of them without a token.
        device: of the result.
    """
    ids, positions, places, predictors, targets = [], [], [], [], []
    forwarded: list[list[int]] = []
    start = 0
    for prompt, group in zip(prompts, completions, strict=True):
        ids.append(prompt.input_ids)
        positions.append(prompt.positions)
        places.append(prompt.vision_places + start)
        last = start + prompt.num_tokens - 1
        start = last + 1
        # The last token of a completion predicts nothing, so it is not forwarded.
        forwarded.append([c.num_tokens - 1 for c in group])
        for completion, length in zip(group, forwarded[-1], strict=True):
            assert completion.token_ids is not None
            steps = torch.arange(length, device="cpu")
            ids.append(completion.token_ids[:length])
            targets.append(completion.token_ids)
            positions.append((prompt.next_position + steps).expand(len(prompt.positions), -1))
            predictors.append(torch.cat([steps.new_tensor([last]), start + steps]))
            start += length
    layout = PackedLayout([p.num_tokens for p in prompts], forwarded, device)
    return Packed(
        torch.cat(ids).to(device),
        torch.cat(positions, 1).to(device),
        torch.cat(places).to(device),
        torch.cat(predictors).to(device),
        torch.cat(targets).to(device),
        layout,
    )
