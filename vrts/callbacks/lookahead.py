"""Decoding the frames that a question may need next while it is answered on fewer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from vrts.data.datamodule import VideoQADataModule
from vrts.types import Question, Sample


@dataclass(slots=True)
class LookaheadCount:
    """What became of the clips that were begun ahead of their need."""

    begun: int = 0
    used: int = 0
    cancelled: int = 0
    """Not needed, and found out before their decoding began; the rest was decoded in vain."""


class FrameLookahead:
    """Clips that are decoded in the background, at most one for each question of a batch.

    Args:
        data: has the decode workers; without any nothing is begun ahead of its need.
    """

    def __init__(self, data: VideoQADataModule) -> None:
        self._data = data
        self._begun: dict[tuple[str, int], Future[Sample]] = {}
        self.count = LookaheadCount()

    def begin(self, questions: Sequence[Question], num_frames: int) -> None:
        """Begin to decode what may be needed.

        Args:
            questions: whose videos.
            num_frames: frames of each.
        """
        if not self._data.num_workers:
            return
        futures = self._data.submit(questions, num_frames)
        self._begun |= {(q.id, num_frames): f for q, f in zip(questions, futures, strict=True)}
        self.count.begun += len(futures)

    def take(self, questions: Sequence[Question], num_frames: int) -> list[Sample]:
        """Wait for the clips of some questions, and give up all others that were begun."""
        begun = {q.id: self._begun.pop((q.id, num_frames), None) for q in questions}
        self.drop()
        self.count.used += sum(future is not None for future in begun.values())
        others = [q for q in questions if begun[q.id] is None]
        begun |= {
            q.id: f for q, f in zip(others, self._data.submit(others, num_frames), strict=True)
        }
        return [future.result() for q in questions if (future := begun[q.id]) is not None]

    def drop(self) -> None:
        """Give up what was begun and not taken."""
        for future in self._begun.values():
            self.count.cancelled += future.cancel()
        self._begun = {}
