"""What a prediction run comes to: ``metrics.json``. Pure functions of its lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vrts.callbacks.accuracy import accuracy, breakdown, gain, mean
from vrts.callbacks.failures import failure_reasons
from vrts.callbacks.records import Line


def summarise(
    lines: Sequence[Line], levels: Sequence[int], before: Mapping[str, bool] | None = None
) -> dict[str, Any]:
    """Compute the metrics of a run from its lines.

    Everything is over all questions: a failed one has no answer and is wrong. Accuracy is over
    those whose right answer is known. The same lines in the same order give the same numbers to
    the last digit, whichever runs and processes they came from.

    Args:
        lines: of ``predictions.jsonl``.
        levels: frames asked for in each round.
        before: whether each question was right in a run to compare with, by id.

    Returns:
        ``num_questions``, ``num_failed``, ``failed`` (ids) and ``failures`` (what
        `vrts.callbacks.failures.failure_reasons` gives), ``num_damaged`` and ``damaged`` (ids) of
        those answered although frames are damaged, ``num_without_answer``; what
        `vrts.callbacks.accuracy.accuracy` gives; ``unanimous_and_wrong``, the share of scored
        questions whose deciding round agreed on a wrong answer; ``agreement``, the mean share of
        the deciding round's completions that gave its most frequent answer, and ``num_abandoned``,
        completions of deciding rounds that an early stop gave up, any of which might have agreed
        too; ``mean_frames`` of the deciding rounds and ``mean_frames_total`` of all rounds
        together, over questions that did not fail, None without any; ``decided_at``, for each
        level the share of questions that it decided; ``breakdown``, accuracy by category;
        ``gain`` over the run before, None where there is none.
    """
    n = len(lines)
    failed = [line["id"] for line in lines if line["status"] == "failed"]
    done = [line for line in lines if line["status"] == "ok"]
    damaged = [line["id"] for line in done if line.get("damaged")]
    scored = [line for line in lines if line["correct"] is not None]
    return {
        "num_questions": n,
        **accuracy(lines),
        "unanimous_and_wrong": mean([float(_is_unanimous_and_wrong(line)) for line in scored]),
        "agreement": mean([line["rounds"][-1]["agreement"] for line in done]),
        "num_abandoned": sum(sum(line["rounds"][-1].get("abandoned", ())) for line in done),
        "mean_frames": mean([line["num_frames"] for line in done]),
        "mean_frames_total": mean([sum(r["num_frames"] for r in line["rounds"]) for line in done]),
        "decided_at": {
            str(level): sum(len(line["rounds"]) == i for line in done) / n if n else None
            for i, level in enumerate(levels, start=1)
        },
        "num_without_answer": sum(line["prediction"] is None for line in done),
        "num_failed": len(failed),
        "failed": failed,
        "failures": failure_reasons(lines),
        "num_damaged": len(damaged),
        "damaged": damaged,
        "breakdown": breakdown(lines),
        "gain": None if before is None else gain(lines, before),
    }


def _is_unanimous_and_wrong(line: Line) -> bool:
    return not line["correct"] and bool(line["rounds"]) and line["rounds"][-1]["agreement"] == 1
