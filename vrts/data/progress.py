"""How far training is in its questions: a position that optimizer steps alone move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from vrts.data.order import epoch_order
from vrts.types import InputError


class Position(NamedTuple):
    """How much was trained on, by all ranks together; the same on each."""

    epoch: int
    """Counted from 0."""
    num_seen: int
    """Questions of the epoch's order."""


class Share(NamedTuple):
    """What a rank has of an optimizer step."""

    indices: list[int]
    """Of questions; fewer than the others have, or none, in the last step of an epoch."""
    end: Position | None
    """After the step; None outside of training."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the steps of a run depend on."""

    num_questions: int
    seed: int
    shuffle: bool
    batch_size: int
    world_size: int

    def num_steps(self, num_seen: int = 0) -> int:
        """Return the steps that what is left of an epoch makes; the last may be smaller."""
        left = max(self.num_questions - num_seen, 0)
        return -(-left // (self.batch_size * self.world_size))

    def shares(self, position: Position, rank: int) -> list[Share]:
        """Return what a rank has of each step from a position to the end of its epoch.

        A step takes the next questions of the epoch's order, of which each rank has every n-th:
        all ranks make as many steps, and the last one is divided as evenly as it can be.
        """
        order = epoch_order(self.num_questions, self.seed, position.epoch, self.shuffle)
        size = self.batch_size * self.world_size
        starts = range(position.num_seen, self.num_questions, size)
        ends = [min(start + size, self.num_questions) for start in starts]
        return [
            Share(order[start + rank : end : self.world_size], Position(position.epoch, end))
            for start, end in zip(starts, ends, strict=True)
        ]


class TrainingProgress:
    """Gives the steps that are left, epoch by epoch, and keeps the position in checkpoints.

    ``trainer.max_epochs`` means passes through the questions. Lightning counts an epoch that
    ``max_steps`` or a stop cut short as a whole one, so its limit is moved by those.

    Args:
        layout: of the run.
        rank: of this process.
        trainer: of the run; None outside of one.
    """

    def __init__(self, layout: Layout, rank: int = 0, trainer: Trainer | None = None) -> None:
        self.position = Position(0, 0)
        """After the last optimizer step."""
        self._layout = layout
        self._rank = rank
        self._trainer = trainer
        self._max_epochs = -1 if trainer is None else trainer.max_epochs or -1
        # under another limit Lightning's epochs are no passes; each takes the steps that come next
        limit = 1.0 if trainer is None else trainer.limit_train_batches
        self._in_passes = isinstance(limit, float) and limit == 1.0

    def num_batches(self) -> int:
        """Return more than the batches of an epoch, those before a resume among them.

        Lightning asks ahead where a stream has no length, and what it was given counts as used;
        at the length it would end the epoch itself, and a resumed run would not see that end.
        """
        before = 0 if self._trainer is None else self._trainer.fit_loop.batch_idx + 1
        left = self._layout.num_steps(self.position.num_seen)
        return max(before + left, self._layout.num_steps()) + 1

    def rest(self) -> list[Share]:
        """Return what this rank has of the steps that are left of the epoch."""
        if not self._in_passes and self.position.num_seen >= self._layout.num_questions:
            self.close()
        if self._counts_epochs():
            assert self._trainer is not None
            loop = self._trainer.fit_loop
            # what Lightning compares with its limit, a resumed epoch among them
            passes: Any = loop.epoch_progress.current
            ahead = passes.processed - self.position.epoch
            loop.max_epochs = self._max_epochs + ahead
        if 0 <= self._max_epochs <= self.position.epoch:
            return []
        return self._layout.shares(self.position, self._rank)

    def close(self) -> None:
        """Begin the next epoch: all steps of this one were given."""
        self.position = Position(self.position.epoch + 1, 0)

    def end(self) -> None:
        """Leave the Trainer's limit as it was."""
        if self._counts_epochs():
            assert self._trainer is not None
            self._trainer.fit_loop.max_epochs = self._max_epochs

    def state_dict(self) -> dict[str, int]:
        """Return where training is in its questions, and what their order depends on."""
        return self.position._asdict() | asdict(self._layout)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made, and tell what has changed since.

        Raises:
            InputError: the checkpoint is of a version that counted otherwise.
        """
        now = asdict(self._layout)
        if state.keys() != now.keys() | set(Position._fields):
            raise InputError(
                "--ckpt_path: the checkpoint was made before a batch was an optimizer step, and "
                "its place in the data means something else; export its model with the version of "
                "vrts that made it, and train on from that"
            )
        self.position = Position(state["epoch"], state["num_seen"])
        if self._counts_epochs():
            # until the first batch is due: Lightning's count of epochs may be ahead
            assert self._trainer is not None
            self._trainer.fit_loop.max_epochs = -1
            self._trainer.should_stop = self.position.epoch >= self._max_epochs
        changed = [key for key in now if state[key] != now[key]]
        changes = ", ".join(f"{key} {state[key]} -> {now[key]}" for key in changed)
        if {"num_questions", "seed", "shuffle"}.intersection(changed):
            rank_zero_warn(
                f"the training data changed since the checkpoint ({changes}): the rest of this "
                "epoch may repeat or miss questions"
            )
        elif changed:
            rank_zero_info(
                f"Resuming with {changes}: {self.position.num_seen} of {now['num_questions']} "
                f"questions of epoch {self.position.epoch} are done"
            )

    def _counts_epochs(self) -> bool:
        return self._trainer is not None and self._in_passes and self._max_epochs >= 0
