"""Which frames of a video the model sees."""

from abc import ABC, abstractmethod

import torch
from jsonargparse.typing import PositiveInt

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

    The number is rounded to an even one. A source that has fewer frames than asked gives all of
    them, the last one twice where their number is odd, as qwen_vl_utils does for lists of frames
    and transformers for videos (for videos qwen_vl_utils raises, or drops one).
    """

    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return ``linspace(0, total - 1, T)``, rounded; raises as the base class says."""
        if num_source_frames < 1:
            raise VideoError("has no frame")
        count = max(round(num_frames / FRAME_FACTOR) * FRAME_FACTOR, FRAME_FACTOR)
        if num_source_frames < count:
            odd = num_source_frames % FRAME_FACTOR
            return [*range(num_source_frames), *[num_source_frames - 1] * odd]
        # torch's float32 steps, not numpy's float64: they round differently for long videos
        places = torch.linspace(0, num_source_frames - 1, count, dtype=torch.float32)
        return [int(i) for i in places.round().tolist()]


class NestedPairSampler(FrameSampler):
    """Pairs of neighbouring frames, so that the pairs of a level are among those of denser ones.

    The model encodes frames in pairs, each on its own. Here a pair is the same two frames at every
    level: the frames that `UniformSampler` takes at the densest level, two by two, and of these
    pairs evenly spaced ones where fewer are asked for. Where a level has a multiple of the frames
    of the one before, its pairs hold those, and sparse-to-dense prediction encodes only the others.
    The frames of a pair are closer together than its next neighbours, and what lies behind the
    last pair of a sparse level is not seen there.

    Args:
        densest: frames of the densest level. Where more are asked for, that many are taken, and
            pairs of other levels are not among them.
    """

    def __init__(self, densest: PositiveInt = 128) -> None:
        self.densest = int(densest)

    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return evenly spaced pairs; raises as the base class says."""
        uniform = UniformSampler()
        all_frames = uniform.indices(num_source_frames, max(self.densest, num_frames), fps)
        num_pairs = len(all_frames) // FRAME_FACTOR
        asked = min(max(round(num_frames / FRAME_FACTOR), 1), num_pairs)
        # the j-th of K pairs is the 2j-th of 2K, whatever the number of all pairs
        pairs = [j * num_pairs // asked for j in range(asked)]
        return [all_frames[FRAME_FACTOR * pair + i] for pair in pairs for i in range(FRAME_FACTOR)]
