"""What a question asks of decoding; equal requests have equal clips."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vrts.data.video.frames import WHOLE, Window
from vrts.types import Question


class Priority(IntEnum):
    """How soon a clip is needed; smaller ones are decoded first, equal ones as they come."""

    NOW = 0
    """Somebody waits for it."""
    NEXT = 1
    """A question that is being asked may need it next."""
    STREAM = 2
    """A batch that follows needs it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One clip to decode."""

    path: str
    """Video file, image, or folder of frames."""
    num_frames: int = 1
    """Frames asked for."""
    is_image: bool = False
    """Whether it is an image."""
    window: Window = WHOLE
    """Part of the video that frames are chosen from."""
    frames_fps: float | None = None
    """Frames a second of a folder of frames."""


def request_for(question: Question, num_frames: int, frames_fps: float | None = None) -> Request:
    """Return what to decode for a question.

    Args:
        question: Its metadata may have ``max_frames``, the most frames that its benchmark gives a
            video, and ``fps``, the rate of a folder of frames.
        num_frames: Frames asked for; ``max_frames`` caps them.
        frames_fps: Rate of folders of frames whose question names none.
    """
    if question.is_image:
        return Request(question.video, is_image=True)
    if question.max_frames is not None:
        num_frames = min(num_frames, question.max_frames)
    window = Window(question.start_s, question.end_s)
    own_fps = question.metadata.get("fps")
    if isinstance(own_fps, int | float | str):
        try:
            frames_fps = float(own_fps)
        except ValueError:
            frames_fps = None  # the folder then fails by name; a file has a rate of its own
    return Request(question.video, num_frames, False, window, frames_fps)
