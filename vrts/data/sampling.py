"""Which frames of a video the model sees."""

from abc import ABC, abstractmethod

import torch

from vrts.types import VideoError

FRAME_FACTOR = 2
"""Frames of one temporal patch of Qwen2-VL and Qwen2.5-VL: their number is even."""


class FrameSampler(ABC):
    """Chooses frames of a video."""

    @abstractmethod
    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return the frames to show, T of them, in ascending order.

        Args:
            num_source_frames: Frames in the source.
            num_frames: Frames asked for.
            fps: Frames a second of the source.

        Returns:
            Indices in ``[0, num_source_frames)``, an even number of them.

        Raises:
            VideoError: the source has no frame.
        """


class UniformSampler(FrameSampler):
    """Evenly spaced frames, the first and the last included, as qwen_vl_utils 0.0.14 takes them.

    The number is rounded to an even one. A source that is shorter than asked gives the largest
    even number of frames it has (qwen_vl_utils raises there), and one of a single frame gives
    that frame twice, which is one temporal patch.
    """

    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return ``linspace(0, total - 1, T)``, rounded; raises as the base class says."""
        if num_source_frames < 1:
            raise VideoError("has no frame")
        asked = round(num_frames / FRAME_FACTOR) * FRAME_FACTOR
        available = num_source_frames // FRAME_FACTOR * FRAME_FACTOR
        count = max(min(asked, available), FRAME_FACTOR)
        # torch's float32 steps, not numpy's float64: they round differently for long videos
        places = torch.linspace(0, num_source_frames - 1, count, dtype=torch.float32)
        return [int(i) for i in places.round().tolist()]
