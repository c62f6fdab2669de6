"""Streams of batches, decoded ahead in the order they are asked for."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from vrts.data.position import Position
from vrts.data.sources import SampleSource
from vrts.types import Question, Sample


class Batch:
    """The samples of one step; counted, indexed and iterated like a list of `Sample`.

    It is no `collections.abc.Sequence`, since Lightning walks into those to convert tensors to
    the Trainer's precision and fails on frozen dataclasses. Frames stay as they are, uint8 on the
    CPU, until the policy takes them.
    """

    __slots__ = ("samples",)

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __repr__(self) -> str:
        return f"Batch({self.samples!r})"


def start() -> Position:
    """Return the beginning, where evaluation always starts."""
    return Position(epoch=0, num_seen=0)


class SampleStream:
    """Batches of decoded samples, in order, each decoded before it is needed.

    Iterating yields what is left of an epoch from the position at the first batch; ``len`` is
    that of a whole epoch, which is how Lightning counts batches also after a resume.

    Args:
        questions: All questions, of all ranks.
        batches: Given a position, the batches of this rank from there to the end of the epoch, as
            indices into ``questions``; as many from the start of every epoch.
        pool: Decodes, or makes samples otherwise.
        num_frames: Frames of each clip.
        prefetch_batches: Batches that are decoded ahead of the one in use.
        repeats: Times that each batch is given out, the same object each time.
        position: Asked once an iteration, when its first batch is due.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        batches: Callable[[Position], list[list[int]]],
        pool: SampleSource,
        num_frames: int,
        prefetch_batches: int = 2,
        repeats: int = 1,
        position: Callable[[], Position] = start,
    ) -> None:
        self.questions = questions
        self._batches = batches
        self._pool = pool
        self._num_frames = num_frames
        # without workers, decoding ahead would only make the first batch wait
        self._prefetch_batches = prefetch_batches if pool.num_workers else 0
        self._repeats = repeats
        self._position = position
        self._num_batches = len(batches(start())) * repeats
        self.waited_s = 0.0
        """How long batches were waited for so far, in all epochs."""

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._decoded()) as batches:
            while True:
                start_s = time.perf_counter()
                batch = next(batches, None)
                self.waited_s += time.perf_counter() - start_s
                if batch is None:
                    return
                yield batch

    def _decoded(self) -> Generator[Batch, None, None]:
        position = self._position()
        repeated = position.num_repeats
        waiting = iter(self._batches(position))
        decoding: deque[list[Future[Sample]]] = deque()
        try:
            for _ in range(1 + self._prefetch_batches):
                self._submit_next(waiting, decoding)
            while decoding:
                batch = Batch([future.result() for future in decoding.popleft()])
                self._submit_next(waiting, decoding)
                for _ in range(repeated, self._repeats):
                    yield batch
                repeated = 0
        finally:
            for future in (future for futures in decoding for future in futures):
                future.cancel()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, since the data module keeps the position.

        Lightning takes a loader without this method for one that cannot be resumed.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing; the position is asked for at the first batch."""

    def _submit_next(
        self, waiting: Iterator[list[int]], decoding: deque[list[Future[Sample]]]
    ) -> None:
        for indices in waiting:
            questions = [self.questions[index] for index in indices]
            decoding.append([self._pool.submit(q, self._num_frames) for q in questions])
            return
