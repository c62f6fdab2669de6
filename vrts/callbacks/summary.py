"""What a prediction run comes to: ``metrics.json`` and the table on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from vrts.callbacks.records import Line

SHOWN_FAILURES = 5
"""Ids of failed questions in the table; ``metrics.json`` has all of them."""


def summarise(lines: Sequence[Line], levels: Sequence[int]) -> dict[str, Any]:
    """Compute the metrics of a run from its lines.

    Everything is over all questions: a failed one has no answer and is wrong. Accuracy is over
    those whose right answer is known.

    Args:
        lines: of ``predictions.jsonl``.
        levels: frames asked for in each round.

    Returns:
        ``num_questions``, ``num_failed`` and ``failed`` (ids), ``num_without_answer``;
        ``num_scored``, ``accuracy`` and ``accuracy_stderr`` (``sqrt(p (1 - p) / n)``), None
        without any known answer; ``unanimous_and_wrong``, the share of scored questions whose
        deciding round agreed on a wrong answer; ``mean_frames`` of the deciding rounds and
        ``mean_frames_total`` of all rounds together, over questions that did not fail, None
        without any; ``decided_at``, for each level the share of questions that it decided.
    """
    n = len(lines)
    failed = [line["id"] for line in lines if line["status"] == "failed"]
    done = [line for line in lines if line["status"] == "ok"]
    scored = [line for line in lines if line["correct"] is not None]
    accuracy = _mean([float(line["correct"]) for line in scored])
    return {
        "num_questions": n,
        "num_scored": len(scored),
        "accuracy": accuracy,
        "accuracy_stderr": None
        if accuracy is None
        else math.sqrt(accuracy * (1 - accuracy) / len(scored)),
        "unanimous_and_wrong": _mean([float(_is_unanimous_and_wrong(line)) for line in scored]),
        "mean_frames": _mean([line["num_frames"] for line in done]),
        "mean_frames_total": _mean([sum(r["num_frames"] for r in line["rounds"]) for line in done]),
        "decided_at": {
            str(level): sum(len(line["rounds"]) == i for line in done) / n if n else None
            for i, level in enumerate(levels, start=1)
        },
        "num_without_answer": sum(line["prediction"] is None for line in done),
        "num_failed": len(failed),
        "failed": failed,
    }


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Show metrics to people; shares in percent."""
    table = Table(title="vrts predict")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row("questions", str(metrics["num_questions"]))
    if metrics["accuracy"] is not None:
        share, error = 100 * metrics["accuracy"], 100 * metrics["accuracy_stderr"]
        table.add_row(f"accuracy of {metrics['num_scored']}", f"{share:.1f} ± {error:.1f} %")
        table.add_row("unanimous and wrong", f"{100 * metrics['unanimous_and_wrong']:.1f} %")
    if metrics["mean_frames"] is not None:
        table.add_row("frames, deciding round", f"{metrics['mean_frames']:.1f}")
        table.add_row("frames, all rounds", f"{metrics['mean_frames_total']:.1f}")
    for level, share in metrics["decided_at"].items():
        if share is not None:
            table.add_row(f"decided at {level} frames", f"{100 * share:.1f} %")
    table.add_row("without an answer", str(metrics["num_without_answer"]))
    table.add_row("failed", str(metrics["num_failed"]))
    for name in metrics["failed"][:SHOWN_FAILURES]:
        table.add_row("", name)
    if len(metrics["failed"]) > SHOWN_FAILURES:
        table.add_row("", "…")
    return table


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _is_unanimous_and_wrong(line: Line) -> bool:
    return not line["correct"] and bool(line["rounds"]) and line["rounds"][-1]["agreement"] == 1
