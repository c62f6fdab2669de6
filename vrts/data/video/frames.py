"""Which frames of a video the model sees."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from jsonargparse.typing import PositiveInt

from vrts.types import FRAMES_PER_PATCH, FrameSizes, VideoError

SKIPPED_S = 1
"""At the start and the end of long videos, which SmolVLM2 was trained without."""


class FrameSampler(ABC):
    """Chooses frames of a video. Plug-in point ``data.sampler``."""

    @abstractmethod
    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return the indices of T frames in ``[0, num_source_frames)``, ascending, T even.

        Args:
            num_source_frames: Number of frames in the source.
            num_frames: Number of frames requested.
            fps: Frames per second of the source.

        Raises:
            VideoError: the source has no frame.
        """

    def for_model(self, sizes: FrameSizes) -> Self:
        """Return the sampler as a family of models rounds frames; itself for most samplers."""
        return self


class UniformSampler(FrameSampler):
    """Evenly spaced frames, the first and the last included, as in qwen_vl_utils 0.0.14.

    Places between frames are rounded as a family's own code does: Qwen2.5-VL's in float32,
    Qwen3-VL's in float64, SmolVLM2's down. For SmolVLM2 the first and last second of long videos
    are left out where more seconds are between them than frames are requested. (Of shorter ones
    transformers' processor takes a frame a second; here they give as many as are requested.)

    The number is rounded to an even one. If the source has fewer frames, all of them are taken, the
    last one twice if their number is odd, as in qwen_vl_utils for lists of frames and transformers
    for videos (for videos qwen_vl_utils raises, or drops one).
    """

    _rule = "frame"

    def for_model(self, sizes: FrameSizes) -> Self:
        """See `FrameSampler.for_model`."""
        own = copy(self)  # a subclass stays what it is
        own._rule = sizes.rule
        return own

    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return ``linspace(first, last, T)``, rounded; raises as the base class."""
        if num_source_frames < 1:
            raise VideoError("has no frame")
        T = max(round(num_frames / FRAMES_PER_PATCH) * FRAMES_PER_PATCH, FRAMES_PER_PATCH)
        if num_source_frames < T:
            odd = num_source_frames % FRAMES_PER_PATCH
            return [*range(num_source_frames), *[num_source_frames - 1] * odd]
        if self._rule != "frame":
            first, last = 0, num_source_frames - 1
            if self._rule == "square" and num_source_frames / fps - 2 * SKIPPED_S > T:
                first = int(SKIPPED_S * fps)
                last = min(last, int(num_source_frames - SKIPPED_S * fps))
            exact = np.linspace(first, last, T)
            return [int(i) for i in (exact.round() if self._rule == "clip" else exact)]
        # float32 as in qwen_vl_utils: float64 rounds differently for long videos
        places = torch.linspace(0, num_source_frames - 1, T, dtype=torch.float32, device="cpu")
        return [int(i) for i in places.round().tolist()]


class NestedPairSampler(FrameSampler):
    """Pairs of neighbouring frames, such that the pairs of a level are among those of denser ones.

    The model encodes each pair on its own. Here a pair has the same two frames at every level: the
    frames of `UniformSampler` at the densest level are paired, and sparser levels take evenly
    spaced pairs. If each level has a multiple of the frames of the one before, sparse-to-dense
    prediction encodes only new pairs. The frames of a pair are closer to each other than to the
    next pair, and what follows the last pair of a sparse level is not seen there.

    Args:
        densest: Frames of the densest level. If more are requested, their pairs do not contain
            those of other levels.
    """

    def __init__(self, densest: PositiveInt = 128) -> None:
        self.densest = int(densest)
        self._uniform = UniformSampler()

    def for_model(self, sizes: FrameSizes) -> Self:
        """See `FrameSampler.for_model`."""
        own = copy(self)  # a subclass stays what it is
        own._uniform = self._uniform.for_model(sizes)
        return own

    def indices(self, num_source_frames: int, num_frames: int, fps: float) -> list[int]:
        """Return evenly spaced pairs; raises as the base class."""
        frames = self._uniform.indices(num_source_frames, max(self.densest, num_frames), fps)
        pairs = [frames[i : i + FRAMES_PER_PATCH] for i in range(0, len(frames), FRAMES_PER_PATCH)]
        K = min(max(round(num_frames / FRAMES_PER_PATCH), 1), len(pairs))
        # nested: the j-th of K pairs is the 2j-th of 2K, whatever the number of all pairs
        return [index for j in range(K) for index in pairs[j * len(pairs) // K]]


CLOCK_S = 1e-3  # tolerance of times: Matroska's clock ticks in milliseconds
HELD_S = 1.0  # if a window's first frame comes later, the one shown at its start belongs to it
RATE_TOLERANCE = 0.01  # of the container's frame rate relative to that of the frames' times


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a video in seconds from its first frame, both ends included."""

    start_s: float = 0.0
    end_s: float | None = None  # None, or any later time, is the video's end


