"""Accuracy with its standard error, over all questions and by category. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vrts.types import Prediction


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return fmean(values) if values else None


def clustered_stderr(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Standard error of a mean whose values come in clusters, as questions about one video do.

    Questions about one video are right or wrong together more often than others. With C clusters
    and n values it is ``sqrt(C / (C - 1) * sum over clusters of (sum of residuals)^2) / n``, the
    cluster-robust (CR1) estimate of a regression on a constant (Liang and Zeger, 1986; Miller,
    2024, arXiv 2411.00640, without the small-sample factor ``C / (C - 1)``). With one value a
    cluster it is the usual ``s / sqrt(n)``.

    Args:
        values: n of them.
        clusters: of each value.

    Returns:
        The standard error, or None with fewer than two clusters.
    """
    C = len(set(clusters))
    if C < 2:
        return None
    average = fmean(values)
    residuals: defaultdict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] += value - average
    squares = math.fsum(residual**2 for residual in residuals.values())
    return math.sqrt(C / (C - 1) * squares) / len(values)


def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy of the predictions whose right answer is known; a failure is wrong.

    Returns:
        ``num_scored`` and ``num_videos`` of these, ``accuracy`` and, clustered by video,
        ``accuracy_stderr``; both are None if no answer is known.
    """
    scored = [p for p in predictions if p.correct is not None]
    values, videos = [float(p.correct is True) for p in scored], [p.question.video for p in scored]
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
        By name (in the order of first appearance) and category (sorted): ``num_questions``,
        ``num_failed`` and the results of `accuracy`.
    """
    groups: defaultdict[str, defaultdict[str, list[Prediction]]]
    groups = defaultdict(lambda: defaultdict(list))
    for prediction in predictions:
        for name, category in prediction.question.breakdown.items():
            groups[name][category].append(prediction)
    return {
        name: {
            category: {
                "num_questions": len(found),
                "num_failed": sum(p.error is not None for p in found),
                **accuracy(found),
            }
            for category, found in sorted(categories.items())
        }
        for name, categories in groups.items()
    }


def gain(predictions: Sequence[Prediction], baseline: Mapping[str, bool]) -> dict[str, Any]:
    """Share of what was wrong in a baseline and is right now: VideoMMMU's knowledge gain.

    ``(accuracy - accuracy before) / (1 - accuracy before)`` over the questions that both runs have
    (arXiv 2501.13826, section 4.3; 0.1 is what it calls 10%).

    Args:
        predictions: such as of VideoMMMU's adaptation track with its videos.
        baseline: whether each question was right, by id; such as without the lecture videos.

    Returns:
        ``num_scored``, ``accuracy_before``, ``accuracy_after`` and ``gain``, which is None if the
        runs share no question or the baseline was all right.
    """
    both = [p for p in predictions if p.correct is not None and p.question.id in baseline]
    before = mean([float(baseline[p.question.id]) for p in both])
    after = mean([float(p.correct is True) for p in both])
    return {
        "num_scored": len(both),
        "accuracy_before": before,
        "accuracy_after": after,
        "gain": None
        if before is None or after is None or before == 1
        else (after - before) / (1 - before),
    }
