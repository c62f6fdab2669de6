"""Decoding the frames that questions may need next while others are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from vrts.data.datamodule import VideoQADataModule
from vrts.data.requests import Priority
from vrts.types import Clip, Question, Sample

AHEAD_BYTES = 512 * 2**20
"""Bytes of frames, estimated, that are decoded for more than the next level of a batch."""

HasMore = Callable[[int, Question, Clip], bool]
"""Whether a question that is asked on a clip of a level, counted from 0, may go on to the next."""

_Key = tuple[str, int]
"""Id of a question, and a level."""


@dataclass(slots=True)
class LookaheadCount:
    """What became of the clips that were begun ahead of their need."""

    begun: int = 0
    used: int = 0
    cancelled: int = 0
    """Not needed, and found out before their decoding began; the rest was decoded in vain."""


class FrameLookahead:
    """Clips of denser levels, decoded in the background before it is known whether they are needed.

    While a batch is asked at one level, the next level of its questions is decoded. Where workers
    would idle then, they go on to further levels, and to those of the batches that the stream has
    asked for, each after the clip of the level before has come and within `AHEAD_BYTES`. Nothing
    here changes what a clip is.

    Args:
        data: has the decode workers; without any nothing is begun ahead of its need.
        levels: numbers of frames.
        has_more: tells which questions can go on.
        enabled: whether anything is begun ahead of its need.
    """

    def __init__(
        self,
        data: VideoQADataModule,
        levels: Sequence[int],
        has_more: HasMore,
        enabled: bool = True,
    ) -> None:
        self._data = data
        self._levels = levels
        self._has_more = has_more
        self._enabled = enabled and data.num_workers > 0
        self._coming: dict[str, tuple[Question, Future[Sample]]] = {}
        self._asked: set[str] = set()
        self._begun: dict[_Key, Future[Sample]] = {}
        self._bytes: dict[_Key, int] = {}
        self.count = LookaheadCount()

    def watch(self, question: Question, future: Future[Sample]) -> None:
        """Hear of a question of a batch that follows, and of its first clip."""
        if self._enabled:
            self._coming[question.id] = (question, future)

    def ask(self, samples: Sequence[Sample], level: int) -> None:
        """Begin to decode what may be needed after samples that are about to be asked.

        Args:
            samples: of one batch.
            level: of their clips.
        """
        if not self._enabled:
            return
        ids = {s.question.id for s in samples}
        self._drop_all_but(ids)
        self._asked = ids
        for id in ids:
            self._coming.pop(id, None)
        more = [s for s in samples if s.clip and self._has_more(level, s.question, s.clip)]
        for sample in more:
            self._begin(sample.question, level + 1, Priority.NEXT)
        for question, further, num_bytes in list(self._candidates(more, level)):
            if sum(self._bytes.values()) + num_bytes > AHEAD_BYTES:
                break
            self._begin(question, further, Priority.AHEAD)
            self._bytes[question.id, further] = num_bytes

    def take(self, questions: Sequence[Question], level: int) -> list[Sample]:
        """Wait for clips of questions of the batch, and give up all of its other questions."""
        self._drop_all_but({q.id for q in questions})
        self.count.used += sum((q.id, level) in self._begun for q in questions)
        for question in questions:
            self._submit(question, level, Priority.NOW)
        return [self._begun.pop((q.id, level)).result() for q in questions]

    def drop(self) -> None:
        """Give up what was begun for a batch that is decided."""
        self._drop_all_but(set())

    def close(self) -> None:
        """Give up everything, also what was begun for batches that follow."""
        self._asked |= self._coming.keys()
        self._coming = {}
        self.drop()

    def _candidates(
        self, asked: Sequence[Sample], level: int
    ) -> Iterator[tuple[Question, int, int]]:
        """Questions, levels and bytes of what may be needed later, the soonest first."""
        known = [(s.question, level + 1, self._begun[s.question.id, level + 1]) for s in asked]
        known += [(question, 0, future) for question, future in self._coming.values()]
        for question, last, future in known:
            while (question.id, last + 1) in self._begun:
                last += 1
                future = self._begun[question.id, last]
            clip = _clip_of(future)
            if clip is not None and self._has_more(last, question, clip):
                yield question, last + 1, clip.frames[0].nbytes * self._levels[last + 1]

    def _begin(self, question: Question, level: int, priority: Priority) -> None:
        """Ask for a clip ahead of its need, or more urgently than before."""
        self.count.begun += (question.id, level) not in self._begun
        self._submit(question, level, priority)

    def _submit(self, question: Question, level: int, priority: Priority) -> None:
        key = (question.id, level)
        before = self._begun.get(key)
        self._bytes.pop(key, None)
        if before is not None and before.done():
            return
        (self._begun[key],) = self._data.submit([question], self._levels[level], priority)
        if before is not None:
            before.cancel()  # or else the clip would be decoded though the new one is given up

    def _drop_all_but(self, ids: set[str]) -> None:
        """Give up what was begun for other questions of the batch."""
        gone = self._asked - ids
        for key in [key for key in self._begun if key[0] in gone]:
            self.count.cancelled += self._begun.pop(key).cancel()
            self._bytes.pop(key, None)
        self._asked &= ids


def _clip_of(future: Future[Sample]) -> Clip | None:
    """The clip that has come already, or None."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result().clip
