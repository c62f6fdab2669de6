"""Streams of batches, decoded ahead in the order they are asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from typing import Any, Protocol

from vrts.data.progress import Position, Share, TrainingProgress
from vrts.data.workers.requests import Priority
from vrts.types import Question, Sample


class Batch:
    """A rank's samples of one step; counted, indexed and iterated like a list of `Sample`.

    It may be empty: at the end of an epoch there may be fewer questions than ranks. It is no
    `collections.abc.Sequence`, since Lightning walks into those to convert tensors to the
    Trainer's precision and fails on frozen dataclasses. Frames stay as they are, uint8 on the
    CPU, until the policy takes them.

    Args:
        samples: of the questions.
        end: where training is in its questions after the step, the same on all ranks; None
            outside of training.
    """

    __slots__ = ("end", "samples")

    def __init__(self, samples: Sequence[Sample], end: Position | None = None) -> None:
        self.samples = list(samples)
        self.end = end

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __repr__(self) -> str:
        return f"Batch({self.samples!r}, {self.end!r})"


class SampleStream:
    """Batches of decoded samples, in order, each decoded before it is needed.

    Args:
        questions: All questions, of all ranks.
        batches: This rank's, as indices into ``questions``.
        pool: Decodes, or makes samples otherwise.
        num_frames: Frames of each clip.
        prefetch_batches: Batches that are decoded ahead of the one in use.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        batches: Sequence[list[int]],
        pool: SampleSource,
        num_frames: int,
        prefetch_batches: int = 2,
    ) -> None:
        self.questions = questions
        self._batches = batches
        self._pool = pool
        self._num_frames = num_frames
        # without workers, decoding ahead would only make the first batch wait
        self._prefetch_batches = prefetch_batches if pool.num_workers else 0
        self.waited_s = 0.0
        """How long batches were waited for so far, in all epochs."""

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._decoded()) as batches:
            while True:
                start_s = time.perf_counter()
                batch = next(batches, None)
                self.waited_s += time.perf_counter() - start_s
                if batch is None:
                    return
                yield batch

    def _shares(self) -> list[Share]:
        return [Share(indices, None) for indices in self._batches]

    def _decoded(self) -> Generator[Batch, None, None]:
        waiting = iter(self._shares())
        decoding: deque[tuple[list[Future[Sample]], Position | None]] = deque()
        try:
            for share in islice(waiting, 1 + self._prefetch_batches):
                decoding.append((self._submit(share), share.end))
            while decoding:
                futures, end = decoding[0]
                batch = Batch([future.result() for future in futures], end)
                decoding.popleft()
                for share in islice(waiting, 1):
                    decoding.append((self._submit(share), share.end))
                yield batch
        finally:
            for future in (future for futures, _ in decoding for future in futures):
                future.cancel()

    def _submit(self, share: Share) -> list[Future[Sample]]:
        questions = [self.questions[index] for index in share.indices]
        return [self._pool.submit(q, self._num_frames) for q in questions]


class TrainingStream(SampleStream):
    """What is left of an epoch each time it is gone through, then the next one.

    Args:
        progress: knows what is left.
        questions: All questions, of all ranks.
        pool: Decodes, or makes samples otherwise.
        num_frames: Frames of each clip.
        prefetch_batches: Batches that are decoded ahead of the one in use.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        questions: Sequence[Question],
        pool: SampleSource,
        num_frames: int,
        prefetch_batches: int = 2,
    ) -> None:
        super().__init__(questions, (), pool, num_frames, prefetch_batches)
        self._progress = progress

    def __len__(self) -> int:
        return self._progress.num_batches()

    def __iter__(self) -> Iterator[Batch]:
        yield from super().__iter__()
        self._progress.close()

    def _shares(self) -> list[Share]:
        return self._progress.rest()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, since the data module keeps the position.

        Lightning takes a loader without this method for one that cannot be resumed.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing; the position is asked for at the first batch."""


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
