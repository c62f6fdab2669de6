"""Where in the data a training run is: counted in questions, so that other ranks can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Position:
    """What a training run has been given of its questions."""

    epoch: int
    """Counted from 0."""
    num_seen: int
    """Questions of the epoch's order that were given out before, on all ranks together."""
    num_repeats: int = 0
    """Times that the next batch was given out already, for further updates from its rollout."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the questions of an epoch are divided into batches."""

    num_questions: int
    batch_size: int
    """On each rank."""
    world_size: int
    updates_per_rollout: int = 1
    """Times that each batch is given out."""

    @property
    def step_size(self) -> int:
        """Questions that all ranks together take at once."""
        return self.batch_size * self.world_size

    @property
    def num_batches(self) -> int:
        """Batches of a rank in a whole epoch, each as often as it is given out."""
        return self.num_left(0) * self.updates_per_rollout

    def num_left(self, num_seen: int) -> int:
        """Batches of a rank that the rest of an epoch fills; the tail that does not is left out.

        Args:
            num_seen: questions of the epoch that were given out before.
        """
        return max(self.num_questions - num_seen, 0) // self.step_size


@dataclass(frozen=True, slots=True)
class Course:
    """Positions of a run by the number of batches that it has been given.

    A run that begins anywhere in an epoch counts its first batch there as the one that leaves as
    many to the end of the epoch as there are, so that every epoch ends at the same count.

    Args:
        layout: of the run.
        start: where it begins; an epoch whose rest fills no batch is over.
    """

    layout: Layout
    start: Position = Position(epoch=0, num_seen=0)

    @property
    def num_batches_before(self) -> int:
        """Batches that count as given out before the run, over all epochs."""
        start, layout = self._start, self.layout
        steps = layout.num_left(0) * (start.epoch + 1) - layout.num_left(start.num_seen)
        return steps * layout.updates_per_rollout + start.num_repeats

    @property
    def end(self) -> int:
        """Questions of the first epoch's order that will have been given out at its end."""
        return self.start.num_seen + self.layout.num_left(self.start.num_seen) * (
            self.layout.step_size
        )

    def at(self, num_batches: int, epoch_batches: int) -> Position:
        """Return the position after so many batches.

        Args:
            num_batches: of a rank, over all epochs, those before the run as
                `num_batches_before` counts them.
            epoch_batches: of an epoch; fewer than `Layout.num_batches` where epochs are cut short.
        """
        epoch, batch = divmod(num_batches, epoch_batches)
        step, repeats = divmod(batch, self.layout.updates_per_rollout)
        seen = step * self.layout.step_size
        if epoch == self._start.epoch:
            skipped = self.layout.num_left(0) - self.layout.num_left(self._start.num_seen)
            seen += self._start.num_seen - skipped * self.layout.step_size
        return Position(epoch, seen, repeats)

    @property
    def _start(self) -> Position:
        if self.layout.num_left(self.start.num_seen) > 0:
            return self.start
        return Position(self.start.epoch + 1, 0)


def to_state(position: Position, layout: Layout) -> dict[str, int]:
    """Return plain values for a checkpoint."""
    return asdict(layout) | asdict(position)


def from_state(state: Mapping[str, Any], layout: Layout) -> Position:
    """Return where a run goes on.

    Args:
        state: of the run that is resumed, as `to_state` made it.
        layout: of the run that goes on. Where it is another, a batch whose rollout was to have
            further updates counts as given out.
    """
    position = Position(state["epoch"], state["num_seen"], state["num_repeats"])
    before = Layout(**{name: state[name] for name in asdict(layout)})
    same = (before.step_size, before.updates_per_rollout) == (
        layout.step_size,
        layout.updates_per_rollout,
    )
    if same or position.num_repeats == 0:
        return position
    return Position(position.epoch, position.num_seen + before.step_size)
