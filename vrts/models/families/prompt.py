"""One question and its clip as a model of any family reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from vrts.models.policy import Prompt
from vrts.types import Clip, InputError, Sample

PatchKey = tuple[str, tuple[int, ...], int, int]
"""What the features of a temporal patch depend on: the video, which frames, and their height and
width."""

CLOCK_S = 0.01
"""Seconds that a frame may be off the constant rate: containers round times to milliseconds."""


class Patcher(Protocol):
    """Turns frames into what a vision tower reads, on the device where they are."""

    @property
    def merge_size(self) -> int:
        """Patches that become one token, along each side."""
        ...

    @property
    def temporal_patch_size(self) -> int:
        """Frames of a patch."""
        ...

    def fill(self, frames: torch.Tensor) -> torch.Tensor:
        """Repeat the last of ``[T, C, H, W]`` frames until they fill complete patches."""
        ...

    def grid(self, frames: torch.Tensor) -> tuple[int, int, int]:
        """Temporal, vertical and horizontal patches of filled frames ``[T, C, H, W]``."""
        ...

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalised pixels of uint8 ``[T, C, H, W]``, filled; rows in the order of time."""
        ...


@dataclass(frozen=True, slots=True)
class GridPatcher:
    """The patches of Qwen's vision towers: rows of pixels of some frames each.

    The result is bit for bit that of transformers' processors, which work on the host: four times
    the bytes would then go to the device, and it would wait for them.
    """

    mean: torch.Tensor
    """float32 ``[C, 1]``, of pixels from 0 to 255."""
    std: torch.Tensor
    """float32 ``[C, 1]``."""
    patch_size: int
    merge_size: int
    temporal_patch_size: int

    @classmethod
    def of(cls, processor: Any) -> Self:
        """What one of transformers' image or video processors does to frames of the right size.

        Raises:
            InputError: it does not normalise pixels.
        """
        mean, std = pixel_statistics(processor)
        return cls(
            mean[:, None],
            std[:, None],
            processor.patch_size,
            processor.merge_size,
            processor.temporal_patch_size,
        )

    def fill(self, frames: torch.Tensor) -> torch.Tensor:
        """See `Patcher.fill`."""
        missing = -len(frames) % self.temporal_patch_size
        return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if missing else frames

    def grid(self, frames: torch.Tensor) -> tuple[int, int, int]:
        """See `Patcher.grid`."""
        T, _, H, W = frames.shape
        return T // self.temporal_patch_size, H // self.patch_size, W // self.patch_size

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalised patches.

        Args:
            frames: uint8 ``[T, C, H, W]``, filled.

        Returns:
            float32 ``[patches, C * temporal_patch_size * patch_size ** 2]``, in the order of time,
            and within it token by token.
        """
        t, h, w = self.grid(frames)
        C, side, merge = frames.shape[1], self.patch_size, self.merge_size
        cut = frames.reshape(
            t, self.temporal_patch_size, C, h // merge, merge, side, w // merge, merge, side
        )
        # [t, h / merge, w / merge, merge, merge, C, temporal, side, side], still in bytes
        cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, C, -1)
        mean, std = self.mean.to(frames.device), self.std.to(frames.device)
        return cut.to(torch.float32).sub_(mean).div_(std).flatten(1)


def pixel_statistics(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation ``[C]`` of pixels from 0 to 255, as a processor takes them.

    Raises:
        InputError: it does not normalise pixels.
    """
    if not (processor.do_rescale and processor.do_normalize):
        raise InputError(
            f"model.policy.path: {type(processor).__name__} has do_rescale or do_normalize "
            "false; vrts normalises frames as the weights expect: set both to true in the "
            "model's processor files"
        )
    # In float32 throughout, in transformers' order, whatever Lightning's bf16-true makes the
    # default.
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu") * (1.0 / processor.rescale_factor)
        for values in (processor.image_mean, processor.image_std)
    )
    return mean, std


@dataclass(frozen=True, slots=True)
class VideoPrompt(Prompt):
    """One question and its clip as model inputs, on the CPU."""

    input_ids: torch.Tensor
    """int64 ``[P]``, one placeholder for each vision token."""
    vision_places: torch.Tensor
    """int64 ``[vision tokens]``, where in the prompt these are."""
    positions: torch.Tensor
    """int64 ``[A, P]``: A is 3 for M-RoPE (time, height, width), else 1."""
    next_position: int
    """Position of the first completion token."""
    frames: torch.Tensor
    """uint8 ``[T, C, H, W]``, the last one repeated to fill a patch."""
    patcher: Patcher
    """Of the frames."""
    grid: tuple[int, int, int]
    """Temporal, vertical and horizontal patches."""
    patch_keys: tuple[PatchKey, ...]
    """One for each temporal patch, in order."""
    features: torch.Tensor
    """``[vision tokens, F]``, without gradient; valid while the vision tower stays as it is. F is D
    for most families, and a multiple of it where deeper layers take features too."""

    @property
    def num_tokens(self) -> int:
        """P."""
        return len(self.input_ids)

    def features_by_patch(self) -> dict[PatchKey, torch.Tensor]:
        """Features ``[tokens of a temporal patch, F]``."""
        return dict(zip(self.patch_keys, self.features.chunk(self.grid[0]), strict=True))

    def patches(
        self, device: torch.device, temporal_patches: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Normalised pixels, made on a device that the frames are sent to as bytes.

        Args:
            device: where to make them.
            temporal_patches: which of the grid's to take; None takes all.

        Returns:
            float32, what the patcher makes of them.
        """
        frames = self.frames
        if temporal_patches is not None:
            frames = frames.unflatten(0, (self.grid[0], -1))[list(temporal_patches)].flatten(0, 1)
        return self.patcher(frames.to(device, non_blocking=True))


def patch_keys(sample: Sample, patcher: Patcher) -> tuple[PatchKey, ...]:
    """Name the temporal patches of a clip, in order."""
    assert sample.clip is not None
    indices, size = sample.clip.frame_indices, patcher.temporal_patch_size
    _, _, H, W = sample.clip.frames.shape
    return tuple(
        (sample.question.video, indices[i : i + size], H, W) for i in range(0, len(indices), size)
    )


def frame_times_s(clip: Clip) -> list[float]:
    """When each frame is shown, where a family puts it in the prompt.

    Times are ``index / fps``, as in transformers, or the frames' own where the rate is not
    constant.
    """
    times = [index / clip.fps for index in clip.frame_indices]
    if any(abs(a - b) > CLOCK_S for a, b in zip(times, clip.times_s, strict=False)):
        return list(clip.times_s)
    return times


def patch_times_s(clip: Clip, frames_per_patch: int) -> list[float]:
    """When each temporal patch is shown: the mean time of its first and its last frame."""
    times = frame_times_s(clip)
    times += [times[-1]] * (-len(times) % frames_per_patch)
    return [
        (times[i] + times[i + frames_per_patch - 1]) / 2
        for i in range(0, len(times), frames_per_patch)
    ]
