"""Training metrics: their names, and one all-gather for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning import LightningModule

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

CORRECTION_METRICS = ("sampling/importance_ratio_mean", "sampling/importance_ratio_capped")
"""Logged too where there is an `ImportanceCorrection`: mean weight (TRL's
``sampling/importance_sampling_ratio/mean``), and the share of tokens whose weight is capped."""

SHOWN = ("reward/total", "kl", "completion_length")
"""Metrics in the progress bar."""

TOKEN_MEANS = (
    "kl",
    "entropy",
    "clip_ratio",
    "clamp_ratio",
    "sampling/logprob_diff",
    *CORRECTION_METRICS,
)
"""Means over tokens: ranks are weighted by their number of tokens; in others they are equal."""


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
    names = [*TRAIN_METRICS, *CORRECTION_METRICS, *(f"reward/{name}" for name in rewards)]
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
