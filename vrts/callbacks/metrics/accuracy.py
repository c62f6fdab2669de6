"""Accuracy with its standard error, over all questions and by category. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics import MeanMetric

from vrts.types import Prediction


def mean(values: Sequence[float]) -> float | None:
    """Mean in float64, None of nothing."""
    if not values:
        return None
    # one process has the lines of all: the others are not asked
    metric = MeanMetric(sync_on_compute=False).set_dtype(torch.float64)
    metric.update(torch.tensor(values, dtype=torch.float64, device="cpu"))
    return float(metric.compute())


def clustered_stderr(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Standard error of a mean whose values come in clusters, as questions about one video do.

    Questions about one video are right or wrong together more often than others, so that they tell
    less than as many questions about as many videos. With C clusters and n values it is ``sqrt(C /
    (C - 1) * sum over clusters of (sum of residuals)^2) / n``, the cluster-robust (CR1) estimate of
    a regression on a constant (Liang and Zeger, 1986; Miller, 2024, arXiv 2411.00640, without the
    small-sample factor ``C / (C - 1)``). With one value a cluster it is the usual ``s / sqrt(n)``.

    Args:
        values: n of them.
        clusters: of each value.

    Returns:
        The standard error, or None where there are not two clusters, since one tells nothing about
        how clusters differ.
    """
    average = mean(values)
    residuals: defaultdict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        assert average is not None
        residuals[cluster] += value - average
    C = len(residuals)
    if C < 2:
        return None
    squares = math.fsum(residual**2 for residual in residuals.values())
    return math.sqrt(C / (C - 1) * squares) / len(values)


def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy of the predictions whose right answer is known; a failure is wrong.

    Returns:
        ``num_scored`` and the number of their videos ``num_videos``, ``accuracy`` and, clustered
        by video, ``accuracy_stderr``; these two are None where nothing is known.
    """
    scored = [(float(p.correct), p.question.video) for p in predictions if p.correct is not None]
    values, videos = [value for value, _ in scored], [video for _, video in scored]
    return {
        "num_scored": len(scored),
        "num_videos": len(set(videos)),
        "accuracy": mean(values),
        "accuracy_stderr": clustered_stderr(values, videos),
    }


def breakdown(predictions: Sequence[Prediction]) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy by category.

    Args:
        predictions: the ``breakdown`` of a question is a category by name, such as
            ``{"duration": "short"}``; it may lack any of the names.

    Returns:
        By name and category, names as they first come and categories sorted: ``num_questions``,
        ``num_failed`` and what `accuracy` gives.
    """
    groups: defaultdict[str, defaultdict[str, list[Prediction]]]
    groups = defaultdict(lambda: defaultdict(list))
    for prediction in predictions:
        for name, category in prediction.question.breakdown.items():
            groups[name][category].append(prediction)
    return {
        name: {category: _category(categories[category]) for category in sorted(categories)}
        for name, categories in groups.items()
    }


def _category(predictions: Sequence[Prediction]) -> dict[str, Any]:
    failed = sum(p.error is not None for p in predictions)
    return {"num_questions": len(predictions), "num_failed": failed, **accuracy(predictions)}


def gain(predictions: Sequence[Prediction], before: Mapping[str, bool]) -> dict[str, Any]:
    """How much of what was wrong before is right now: VideoMMMU's knowledge gain, as a share.

    ``(accuracy - accuracy before) / (1 - accuracy before)`` over the questions that both runs have
    (arXiv 2501.13826, section 4.3; 0.1 is what it calls 10%).

    Args:
        predictions: of the run after, such as VideoMMMU's adaptation track with its videos.
        before: whether each question was right in the run before, such as the same questions
            without what the videos teach, by id.

    Returns:
        ``num_scored``, ``accuracy_before``, ``accuracy_after`` and ``gain``, which is None where
        there is no question in common or where all were right before.
    """
    both = [
        (float(before[p.question.id]), float(p.correct))
        for p in predictions
        if p.correct is not None and p.question.id in before
    ]
    first, last = mean([value for value, _ in both]), mean([value for _, value in both])
    left = None if first is None else 1 - first
    return {
        "num_scored": len(both),
        "accuracy_before": first,
        "accuracy_after": last,
        "gain": (last - first) / left if first is not None and last is not None and left else None,
    }
