"""Training metrics: their names, and one exchange between processes for all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from lightning import LightningModule
from torch import nn
from torchmetrics import Metric

from vrts.types import Prediction

TRAIN_METRICS = (
    "loss",
    "kl",
    "clip_ratio",
    "clamp_ratio",
    "entropy",
    "skipped",
    "reward/total",
    "reward_std",
    "frac_reward_zero_std",
    "sampled_groups",
    "completion_length",
    "truncated",
    "grad_norm",
    "rollout_s",
    "update_s",
    "tokens_per_s",
    "sampling/logprob_diff",
)
"""Logged under ``train/`` at each step, next to ``reward/<name>`` of each reward and
``nonfinite_steps`` (how many were skipped so far). ``skipped`` counts questions of a batch that had
no usable video; ``sampling/logprob_diff`` is the mean absolute difference between the log-probs of
engine and policy: about 1e-6 in float32; much more than bfloat16's rounding (some 0.01) means that
they do not compute the same model."""

SHOWN = ("reward/total", "kl", "completion_length")
"""Those in the progress bar."""

TOKEN_MEANS = ("kl", "entropy", "clip_ratio", "clamp_ratio", "sampling/logprob_diff")
"""Means over tokens, so a process counts by how many it has; elsewhere all count alike."""


def log_means(
    module: LightningModule,
    values: Mapping[str, float | torch.Tensor],
    rewards: Sequence[str],
    num_tokens: int,
    logged: set[str],
) -> dict[str, float]:
    """Log means over the ranks, under ``train/``.

    Every rank takes part with the same names in the same order. One that lacks a value (its videos
    all failed) does not count for it. What all of them lack and was logged before is logged as NaN:
    loggers would repeat its last value.

    Args:
        module: logs.
        values: by name.
        rewards: names of the rewards.
        num_tokens: completion tokens of this rank.
        logged: names that were logged before; grows.

    Returns:
        The means by name; NaN where all ranks lack a value.
    """
    names = [*TRAIN_METRICS, *(f"reward/{name}" for name in rewards)]
    assert values.keys() <= set(names), values.keys() - set(names)
    numbers = [float(values.get(name, math.nan)) for name in names]
    weights = [float(num_tokens) if name in TOKEN_MEANS else 1.0 for name in names]
    own = torch.tensor([numbers, weights], dtype=torch.float32, device=module.device)
    gathered = module.all_gather(own)
    assert isinstance(gathered, torch.Tensor)
    all_values, all_weights = gathered.view(-1, 2, len(names)).unbind(1)  # [ranks, names]
    known = ~all_values.isnan()
    sums = (all_values * all_weights).where(known, 0.0).sum(0)
    means = sums / all_weights.where(known, 0.0).sum(0)
    found = dict(zip(names, means.tolist(), strict=True))
    for name, value in found.items():
        if not math.isnan(value) or name in logged:
            logged.add(name)
            module.log(f"train/{name}", value, prog_bar=name in SHOWN, batch_size=1)
    return found


_log = logging.getLogger(__name__)


class Total(Metric):
    """A sum of whole numbers.

    They stay whole: Lightning's bf16-true converts the state of a metric that is not, and bfloat16
    stops counting at 256.
    """

    full_state_update = False
    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0, device="cpu"), dist_reduce_fx="sum")

    def update(self, number: int) -> None:
        """Add a number."""
        self.total += number

    def compute(self) -> torch.Tensor:
        """The sum over all processes."""
        return self.total.float()


class Ratio(Total):
    """A sum of whole numbers over another one; 0 where there is nothing to divide by."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0, device="cpu"), dist_reduce_fx="sum")

    def update(self, number: int, of: int = 0) -> None:
        """Add to both.

        Args:
            number: to the dividend.
            of: to the divisor.
        """
        super().update(number)
        self.count += of

    def compute(self) -> torch.Tensor:
        """The quotient over all processes."""
        return self.total / self.count.clamp(min=1)


class Evaluation(nn.Module):
    """Counts predictions, and logs what they come to.

    ``accuracy`` is over the questions whose right answer is known, a failed one is wrong;
    ``num_failed`` counts those. Over the others, ``mean_frames`` is of the deciding rounds, and
    ``agreement`` the mean share of a deciding round's completions that gave its most frequent
    answer. They are the numbers of the same names in ``metrics.json`` of a prediction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(
            {
                "accuracy": Ratio(),
                "mean_frames": Ratio(),
                "agreement": Ratio(),
                "num_failed": Total(),
            }
        )
        self._told: set[str] = set()

    def count(self, predictions: Sequence[Prediction]) -> None:
        """Count what was decided; questions that failed are named, each once."""
        scored = [p.correct for p in predictions if p.correct is not None]
        last = [p.rounds[-1] for p in predictions if p.error is None]
        votes = [round(r.agreement * len(r.answers)) for r in last]
        self._metric("accuracy").update(sum(scored), of=len(scored))
        self._metric("mean_frames").update(sum(r.num_frames for r in last), of=len(last))
        self._metric("agreement").update(sum(votes), of=sum(len(r.answers) for r in last))
        self._metric("num_failed").update(len(predictions) - len(last))
        for prediction in predictions:
            if prediction.error is not None and prediction.question.id not in self._told:
                self._told.add(prediction.question.id)
                _log.warning("question %s failed: %s", prediction.question.id, prediction.error)

    def log(self, module: LightningModule, prefix: str) -> None:
        """Have the metrics logged when the stage's epoch ends; all processes have to call it.

        Args:
            module: logs.
            prefix: of the names.
        """
        for name in self.metrics:
            module.log(
                f"{prefix}/{name}",
                self._metric(name),
                on_step=False,
                on_epoch=True,
                prog_bar=name == "accuracy",
                batch_size=1,
            )

    def _metric(self, name: str) -> Metric:
        return cast(Metric, self.metrics[name])
