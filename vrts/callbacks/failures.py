"""Why questions of a prediction run failed. Pure functions of its lines."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vrts.callbacks.records import Line
from vrts.terminal import shorten
from vrts.types import InputError

MOST_REASONS = 10
"""That are told apart; `num_failed` has all failures."""
MOST_CHARACTERS = 300
"""Of a reason."""
NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?")


def failure_reasons(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Group failures by their reasons, so that one cause of many is seen as one.

    A reason is the error without the question's video and id. Reasons that differ in their numbers
    alone are one, shown with ``#`` in place of the numbers.

    Args:
        lines: of ``predictions.jsonl``.

    Returns:
        The most frequent ones, each with its ``reason`` and ``num_questions``.
    """
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if line["status"] == "failed":
            reason = _reason(line)
            found[NUMBER.sub("#", reason)][reason] += 1
    counts = Counter(
        {
            next(iter(reasons)) if len(reasons) == 1 else pattern: reasons.total()
            for pattern, reasons in found.items()
        }
    )
    most_frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_REASONS]
    return [
        {"reason": shorten(reason, MOST_CHARACTERS), "num_questions": count}
        for reason, count in most_frequent
    ]


def check_answered(metrics: Mapping[str, Any], predictions: str) -> None:
    """See that a run came to something.

    Args:
        metrics: what `vrts.callbacks.summary.summarise` gave.
        predictions: where the run's lines are, for the message.

    Raises:
        InputError: there were questions, and every one failed.
    """
    total = metrics["num_questions"]
    if not total or metrics["num_failed"] < total:
        return
    first = metrics["failures"][0]
    share = "" if first["num_questions"] == total else f" for {first['num_questions']} of them"
    raise InputError(
        f"no question was answered: all {total} failed,{share} because: {first['reason']}; put it "
        f"right and delete {predictions}, then give the same command again"
    )


def _reason(line: Line) -> str:
    """An error without what is the question's own."""
    reason, video = str(line.get("error") or ""), line["video"]
    if reason.startswith(video):
        # a picture of a folder of frames goes with its folder
        file, colon, rest = reason.removeprefix(video).partition(": ")
        reason = rest if colon and (not file or file.startswith("/")) else reason
    reason = reason.replace(f" {video}: ", " ").replace(repr(video), "its file")
    reason = reason.replace(f"question {line['id']}", "question")
    return " ".join(reason.split()) or "not recorded"
