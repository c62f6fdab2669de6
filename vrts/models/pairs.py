"""Vision features of pairs of frames, which is what the vision tower encodes one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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
        encoded: B prompts with their frames.
        keys: names of each one's pairs.
        known: features by pair, ``[tokens of the pair, D]``.
        encode: from patches and grids ``[videos, 3]`` to features ``[video tokens, D]``.
        device: where to encode.

    Returns:
        ``[video tokens, D]``, without gradient where `encode` gives none.
    """
    patches, grids, sizes = [], [], []
    for prompt, names in zip(encoded, keys, strict=True):
        missing = [i for i, name in enumerate(names) if name not in known]
        if missing:
            patches.append(prompt.patches_on(device, missing))
            grids.append((len(missing), *prompt.grid[1:]))
            sizes += [prompt.grid[1] * prompt.grid[2]] * len(missing)
    new: Iterator[torch.Tensor] = iter(())
    if patches:
        features = encode(torch.cat(patches), torch.tensor(grids, device=device))
        # patches are merged to tokens, all alike
        merged = sum(sizes) // len(features)
        new = iter(features.split([size // merged for size in sizes]))
    return torch.cat([known[n] if n in known else next(new) for names in keys for n in names])
