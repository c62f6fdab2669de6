"""Telling of a run that learns nothing, instead of calling its end a success."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from lightning import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.terminal import printable
from vrts.types import InputError, Sample

_log = logging.getLogger(__name__)

PATIENCE = 20
"""Batches without any usable video after which a run that has had none ends."""


class RewardWatch:
    """Notices that rewards never differed within a group, or that none was given for the format.

    There is nothing to learn from then, and nothing else shows it: the loss is finite and small.
    """

    def __init__(self) -> None:
        self._num_steps = 0
        self._differed = False
        self._formatted: bool | None = None
        """None where the format has no reward."""
        self._truncated = 0.0

    def see(self, metrics: Mapping[str, float]) -> None:
        """Take a step's metrics, which are means over the ranks; warn once, after `PATIENCE`."""
        if math.isnan(metrics.get("reward_std", math.nan)):
            return  # no rank had a usable video
        self._num_steps += 1
        self._differed |= metrics["reward_std"] > 0
        if "reward/format" in metrics:
            self._formatted = bool(self._formatted) or metrics["reward/format"] > 0
        self._truncated += metrics["truncated"]
        if self._num_steps == PATIENCE and (found := self.warning()) is not None:
            rank_zero_warn(found)

    def warning(self) -> str | None:
        """What is wrong with the steps so far, and the likely causes; None where nothing is."""
        if not self._num_steps:
            return None
        cut_off = self._truncated / self._num_steps
        if self._formatted is False:
            what = "no completion had the format that model.rewards ask for"
            causes = (
                "the chat template opens <think> itself, <think> and <answer> are special tokens, "
                "which decoding drops, or the prompt does not ask for them"
            )
        elif not self._differed:
            what = "rewards never differed within a group, so nothing was learned"
            causes = "answers are not read, questions are too easy or too hard, or sampling is cold"
        else:
            return None
        return (
            f"in {self._num_steps} steps {what}; see the completions (CompletionLog). Likely: "
            f"completions are cut off ({cut_off:.0%} were; raise model.max_new_tokens), {causes}"
        )


class Patience:
    """Waits for the first usable sample of a run."""

    def __init__(self) -> None:
        self.satisfied = False
        """Whether there has been one."""
        self._last_reason: str | None = None

    def usable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples that have a clip; the others are named in the log."""
        for sample in samples:
            if sample.clip is None:
                self._last_reason = sample.error
                _log.warning(printable(f"skipped question {sample.question.id}: {sample.error}"))
        return [sample for sample in samples if sample.clip is not None]

    def check(self, found: bool, num_batches: int, trainer: Trainer) -> None:
        """Give up where it has taken too long; every process has to ask.

        Args:
            found: whether there was a usable sample on this process.
            num_batches: that the run has seen.
            trainer: of the run.

        Raises:
            InputError: none of the first batches had a usable sample, on any process.
        """
        if self.satisfied:
            return
        self.satisfied = trainer.strategy.reduce_boolean_decision(found, all=False)
        num_expected = int(trainer.num_training_batches)
        if trainer.max_steps > 0:
            num_expected = min(num_expected, trainer.max_steps)
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
                f"reason: {self._last_reason}"
            )


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
