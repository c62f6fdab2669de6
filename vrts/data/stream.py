"""Streams of batches, decoded ahead in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from typing import Any, TypeAlias

from vrts.data.progress import Position, RankShare, TrainingProgress
from vrts.data.workers.pool import DecodePool
from vrts.data.workers.requests import Priority
from vrts.types import Question, Sample


class Batch:
    """A rank's samples of one step, used like a list of `Sample`.

    It may be empty: at the end of an epoch there may be fewer questions than ranks. Frames stay
    uint8 on the CPU until the policy takes them.

    Args:
        samples: Of the questions.
        end: Position in the questions after the step, the same on all ranks; None outside of
            training.
    """

    # not a Sequence: Lightning converts the tensors in those to its precision, and fails on frozen
    # dataclasses
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


MakeSample = Callable[[Question, int], Sample]
"""From a question and the number of frames requested to its sample."""


class SampleFactory:
    """Makes samples at once, without any video, in place of a `DecodePool`."""

    num_workers = 0

    def __init__(self, make: MakeSample) -> None:
        self._make = make

    def submit(
        self, question: Question, num_frames: int, priority: Priority = Priority.STREAM
    ) -> Future[Sample]:
        """Make a question's sample."""
        future: Future[Sample] = Future()
        future.set_result(self._make(question, num_frames))
        return future

    def close(self) -> None:
        """Do nothing: nothing is running."""


SampleSource: TypeAlias = DecodePool | SampleFactory


def evaluation_batches(
    order: Sequence[int], batch_size: int, rank: int, world_size: int
) -> list[list[int]]:
    """Return a rank's batches, such that every question counts exactly once.

    Rank r takes questions r, r + world_size, …: none is repeated to fill a batch, so ranks may have
    different numbers of batches, and the last one may be short.
    """
    share = order[rank::world_size]
    return [list(share[i : i + batch_size]) for i in range(0, len(share), batch_size)]


class SampleStream:
    """Batches of decoded samples, in order, each decoded before it is needed.

    Args:
        questions: All questions, of all ranks.
        batches: This rank's, as indices into ``questions``.
        pool: Decodes the samples.
        num_frames: Frames of each clip.
        prefetch_batches: Batches that are decoded ahead of the current one.
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
        # without workers, decoding ahead would only delay the first batch
        self._prefetch_batches = prefetch_batches if pool.num_workers else 0
        self.waited_s = 0.0  # time spent waiting for batches so far, in all epochs

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

    def _shares(self) -> list[RankShare]:
        return [RankShare(indices, None) for indices in self._batches]

    def _decoded(self) -> Generator[Batch, None, None]:
        waiting = iter(self._shares())
        decoding: deque[tuple[list[Future[Sample]], Position | None]] = deque()
        try:
            decoding.extend(map(self._submit, islice(waiting, 1 + self._prefetch_batches)))
            while decoding:
                futures, end = decoding[0]
                batch = Batch([future.result() for future in futures], end)
                decoding.popleft()
                decoding.extend(map(self._submit, islice(waiting, 1)))
                yield batch
        finally:
            for futures, _ in decoding:
                for future in futures:
                    future.cancel()

    def _submit(self, share: RankShare) -> tuple[list[Future[Sample]], Position | None]:
        questions = [self.questions[index] for index in share.indices]
        return [self._pool.submit(q, self._num_frames) for q in questions], share.end


class TrainingStream(SampleStream):
    """The rest of the epoch at each iteration, then the next epoch; arguments as `SampleStream`."""

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
        self._progress.end_epoch()

    def _shares(self) -> list[RankShare]:
        return self._progress.remaining()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module keeps the position.

        Lightning considers a loader without this method not resumable.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the position is read at the first batch."""
