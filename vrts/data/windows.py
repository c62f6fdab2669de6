"""Which frames of a video a question may see, chosen by when they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vrts.data.sampling import FrameSampler
from vrts.types import VideoError

CLOCK_S = 1e-3
"""Seconds that a time may be off: Matroska's clock ticks in milliseconds."""
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


def select(
    times_s: Sequence[float] | npt.NDArray[np.float64],
    fps: float,
    num_frames: int,
    sampler: FrameSampler,
    window: Window = WHOLE,
) -> Selection:
    """Choose frames of a video.

    The sampler sees the window as so many frames at a constant rate. A frame that it asks for is
    the one whose time is nearest: the very one where the rate is constant, and the one that is
    shown then where it is not, so that frames are as far apart as the model takes them to be.

    Args:
        times_s: When each frame is shown, ascending.
        fps: Frames a second as the container states it; unusable or wrong ones are corrected.
        num_frames: Frames asked for.
        sampler: Chooses.
        window: Frames that may be chosen.

    Raises:
        VideoError: no frame, none in the window, or no usable frame rate.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if not len(times):
        raise VideoError("has no frame")
    times = times - times[0]
    first = int(np.searchsorted(times, window.start_s - CLOCK_S, "left"))
    end_s = np.inf if window.end_s is None else window.end_s + CLOCK_S
    inside = times[first : int(np.searchsorted(times, end_s, "right"))]
    if not len(inside):
        until = "the end" if window.end_s is None else f"{window.end_s:g} s"
        raise VideoError(
            f"has no frame from {window.start_s:g} s to {until}; its last one is at "
            f"{times[-1]:.6g} s"
        )
    total = len(inside)
    span_s = float(inside[-1] - inside[0])
    fps = _true_rate(fps, total, span_s)
    places = np.asarray(sampler.indices(total, num_frames, fps))
    asked = inside[0] + places * (span_s / max(total - 1, 1))
    after = np.clip(np.searchsorted(inside, asked), 1, max(total - 1, 1))
    before = after - 1
    if total > 1:
        chosen = np.where(asked - inside[before] <= inside[after] - asked, before, after)
    else:
        chosen = np.zeros_like(places)
    return Selection(
        indices=tuple(int(first + i) for i in chosen),
        times_s=tuple(round(float(inside[i]), 6) for i in chosen),
        fps=fps,
        num_source_frames=total,
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
