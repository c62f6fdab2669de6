"""How far training is in its questions, kept over interruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from vrts.data.position import Course, Layout, Position, to_state
from vrts.data.resuming import go_on
from vrts.data.streaming import start


class TrainingProgress:
    """Finds where training is by the Trainer's count of batches.

    Args:
        seed: of the shuffling.
        shuffle: whether the questions are shuffled.
    """

    def __init__(self, seed: int, shuffle: bool) -> None:
        self._seed = seed
        self._shuffle = shuffle
        self._course: Course | None = None
        self._resumed: dict[str, Any] = {}

    def forget(self) -> None:
        """Begin anew, as each fit does that is not resumed."""
        self._course, self._resumed = None, {}

    def begin(self, trainer: Trainer | None, layout: Layout, ids: Sequence[str]) -> None:
        """Begin, or go on where the run that is resumed was.

        Args:
            trainer: has the counters of the checkpoint; None outside of a run.
            layout: of this run.
            ids: of the training questions.

        Raises:
            InputError: as `go_on` says.
        """
        if self._course is None or self._course.layout != layout:
            self._course = Course(layout)
        if self._resumed and trainer is not None:
            self._course = go_on(trainer, self._resumed, layout, ids, self._seed, self._shuffle)
            self._resumed = {}

    def position(self, trainer: Trainer | None) -> Position:
        """Return where the Trainer is in training, right when it asks for its next batch."""
        if trainer is None or self._course is None:
            return start()
        # Lightning counts an epoch that max_steps cut short as a whole one, so its own epoch and
        # batch counters disagree with each other after a resume; the number of all batches is right
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return self._course.at(done, int(trainer.num_training_batches))

    def state_dict(self, trainer: Trainer | None) -> dict[str, Any]:
        """Return where training is in its questions, and what their order depends on."""
        if self._course is None or trainer is None:
            return {}
        order = {"seed": self._seed, "shuffle": self._shuffle}
        return to_state(self.position(trainer), self._course.layout) | order

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Note where the run that is resumed was, until it begins."""
        self._resumed = dict(state)
