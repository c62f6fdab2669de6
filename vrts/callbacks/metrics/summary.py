"""The metrics of a prediction run: ``metrics.json``. Pure functions of its predictions."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vrts.terminal import shorten
from vrts.types import InputError, Prediction

MOST_REASONS = 10
"""Reasons of failures that are listed; ``num_failed`` has all failures."""
MOST_CHARACTERS = 300
"""Of a reason."""
NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?")


def summarise(
    predictions: Sequence[Prediction],
    levels: Sequence[int],
    baseline: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a run.

    They are over all questions: a failed one has no answer and is wrong. The same predictions in
    the same order give the same numbers to the last digit, however many processes made them.

    Args:
        predictions: of the run.
        levels: numbers of frames of the rounds.
        baseline: whether each question was right in a run to compare with, by id.
    """
    n = len(predictions)
    done = [p for p in predictions if p.error is None]
    scored = [p for p in predictions if p.correct is not None]
    damaged = [p.question.id for p in done if p.num_damaged]
    failed = [p.question.id for p in predictions if p.error is not None]
    last = [p.rounds[-1] for p in done]  # the deciding rounds
    return {
        "num_questions": n,
        **accuracy(predictions),
        # of the scored ones: the deciding round agreed on a wrong answer
        "unanimous_and_wrong": mean(
            [float(not p.correct and any(r.agreement == 1 for r in p.rounds[-1:])) for p in scored]
        ),
        "agreement": mean([r.agreement for r in last]),
        "num_cancelled": sum(sum(r.cancelled) for r in last),  # any of these might have agreed
        "mean_frames": mean([r.num_frames for r in last]),
        "mean_frames_total": mean([sum(r.num_frames for r in p.rounds) for p in done]),
        "decided_at": {
            str(level): sum(len(p.rounds) == i for p in done) / n if n else None
            for i, level in enumerate(levels, start=1)
        },
        "num_without_answer": sum(p.answer is None for p in done),
        "num_failed": len(failed),
        "failed": failed,
        "failures": failure_reasons(predictions),
        "num_damaged": len(damaged),  # answered in spite of damaged frames
        "damaged": damaged,
        "breakdown": breakdown(predictions),
        "gain": None if baseline is None else gain(predictions, baseline),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return fmean(values) if values else None


def clustered_stderr(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Standard error of the mean of n values in C clusters; None for fewer than two clusters.

    Questions about one video are right or wrong together more often than others. It is ``sqrt(C /
    (C - 1) * sum over clusters of (sum of residuals)^2) / n``, the cluster-robust (CR1) estimate of
    a regression on a constant (Liang and Zeger, 1986; Miller, 2024, arXiv 2411.00640, without the
    factor ``C / (C - 1)``). With one value a cluster it is the usual ``s / sqrt(n)``.
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

    Its standard error is clustered by video; both are None if no answer is known.
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
    """Accuracy by the names and (sorted) categories of the questions' `breakdown`."""
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
    (arXiv 2501.13826, section 4.3; 0.1 is what it calls 10%); None if there are none, or if the
    baseline was all right.
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


def failure_reasons(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Group failures by their reasons, so that one cause of many is seen as one.

    A reason is the error without the question's video and id. Reasons that differ in their numbers
    alone are one, shown with ``#`` in place of the numbers.

    Returns:
        The most frequent ones, with the full error of the first question as ``example``.
    """
    groups: defaultdict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction.error is not None:
            groups[NUMBER.sub("#", _reason(prediction))].append(prediction)
    listed = []
    for pattern, failed in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        reasons = set(map(_reason, failed))
        found = {
            "reason": shorten(pattern if len(reasons) > 1 else reasons.pop(), MOST_CHARACTERS),
            "num_questions": len(failed),
            "example": shorten(_example(failed[0]), MOST_CHARACTERS),
        }
        listed.append(found)
    return listed[:MOST_REASONS]


def check_answered(metrics: Mapping[str, Any], predictions: str) -> None:
    """Raise `InputError` if every question failed; it names the path of the predictions."""
    total = metrics["num_questions"]
    if not total or metrics["num_failed"] < total:
        return
    first = metrics["failures"][0]
    raise InputError(
        f"no question was answered: all {total} failed, {first['num_questions']} of them because: "
        f"{first['reason']} (such as {first['example']}); fix this and delete {predictions}, then "
        "give the same command again"
    )


def _example(prediction: Prediction) -> str:
    """A prediction's error, which names the video or else the question."""
    question, error = prediction.question, prediction.error or ""
    return error if error.startswith(question.video) else f"question {question.id}: {error}"


def _reason(prediction: Prediction) -> str:
    """A prediction's error without the question's video."""
    reason, video = prediction.error or "", prediction.question.video
    if reason.startswith(video):
        # "video: reason", or "video/frame.jpg: reason" for a folder of frames
        file, colon, rest = reason.removeprefix(video).partition(": ")
        reason = rest if colon and (not file or file.startswith("/")) else reason
    reason = reason.replace(f" {video}: ", " ").replace(repr(video), "its file")
    return " ".join(reason.split())
