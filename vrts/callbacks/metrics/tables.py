"""The metrics of a prediction run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from vrts.terminal import printable

RESULT = "vrts predict"
"""Title of the first table."""
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
    tables = [_overall(metrics)]
    if metrics["failures"]:
        tables.append(_failures(metrics["failures"]))
    for name, categories in metrics["breakdown"].items():
        largest = max(numbers["num_questions"] for numbers in categories.values())
        if largest < metrics["num_questions"]:
            tables.append(_breakdown(name, categories))
    return Group(*tables)


def _overall(metrics: Mapping[str, Any]) -> Table:
    table = Table(title=RESULT)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row("questions", str(metrics["num_questions"]))
    if metrics.get("num_left_out"):
        table.add_row("left out", str(metrics["num_left_out"]))
    if metrics["accuracy"] is not None:
        table.add_row(f"accuracy of {metrics['num_scored']}", f"{_accuracy(metrics)} %")
        table.add_row("unanimous and wrong", f"{100 * metrics['unanimous_and_wrong']:.1f} %")
    if metrics["gain"] is not None and metrics["gain"]["gain"] is not None:
        table.add_row("knowledge gain", f"{100 * metrics['gain']['gain']:.1f} %")
    if metrics["mean_frames"] is not None:
        name = "agreement, at least" if metrics["num_cancelled"] else "agreement"
        table.add_row(name, f"{100 * metrics['agreement']:.1f} %")
        table.add_row("frames, deciding round", f"{metrics['mean_frames']:.1f}")
        table.add_row("frames, all rounds", f"{metrics['mean_frames_total']:.1f}")
    for level, share in metrics["decided_at"].items():
        if share is not None:
            table.add_row(f"decided at {level} frames", f"{100 * share:.1f} %")
    table.add_row("without an answer", str(metrics["num_without_answer"]))
    if metrics["num_damaged"]:
        table.add_row("with damaged frames", str(metrics["num_damaged"]))
    table.add_row("failed", str(metrics["num_failed"]))
    if metrics["failed"]:
        names = [_shown(name) for name in metrics["failed"][:SHOWN_FAILURES]]
        more = ["…"] if len(metrics["failed"]) > SHOWN_FAILURES else []
        table.add_row("failed questions", ",\n".join(names + more))
    return table


def _failures(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="why questions failed")
    table.add_column("reason", overflow="fold")
    table.add_column("questions", justify="right")
    for group in found[:SHOWN_FAILURES]:
        reason, example = (escape(printable(group[key])) for key in ("reason", "example"))
        shown = reason if reason == example else f"{reason}\n[dim]such as {example}[/]"
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