WHOLE = Window()


@dataclass(frozen=True, slots=True)
class Source:
    """The frames of a video."""

    times_s: Sequence[float] | npt.NDArray[np.float64]  # presentation times, ascending
    fps: float  # frame rate stated by the container; `select` corrects a wrong or missing one
    end_s: float | None = None  # end of the last frame, if known
    tick_s: float = 0.0  # unit that the times are rounded to
    damaged: Collection[int] = ()  # indices of frames that cannot be shown


@dataclass(frozen=True, slots=True)
class Selection:
    """T chosen frames; the fields are those of `vrts.types.Clip`."""

    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    fps: float
    num_source_frames: int
    num_damaged: int


def select(
    source: Source, num_frames: int, sampler: FrameSampler, window: Window = WHOLE
) -> Selection:
    """Choose frames of a video.

    The sampler sees the window as N frames at a constant rate. If it takes fewer than N, its
    indices stand for moments, and the frames shown at these moments are chosen: the same ones at a
    constant rate, and otherwise frames as far apart in time as the model takes them to be.

    Args:
        source: The frames.
        num_frames: Number of frames requested.
        sampler: Chooses among those in the window.
        window: Part of the video. The frame shown at its start belongs to it if no other does, or
            if the next one comes more than `HELD_S` later.

    Raises:
        VideoError: no frame, none in the window, none that is intact, or no usable frame rate.
    """
    times = np.asarray(source.times_s, dtype=np.float64)
    if not len(times):
        raise VideoError("has no frame")
    shown_until_s = times[-1] if source.end_s is None else max(source.end_s - CLOCK_S, times[-1])
    shown_until_s, times = shown_until_s - times[0], times - times[0]
    end_s = np.inf if window.end_s is None else window.end_s + CLOCK_S
    # frames first to last - 1 start within the window
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
    inside = times[first:last]  # [N]
    if is_held:
        inside[0] = window.start_s
    N, span_s = last - first, float(inside[-1] - inside[0])
    fps = _true_rate(source.fps, N, span_s)
    places = np.asarray(sampler.indices(N, num_frames, fps))  # [T]
    if len(set(places.tolist())) < N:
        step_s = span_s / (N - 1)
        # times and moments are each rounded by half a tick at most
        tolerance_s = min(max(CLOCK_S, source.tick_s) + 1e-6, step_s / 2)
        moments = inside[0] + places * step_s + tolerance_s
        # the last frame that starts before the moment is the one shown at it
        places = np.searchsorted(inside, moments, "right") - 1
    intact = np.asarray([i for i in range(N) if first + i not in source.damaged])
    if not len(intact):
        raise VideoError("has no frame that is not damaged")
    nearest = places
    if len(intact) < N:
        nearest = np.asarray([intact[np.abs(inside[intact] - inside[i]).argmin()] for i in places])
    return Selection(
        indices=tuple(int(first + i) for i in nearest),
        times_s=tuple(round(float(inside[i]), 6) for i in nearest),
        fps=fps,
        num_source_frames=N,
        num_damaged=int((places != nearest).sum()),
    )


def _true_rate(fps: float, total: int, span_s: float) -> float:
    """Return the container's rate, or that of the frames' times if it differs much."""
    usable = 0 < fps < float("inf")
    if total > 1 and span_s > 0:
        measured = (total - 1) / span_s
        # times of few frames are too coarse to measure it
        tolerance = max(RATE_TOLERANCE, 2 * CLOCK_S / span_s)
        if not usable or abs(measured / fps - 1) > tolerance:
            return measured
    if not usable:
        raise VideoError(f"has no usable frame rate ({fps})")
    return fps
