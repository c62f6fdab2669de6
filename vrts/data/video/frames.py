"""Which frames of a video the model sees."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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


CLOCK_S = 1e-3
"""Seconds that a time may be off: Matroska's clock ticks in milliseconds."""
HELD_S = 1.0
"""Seconds from which on a frame that is shown when a window begins is part of it."""
RATE_TOLERANCE = 0.01
"""How far a container's frame rate may be from that of the frames' times."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a video in seconds, counted from its first frame; both ends belong to it."""

    start_s: float = 0.0
    end_s: float | None = None
    """None is the video's end, and so is everything after it."""


WHOLE = Window()


@dataclass(frozen=True, slots=True)
class Source:
    """The frames of a video."""

    times_s: Sequence[float] | npt.NDArray[np.float64]
    """When each is shown, ascending."""
    fps: float
    """Frames a second as the container states it; unusable or wrong ones are corrected."""
    end_s: float | None = None
    """When the last one is no longer shown; None where nothing tells."""
    tick_s: float = 0.0
    """What the times are rounded to."""
    damaged: Collection[int] = ()
    """Those that cannot be shown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The frames that were chosen."""

    indices: tuple[int, ...]
    """In the source, T of them."""
    times_s: tuple[float, ...]
    """When each is shown, counted from the first frame of the source."""
    fps: float
    """Frames a second of the source, within the window."""
    num_source_frames: int
    """Frames in the window."""
    num_damaged: int
    """Chosen frames that the nearest sound one replaces."""


def select(
    source: Source, num_frames: int, sampler: FrameSampler, window: Window = WHOLE
) -> Selection:
    """Choose frames of a video.

    The sampler sees the window as so many frames at a constant rate. Where it asks for fewer than
    there are, a frame that it asks for is the one that is shown at that moment: the very one where
    the rate is constant, and where it is not, frames are as far apart as the model takes them to
    be. A frame that is shown when the window begins belongs to it where no other does, or where
    the next one is long in coming.

    Args:
        source: The frames.
        num_frames: Frames asked for.
        sampler: Chooses.
        window: Frames that may be chosen.

    Raises:
        VideoError: no frame, none in the window or none that is sound, or no usable frame rate.
    """
    times = np.asarray(source.times_s, dtype=np.float64)
    if not len(times):
        raise VideoError("has no frame")
    end_s = np.inf if window.end_s is None else window.end_s + CLOCK_S
    shown_until_s = times[-1] if source.end_s is None else max(source.end_s - CLOCK_S, times[-1])
    shown_until_s, times = shown_until_s - times[0], times - times[0]
    first = int(np.searchsorted(times, window.start_s - CLOCK_S, "left"))
    last = int(np.searchsorted(times, end_s, "right"))
    next_s = times[first] if first < last else np.inf
    is_held = first > 0 and next_s - window.start_s > HELD_S and window.start_s <= shown_until_s
    first -= int(is_held)
    if first >= last:
        until = "the end" if window.end_s is None else f"{window.end_s:g} s"
        raise VideoError(
            f"has no frame from {window.start_s:g} s to {until}; its last one is at "
            f"{times[-1]:.6g} s"
        )
    inside = times[first:last]
    if is_held:
        inside[0] = window.start_s
    total, span_s = last - first, float(inside[-1] - inside[0])
    fps = _true_rate(source.fps, total, span_s)
    places = np.asarray(sampler.indices(total, num_frames, fps))
    if len(set(places.tolist())) < total:
        step_s = span_s / (total - 1)
        # times and moments are each rounded by half a tick at most
        tolerance_s = min(max(CLOCK_S, source.tick_s) + 1e-6, step_s / 2)
        moments = inside[0] + places * step_s + tolerance_s
        places = np.searchsorted(inside, moments, "right") - 1
    sound = np.asarray([i for i in range(total) if first + i not in source.damaged])
    if not len(sound):
        raise VideoError("has no frame that is not damaged")
    nearest = places
    if len(sound) < total:
        nearest = np.asarray([sound[np.abs(inside[sound] - inside[i]).argmin()] for i in places])
    return Selection(
        indices=tuple(int(first + i) for i in nearest),
        times_s=tuple(round(float(inside[i]), 6) for i in nearest),
        fps=fps,
        num_source_frames=total,
        num_damaged=int((places != nearest).sum()),
    )


def _true_rate(fps: float, total: int, span_s: float) -> float:
    """Return the container's rate, or that of the frames' times where it is far from it."""
    usable = 0 < fps < float("inf")
    if total > 1 and span_s > 0:
        measured = (total - 1) / span_s
        # times of few frames are too coarse to tell
        tolerance = max(RATE_TOLERANCE, 2 * CLOCK_S / span_s)
        if not usable or abs(measured / fps - 1) > tolerance:
            return measured
    if not usable:
        raise VideoError(f"has no usable frame rate ({fps})")
    return fps
