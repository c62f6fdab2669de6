"""Stopping a run that finds nothing to train on, instead of calling its end a success."""

from __future__ import annotations

from vrts.types import InputError

PATIENCE = 20
"""Batches without any usable video after which a run that has had none ends."""


class Patience:
    """Waits for the first usable sample of a run."""

    def __init__(self) -> None:
        self.satisfied = False
        """Whether there has been one."""
        self.last_reason: str | None = None
        """Why the newest sample was not usable."""

    def check(self, num_batches: int, num_expected: int) -> None:
        """Give up where it has taken too long.

        Args:
            num_batches: that the run has seen.
            num_expected: that it will see at most.

        Raises:
            InputError: none of the first batches had a usable sample.
        """
        if num_batches >= min(PATIENCE, num_expected):
            self.check_end(num_batches)

    def check_end(self, num_batches: int) -> None:
        """Give up at the end.

        Args:
            num_batches: that the run has seen.

        Raises:
            InputError: none of them had a usable sample.
        """
        if not self.satisfied:
            raise InputError(
                f"none of the first {num_batches} training batches had a usable video; the last "
                f"reason: {self.last_reason}"
            )
