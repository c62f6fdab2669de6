"""What happens to a step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class DivergenceError(RuntimeError):
    """Training that does not come back to finite numbers. The message says what to change."""


class NonFiniteGuard:
    """Counts optimizer steps with a loss or gradient that is not finite, and stops after too many.

    Args:
        limit: the run stops at that many in a row.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        """Such steps so far."""
        self._in_a_row = 0

    def is_bad(self, grad_norm: torch.Tensor) -> bool:
        """Whether an optimizer step must be skipped.

        Args:
            grad_norm: over all ranks, the same on each: not finite on all where it is on one.

        Raises:
            DivergenceError: it is the last of `limit` such steps in a row.
        """
        bad = not bool(grad_norm.isfinite())
        self.total += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= self.limit:
            raise DivergenceError(
                f"{self._in_a_row} optimizer steps in a row had a loss or gradient that is not "
                "finite, so none of them was made and the weights are those before; lower "
                "model.optimizer's learning rate, set model.max_grad_norm, look for extreme "
                "rewards, or raise model.max_nonfinite_steps"
            )
        return bad

    def check_end(self, num_steps: int) -> None:
        """Do not call a run a success none of whose steps was made.

        Args:
            num_steps: of the whole run.

        Raises:
            DivergenceError: all of them were skipped.
        """
        if 0 < num_steps <= self.total:
            raise DivergenceError(
                f"all {num_steps} optimizer steps had a loss or gradient that is not finite, so "
                "none of them was made and the weights are those before; lower model.optimizer's "
                "learning rate, set model.max_grad_norm, or look for extreme rewards"
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting.

        Args:
            state: as `state_dict` returned it; one of an older checkpoint is empty.
        """
        self.total = state.get("total", 0)
        self._in_a_row = state.get("in_a_row", 0)
