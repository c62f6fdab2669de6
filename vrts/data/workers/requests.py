"""Requests for clips: equal ones have equal clips, which are decoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum

from vrts.data.video.frames import WHOLE, Window
from vrts.types import Clip, Question, Sample

KEPT_BYTES = 256 * 2**20
"""Bytes of finished clips that are kept; the newest one is kept whatever its size."""
KEPT_CLIPS = 16


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


@dataclass(slots=True, eq=False)
class Task:
    """One clip to decode, and the questions that wait for it."""

    request: Request
    priority: Priority = Priority.STREAM
    """The highest of all that asked for it."""
    waiting: list[tuple[Question, Future[Sample]]] = field(default_factory=list)
    begun: bool = False


class SharedClips:
    """Joins requests that are the same and near each other, as rows about one video are.

    A clip is shared while it is being decoded, and afterwards while it is among the last ones. A
    failure is shared in the same way: a video that hangs costs its adjacent questions one
    deadline. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[Request, Task] = {}
        self._finished: OrderedDict[Request, Clip | str] = OrderedDict()

    def join(
        self, question: Question, request: Request, priority: Priority = Priority.STREAM
    ) -> tuple[Future[Sample], Task | None]:
        """Ask for a clip.

        Returns:
            Where the sample will be, and the task where it is to be queued: a new one, or one that
            waits with a lower priority so far and is then in the queue twice.
        """
        future: Future[Sample] = Future()
        with self._lock:
            if request in self._finished:
                self._finished.move_to_end(request)
                future.set_result(_sample(question, self._finished[request]))
                return future, None
            known = self._tasks.get(request)
            task = known or self._tasks.setdefault(request, Task(request, priority))
            is_raised = priority < task.priority and not task.begun
            task.priority = min(task.priority, priority)
            if task.begun:
                future.set_running_or_notify_cancel()
            task.waiting.append((question, future))
        return future, task if is_raised or known is None else None

    def begin(self, task: Task) -> bool:
        """Mark a task as being decoded.

        Returns:
            False where it was begun or cancelled before, or all that waited for it were cancelled.
        """
        with self._lock:
            if not self._waits(task):
                return False
            task.waiting = [
                (question, future)
                for question, future in task.waiting
                if future.set_running_or_notify_cancel()
            ]
            task.begun = True
            if not task.waiting:
                del self._tasks[task.request]
            return bool(task.waiting)

    def finish(self, task: Task, result: Clip | str) -> None:
        """Give a clip, or the reason for none, to all that wait for it."""
        with self._lock:
            del self._tasks[task.request]
            self._finished[task.request] = result
            self._drop_oldest()
            # the queue may still hold the task, which must not keep frames alive
            waiting, task.waiting = task.waiting, []
        for question, future in waiting:
            future.set_result(_sample(question, result))

    def fail(self, task: Task, error: Exception) -> None:
        """Raise an error in all that wait for a task."""
        with self._lock:
            del self._tasks[task.request]
        for _, future in task.waiting:
            future.set_exception(error)

    def cancel(self, task: Task) -> None:
        """Cancel a task, unless it was begun or cancelled before."""
        with self._lock:
            if not self._waits(task):
                return
            del self._tasks[task.request]
        for _, future in task.waiting:
            future.cancel()

    def _waits(self, task: Task) -> bool:
        return not task.begun and self._tasks.get(task.request) is task

    def _drop_oldest(self) -> None:
        sizes = [0 if isinstance(r, str) else r.frames.nbytes for r in self._finished.values()]
        while len(sizes) > 1 and (len(sizes) > KEPT_CLIPS or sum(sizes) > KEPT_BYTES):
            self._finished.popitem(last=False)
            sizes.pop(0)


def _sample(question: Question, result: Clip | str) -> Sample:
    if isinstance(result, str):
        return Sample(question, error=result)
    return Sample(question, result)
