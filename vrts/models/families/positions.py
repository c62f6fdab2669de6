"""M-RoPE positions of Qwen2-VL and Qwen2.5-VL prompts, by the rule their weights were trained with.

transformers 4.49 continues after a video at its highest position plus one. Later releases
(5.3 to 5.24 at least) advance by ``max(h, w) // merge`` only, which puts the text after a long
clip in the middle of the video. The weights know the first rule, so positions are computed here
and passed in explicitly everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class VideoGrid:
    """The patch grid of one video, and how far apart in position its temporal patches are."""

    t: int
    """Temporal patches."""
    h: int
    """Rows of patches, before merging."""
    w: int
    """Columns of patches, before merging."""
    seconds_per_grid: float
    """Seconds from one temporal patch to the next."""
    tokens_per_second: float | None
    """Positions a second (Qwen2.5-VL); None counts temporal patches (Qwen2-VL)."""


def video_positions(grid: VideoGrid, merge_size: int) -> torch.Tensor:
    """Positions of a video's tokens relative to its first one.

    Args:
        grid: the video's patch grid.
        merge_size: patches merged into one token, along each side.

    Returns:
        int64 ``[3, tokens]``: temporal, height and width positions.
    """
    t = torch.arange(grid.t, device="cpu")
    if grid.tokens_per_second is not None:
        # Same order of float32 operations as transformers 4.49, so that truncation agrees.
        t = (t.float() * grid.seconds_per_grid * grid.tokens_per_second).long()
    h = torch.arange(grid.h // merge_size, device="cpu")
    w = torch.arange(grid.w // merge_size, device="cpu")
    return torch.stack(torch.meshgrid(t, h, w, indexing="ij")).reshape(3, -1)


def prompt_positions(
    is_video: torch.Tensor, grids: Sequence[VideoGrid], merge_size: int
) -> tuple[torch.Tensor, int]:
    """Positions of a prompt's tokens, and the position at which its completion starts.

    Args:
        is_video: bool ``[P]``, True for video tokens.
        grids: one for each video, in order of appearance.
        merge_size: patches merged into one token, along each side.

    Returns:
        int64 ``[3, P]``, and the highest position plus one.

    Raises:
        ValueError: the number of video tokens does not fit the grids.
    """
    expected = sum(g.t * (g.h // merge_size) * (g.w // merge_size) for g in grids)
    if int(is_video.sum()) != expected:
        raise ValueError(f"prompt has {int(is_video.sum())} video tokens, its grids {expected}")
    parts: list[torch.Tensor] = []
    start, index = 0, 0
    remaining = iter(grids)
    while index < len(is_video):
        if is_video[index]:
            part = video_positions(next(remaining), merge_size)
        else:
            text_length = int(is_video[index:].int().argmax()) if is_video[index:].any() else 0
            part = torch.arange(text_length or len(is_video) - index, device="cpu").expand(3, -1)
        parts.append(part + start)
        start = int(parts[-1].max()) + 1
        index += part.shape[1]
    return torch.cat(parts, dim=1), start
