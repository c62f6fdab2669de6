"""Guards against runs that learn nothing, so that their end is not taken for a success."""

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
"""Steps without any usable video, or without any signal in the rewards, until a guard acts."""


class RewardWatch:
    """Notices that rewards never differed within a group, or that no completion had the format.

    Nothing can be learned then, and nothing else shows it: the loss is finite and small.
    """

    def __init__(self) -> None:
        self._num_steps = 0
        self._differed = False
        self._formatted: bool | None = None  # None where no reward is given for the format
        self._truncated = 0.0

    def update(self, metrics: Mapping[str, float]) -> None:
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


class UsableVideoGuard:
    """Ends a run whose first steps had no usable video on any rank."""

    def __init__(self) -> None:
        self.satisfied = False  # whether there has been one
        self._last_reason: str | None = None

    def usable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples that have a clip; the others are named in the log."""
        for sample in samples:
            if sample.clip is None:
                self._last_reason = sample.error
                _log.warning(printable(f"skipped question {sample.question.id}: {sample.error}"))
        return [sample for sample in samples if sample.clip is not None]

    def check(self, found: bool, num_steps: int, trainer: Trainer) -> None:
        """Stop the run where it has taken too long; every rank has to call it.

        Args:
            found: whether this rank had a usable sample in the newest step.
            num_steps: of the run so far.
            trainer: of the run.

        Raises:
            InputError: none of the first steps had a usable sample, on any rank.
        """
        if self.satisfied:
            return
        self.satisfied = trainer.strategy.reduce_boolean_decision(found, all=False)
        num_expected = int(trainer.num_training_batches)
        if trainer.max_steps > 0:
            num_expected = min(num_expected, trainer.max_steps)
        if num_steps >= min(PATIENCE, num_expected):
            self.check_end(num_steps)

    def check_end(self, num_steps: int) -> None:
        """Raise InputError where none of the run's steps had a usable sample."""
        if not self.satisfied:
            raise InputError(
                f"none of the first {num_steps} training batches had a usable video; the last "
                f"reason: {self._last_reason}"
            )


class DivergenceError(RuntimeError):
    """Training that does not return to finite numbers. The message names what to change."""


class NonFiniteGuard:
    """Counts optimizer steps whose gradient is not finite; `limit` in a row end the run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0  # such steps so far
        self._in_a_row = 0

    def must_skip(self, grad_norm: torch.Tensor) -> bool:
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
            raise _diverged(
                f"{self._in_a_row} optimizer steps in a row",
                "look for extreme rewards, or raise model.max_nonfinite_steps",
            )
        return bad

    def check_end(self, num_steps: int) -> None:
        """Raise DivergenceError where all `num_steps` steps of the run were skipped."""
        if 0 < num_steps <= self.total:
            raise _diverged(f"all {num_steps} optimizer steps", "or look for extreme rewards")

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` returned; nothing of older checkpoints, which lack it."""
        self.total = state.get("total", 0)
        self._in_a_row = state.get("in_a_row", 0)


def _diverged(which: str, further: str) -> DivergenceError:
    return DivergenceError(
        f"{which} had a loss or gradient that is not finite, and were skipped, so the "
        "weights are unchanged; lower model.optimizer's learning rate, set "
        f"model.max_grad_norm, {further}"
    )
