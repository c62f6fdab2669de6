"""The metrics of a prediction run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from vrts.terminal import printable

SHOWN_FAILURES = 5
"""Ids of failed questions, and reasons of failures; ``metrics.json`` has more."""
MOST_CHARACTERS = 60
"""Of an id, a category or a reason in a table."""
SHOWN_CATEGORIES = 40
"""Larger breakdowns, such as a crossing of several, are in ``metrics.json`` alone."""


def metrics_tables(metrics: Mapping[str, Any]) -> Group:
    """Return tables of `summarise`'s results: the run, reasons of failures, and breakdowns.

    A breakdown of one category that has all questions is left out.
    """
    result = Table(title="vrts predict")
    result.add_column("metric")
    result.add_column("value", justify="right")
    for name, value, _ in result_rows(metrics):
        result.add_row(name, escape(value))
    tables = [result]
    if metrics["failures"]:
        tables.append(_failures(metrics["failures"]))
    for name, categories in metrics["breakdown"].items():
        largest = max(numbers["num_questions"] for numbers in categories.values())
        if largest < metrics["num_questions"]:
            tables.append(_breakdown(name, categories))
    return Group(*tables)


def result_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of a run's result: name, value, and what the name means, if it needs that."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    rows = [("questions", str(metrics["num_questions"]), "")]
    if metrics.get("num_left_out"):
        note = "by trainer.limit_predict_batches: all numbers here are of a part"
        rows.append(("left out", str(metrics["num_left_out"]), note))
    if metrics["accuracy"] is not None:
        note = (
            "share of right answers where the right one is known, with its standard error, "
            "clustered by video; a failed question is wrong"
        )
        rows.append((f"accuracy of {metrics['num_scored']}", f"{_accuracy(metrics)} %", note))
        note = "all completions of the deciding round gave one answer, a wrong one"
        rows.append(("unanimous and wrong", percent(metrics["unanimous_and_wrong"]), note))
    if metrics["gain"] is not None and metrics["gain"]["gain"] is not None:
        note = "of what was wrong in the baseline, the share that is right now"
        rows.append(("knowledge gain", percent(metrics["gain"]["gain"]), note))
    if metrics["mean_frames"] is not None:
        name = "agreement"
        note = "mean share of a deciding round's completions that gave its most frequent answer"
        if metrics["num_cancelled"]:
            name, note = f"{name}, at least", f"{note}; cancelled ones might have given it too"
        rows.append((name, percent(metrics["agreement"]), note))
        note = "mean over questions: what the answer was decided on"
        rows.append(("frames, deciding round", f"{metrics['mean_frames']:.1f}", note))
        note = "mean over questions: what the answer cost"
        rows.append(("frames, all rounds", f"{metrics['mean_frames_total']:.1f}", note))
    for level, share in metrics["decided_at"].items():
        if share is not None:
            note = "share of questions whose answer this level decided"
            rows.append((f"decided at {level} frames", percent(share), note))
    note = "none of the deciding round's completions gave one; counted as wrong"
    rows.append(("without an answer", str(metrics["num_without_answer"]), note))
    if metrics["num_damaged"]:
        rows.append(("with damaged frames", str(metrics["num_damaged"]), ""))
    note = "has no answer, for a damaged video or a prompt that is too long"
    rows.append(("failed", str(metrics["num_failed"]), note))
    if metrics["failed"]:
        names = [printable(name, MOST_CHARACTERS) for name in metrics["failed"][:SHOWN_FAILURES]]
        more = ["…"] if len(metrics["failed"]) > SHOWN_FAILURES else []
        rows.append(("failed questions", ",\n".join(names + more), ""))
    return rows


def _failures(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="why questions failed")
    table.add_column("reason", overflow="fold")
    table.add_column("questions", justify="right")
    for group in found[:SHOWN_FAILURES]:
        reason, example = (escape(printable(group[key])) for key in ("reason", "example"))
        # names of failed questions are in a list of their own
        error = example.partition(": ")[2] if example.startswith("question ") else example
        shown = reason if error == reason else f"{reason}\n[dim]such as {example}[/]"
        table.add_row(shown, str(group["num_questions"]))
    if len(found) > SHOWN_FAILURES:
        table.add_row("…", "")
    return table


def _breakdown(name: str, categories: Mapping[str, Mapping[str, Any]]) -> Table:
    by = _shown(name)
    table = Table(title=f"accuracy by {by}, %")
    table.add_column(by, overflow="fold")
    for column in ("accuracy", "questions", "failed"):
        table.add_column(column, justify="right")
    if len(categories) > SHOWN_CATEGORIES:
        table.add_row(f"{len(categories)} of them, see metrics.json", "", "", "")
        return table
    for category, numbers in categories.items():
        questions, failed = str(numbers["num_questions"]), str(numbers["num_failed"] or "")
        table.add_row(_shown(category), _accuracy(numbers), questions, failed)
    return table


def _accuracy(numbers: Mapping[str, Any]) -> str:
    """Accuracy in percent with its standard error, if it has one."""
    if numbers["accuracy"] is None:
        return ""
    share = f"{100 * numbers['accuracy']:.1f}"
    error = numbers["accuracy_stderr"]
    return share if error is None else f"{share} ± {100 * error:.1f}"


def _shown(text: str) -> str:
    """Text from outside without markup and control characters, shortened."""
    return escape(printable(text, MOST_CHARACTERS))
