"""What happens to a step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vrts.models.grpo import Reduce


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
        self._bad: list[torch.Tensor] = []

    def watch(self, loss: torch.Tensor) -> None:
        """Note the loss of one of the batches of the coming optimizer step."""
        self._bad.append(~loss.detach().isfinite())

    def is_bad(self, parameters: Iterable[nn.Parameter], reduce: Reduce) -> bool:
        """Whether the optimizer step must be skipped; all processes find the same.

        Args:
            parameters: with the gradients of the step.
            reduce: averages over the processes that train together.

        Raises:
            DivergenceError: it is the last of `limit` such steps in a row.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        shards = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        flags = [*self._bad, *(~shard.isfinite().all() for shard in shards)]
        self._bad = []
        # shards may be in the host's memory and losses on the device
        flags = [flag.to(flags[0].device) for flag in flags]
        bad = bool(reduce(torch.stack(flags).any().float()) > 0) if flags else False
        self.total += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= self.limit:
            raise DivergenceError(
                f"{self._in_a_row} optimizer steps in a row had a loss or gradient that is not "
                "finite, so none of them was made and the weights are those before; lower "
                "model.optimizer's learning rate, set trainer.gradient_clip_val, look for extreme "
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
                "learning rate, set trainer.gradient_clip_val, or look for extreme rewards"
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
