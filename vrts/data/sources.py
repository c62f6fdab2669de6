"""Where samples come from: a pool that decodes, or a function for runs that need no frames."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from vrts.data.requests import Priority
from vrts.types import Question, Sample

MakeSample = Callable[[Question, int], Sample]
"""From a question and the number of frames asked for to its sample."""


class SampleSource(Protocol):
    """Gives the samples of questions, some ahead of their use."""

    num_workers: int
    """Processes that work on samples; with none of them, asking ahead saves no time."""

    def submit(
        self, question: Question, num_frames: int, priority: Priority = Priority.STREAM
    ) -> Future[Sample]:
        """Ask for a question's sample; it never raises for a bad video."""

    def close(self) -> None:
        """End what works on samples."""


class MadeSamples:
    """Samples that are made at once, without any video.

    Args:
        make: makes them.
    """

    def __init__(self, make: MakeSample) -> None:
        self._make = make
        self.num_workers = 0

    def submit(
        self, question: Question, num_frames: int, priority: Priority = Priority.STREAM
    ) -> Future[Sample]:
        """Make a question's sample."""
        future: Future[Sample] = Future()
        future.set_result(self._make(question, num_frames))
        return future

    def close(self) -> None:
        """Do nothing: nothing is left running."""
