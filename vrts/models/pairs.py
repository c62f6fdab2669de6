"""Vision features of pairs of frames, which is what the vision tower encodes one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from vrts.models.qwen_inputs import EncodedPrompt
from vrts.types import Sample

PairKey = tuple[str, tuple[int, ...], int, int]
"""What the features of a pair depend on: the video, which frames, and their height and width."""

FRAMES_PER_PAIR = 2
"""Of one temporal patch."""


def pair_keys(sample: Sample) -> tuple[PairKey, ...]:
    """Name the pairs of a clip, in order."""
    assert sample.clip is not None
    frames = sample.clip.frame_indices
    _, _, height, width = sample.clip.frames.shape
    return tuple(
        (sample.question.video, frames[i : i + FRAMES_PER_PAIR], height, width)
        for i in range(0, len(frames), FRAMES_PER_PAIR)
    )


def pair_features(
    encoded: Sequence[EncodedPrompt],
    keys: Sequence[Sequence[PairKey]],
    known: Mapping[PairKey, torch.Tensor],
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """Features of several videos, of which only unknown pairs are encoded.

    Args:
        encoded: B prompts with their patches.
        keys: names of each one's pairs.
        known: features by pair, ``[tokens of the pair, D]``.
        encode: from patches and grids ``[videos, 3]`` to features ``[video tokens, D]``.
        device: where to encode.

    Returns:
        ``[video tokens, D]``, without gradient where `encode` gives none.
    """
    patches, grids, new = [], [], []
    for prompt, names in zip(encoded, keys, strict=True):
        missing = [i for i, name in enumerate(names) if name not in known]
        if missing:
            # patches are in the order of time
            by_pair = prompt.patches.unflatten(0, (len(names), -1))
            patches.append(by_pair[missing].flatten(0, 1))
            grids.append((len(missing), *prompt.grid[1:]))
            new += [(names[i], prompt.grid[1] * prompt.grid[2]) for i in missing]
    found = dict(known)
    if patches:
        features = encode(torch.cat(patches).to(device), torch.tensor(grids, device=device))
        # patches are merged to tokens, all alike
        merged = sum(size for _, size in new) // len(features)
        parts = features.split([size // merged for _, size in new])
        found |= {name: part for (name, _), part in zip(new, parts, strict=True)}
    return torch.cat([found[name] for names in keys for name in names])
