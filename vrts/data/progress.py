"""How far training is in its questions: a position that only optimizer steps move."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from vrts.types import InputError


def epoch_order(num_questions: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """Return the order of the questions in an epoch, the same on every rank and machine."""
    order = list(range(num_questions))
    if shuffle:
        # a text seed is hashed with SHA-512: close seeds and epochs give unrelated orders
        random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


class Position(NamedTuple):
    """What all ranks together were trained on; the same on each."""

    epoch: int  # counted from 0
    num_seen: int  # questions of the epoch's order


class RankShare(NamedTuple):
    """One rank's part of an optimizer step."""

    indices: list[int]
    """Of questions; fewer than on other ranks, or none, in the last step of an epoch."""
    end: Position | None  # after the step; None outside of training


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Divides the epochs of a run into optimizer steps."""

    num_questions: int
    seed: int
    shuffle: bool
    batch_size: int
    world_size: int

    def num_steps(self, num_seen: int = 0) -> int:
        """Return the steps in the rest of an epoch; the last one may be smaller."""
        left = max(self.num_questions - num_seen, 0)
        return -(-left // (self.batch_size * self.world_size))

    def shares(self, position: Position, rank: int) -> list[RankShare]:
        """Return a rank's part of each step from a position to the end of its epoch."""
        order = epoch_order(self.num_questions, self.seed, position.epoch, self.shuffle)
        size = self.batch_size * self.world_size
        starts = range(position.num_seen, self.num_questions, size)
        ends = [min(start + size, self.num_questions) for start in starts]
        # ranks take turns within a step: all have as many steps, and the last one is divided evenly
        return [
            RankShare(order[start + rank : end : self.world_size], Position(position.epoch, end))
            for start, end in zip(starts, ends, strict=True)
        ]


class TrainingProgress:
    """Returns the remaining steps, epoch by epoch, and keeps the position in checkpoints.

    ``trainer.max_epochs`` means passes through the questions. Lightning also counts an epoch that
    ``max_steps`` or a stop has cut short, so its limit is raised by those.

    Args:
        plan: Of the run.
        rank: Of this process.
        trainer: Of the run; None outside of one.
    """

    def __init__(self, plan: StepPlan, rank: int = 0, trainer: Trainer | None = None) -> None:
        self.position = Position(0, 0)  # after the last optimizer step
        self._plan = plan
        self._rank = rank
        self._trainer = trainer
        self._max_epochs = -1 if trainer is None else trainer.max_epochs or -1
        # with another limit Lightning's epochs are not passes; each takes the next steps
        limit = 1.0 if trainer is None else trainer.limit_train_batches
        self._in_passes = isinstance(limit, float) and limit == 1.0
        has_limit = trainer is not None and self._in_passes and self._max_epochs >= 0
        # whose limit of epochs counts passes, if there is one
        self._fit_loop: Any = trainer.fit_loop if trainer is not None and has_limit else None

    def num_batches(self) -> int:
        """Return more than the batches of an epoch, those before a resume included.

        Lightning prefetches from a stream without a length, and what it prefetched counts as used.
        At the length it would end the epoch itself, and a resumed run would not see that end.
        """
        before = 0 if self._trainer is None else self._trainer.fit_loop.batch_idx + 1
        left = self._plan.num_steps(self.position.num_seen)
        return max(before + left, self._plan.num_steps()) + 1

    def remaining(self) -> list[RankShare]:
        """Return this rank's part of the remaining steps of the epoch."""
        if not self._in_passes and self.position.num_seen >= self._plan.num_questions:
            self.end_epoch()
        if self._fit_loop is not None:
            # what Lightning compares with its limit, a resumed epoch included
            ahead = self._fit_loop.epoch_progress.current.processed - self.position.epoch
            self._fit_loop.max_epochs = self._max_epochs + ahead
        if 0 <= self._max_epochs <= self.position.epoch:
            return []
        return self._plan.shares(self.position, self._rank)

    def end_epoch(self) -> None:
        """Move to the next epoch, once all steps of this one were returned."""
        self.position = Position(self.position.epoch + 1, 0)

    def end(self) -> None:
        """Restore the Trainer's limit."""
        if self._fit_loop is not None:
            self._fit_loop.max_epochs = self._max_epochs

    def state_dict(self) -> dict[str, int]:
        """Return the position and the plan that it is for."""
        return self.position._asdict() | asdict(self._plan)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, and report what has changed since.

        Raises:
            InputError: the checkpoint is of a version that counted differently.
        """
        now = asdict(self._plan)
        if state.keys() != now.keys() | set(Position._fields):
            raise InputError(
                "--ckpt_path: the checkpoint was made before a batch was an optimizer step, and "
                "counts its position in the data differently; export its model with the version "
                "of vrts that wrote it, and start from that model"
            )
        self.position = Position(state["epoch"], state["num_seen"])
        if self._fit_loop is not None:
            # until the first batch is due: Lightning's count of epochs may be ahead
            self._fit_loop.max_epochs = -1
            self._fit_loop.trainer.should_stop = self.position.epoch >= self._max_epochs
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
