"""The metrics of a prediction run: ``metrics.json``. Pure functions of its predictions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vrts.callbacks.metrics.accuracy import accuracy, breakdown, gain, mean
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

    They are over all questions: a failed one has no answer and is wrong. Accuracy is over those
    whose right answer is known. The same predictions in the same order give the same numbers to the
    last digit, however many runs and processes they came from.

    Args:
        predictions: of the run.
        levels: numbers of frames of the rounds.
        baseline: whether each question was right in a run to compare with, by id.

    Returns:
        ``num_questions``; the results of `accuracy`; ``unanimous_and_wrong``, the share of scored
        questions whose deciding round agreed on a wrong answer; ``agreement``, the mean share of
        the deciding round's completions that gave its most frequent answer, and ``num_cancelled``,
        completions of deciding rounds that an early stop cancelled, any of which might have agreed;
        ``mean_frames`` of the deciding rounds and ``mean_frames_total`` of all rounds together,
        over questions that did not fail, None without any; ``decided_at``, the share of questions
        that each level decided; ``num_without_answer``; ``num_failed``, ``failed`` (ids) and
        ``failures`` (see `failure_reasons`); ``num_damaged`` and ``damaged`` (ids) of those
        answered in spite of damaged frames; ``breakdown`` by category; ``gain`` over the baseline.
    """
    n = len(predictions)
    failed = [p.question.id for p in predictions if p.error is not None]
    done = [p for p in predictions if p.error is None]
    damaged = [p.question.id for p in done if p.num_damaged]
    scored = [p for p in predictions if p.correct is not None]
    unanimous = [p for p in scored if p.rounds and p.rounds[-1].agreement == 1]
    last = [p.rounds[-1] for p in done]
    return {
        "num_questions": n,
        **accuracy(predictions),
        "unanimous_and_wrong": sum(not p.correct for p in unanimous) / len(scored)
        if scored
        else None,
        "agreement": mean([r.agreement for r in last]),
        "num_cancelled": sum(sum(r.cancelled) for r in last),
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
        "num_damaged": len(damaged),
        "damaged": damaged,
        "breakdown": breakdown(predictions),
        "gain": None if baseline is None else gain(predictions, baseline),
    }


def failure_reasons(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Group failures by their reasons, so that one cause of many is seen as one.

    A reason is the error without the question's video and id. Reasons that differ in their numbers
    alone are one, shown with ``#`` in place of the numbers.

    Args:
        predictions: of the run.

    Returns:
        The most frequent ones, each with its ``reason``, ``num_questions``, and the full error of
        the first of these questions as ``example``.
    """
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, str] = {}
    for prediction in predictions:
        if prediction.error is not None:
            reason = _reason(prediction, prediction.error)
            pattern = NUMBER.sub("#", reason)
            found[pattern][reason] += 1
            first.setdefault(pattern, prediction.error)
    names = {p: p if len(reasons) > 1 else next(iter(reasons)) for p, reasons in found.items()}
    ordered = sorted(found, key=lambda pattern: (-found[pattern].total(), names[pattern]))
    return [
        {
            "reason": shorten(names[pattern], MOST_CHARACTERS),
            "num_questions": found[pattern].total(),
            "example": shorten(first[pattern], MOST_CHARACTERS),
        }
        for pattern in ordered[:MOST_REASONS]
    ]


def check_answered(metrics: Mapping[str, Any], predictions: str) -> None:
    """Raise if every question failed.

    Args:
        metrics: of `summarise`.
        predictions: path of the run's lines, for the message.

    Raises:
        InputError: there were questions, and every one failed.
    """
    total = metrics["num_questions"]
    if not total or metrics["num_failed"] < total:
        return
    first = metrics["failures"][0]
    share = "" if first["num_questions"] == total else f" for {first['num_questions']} of them"
    raise InputError(
        f"no question was answered: all {total} failed,{share} because: {first['reason']} (such as "
        f"{first['example']}); fix this and delete {predictions}, then give the same command "
        "again"
    )


def _reason(prediction: Prediction, reason: str) -> str:
    """An error without the question's video and id."""
    video = prediction.question.video
    if reason.startswith(video):
        # "video: reason", or "video/frame.jpg: reason" for a folder of frames
        file, colon, rest = reason.removeprefix(video).partition(": ")
        reason = rest if colon and (not file or file.startswith("/")) else reason
    reason = reason.replace(f" {video}: ", " ").replace(repr(video), "its file")
    reason = reason.replace(f"question {prediction.question.id}", "question")
    return " ".join(reason.split())
