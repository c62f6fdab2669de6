"""The metrics of a prediction run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from vrts.callbacks.terminal import printable

SHOWN_FAILURES = 5
"""Ids of failed questions in the table; ``metrics.json`` has all of them."""
SHOWN_CATEGORIES = 40
"""Names with more categories, such as a crossing of several, are in ``metrics.json`` alone."""


def metrics_tables(metrics: Mapping[str, Any]) -> Group:
    """Show metrics to people: the run's table, and below it the breakdowns if there are any.

    Args:
        metrics: what `vrts.callbacks.summary.summarise` gave.
    """
    tables = [_overall(metrics)]
    if metrics["breakdown"]:
        tables.append(_breakdown(metrics["breakdown"]))
    return Group(*tables)


def _overall(metrics: Mapping[str, Any]) -> Table:
    table = Table(title="vrts predict")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row("questions", str(metrics["num_questions"]))
    if metrics["accuracy"] is not None:
        table.add_row(f"accuracy of {metrics['num_scored']}", f"{_accuracy(metrics)} %")
        table.add_row("unanimous and wrong", f"{100 * metrics['unanimous_and_wrong']:.1f} %")
    if metrics["gain"] is not None and metrics["gain"]["gain"] is not None:
        table.add_row("knowledge gain", f"{100 * metrics['gain']['gain']:.1f} %")
    if metrics["mean_frames"] is not None:
        name = "agreement, at least" if metrics["num_abandoned"] else "agreement"
        table.add_row(name, f"{100 * metrics['agreement']:.1f} %")
        table.add_row("frames, deciding round", f"{metrics['mean_frames']:.1f}")
        table.add_row("frames, all rounds", f"{metrics['mean_frames_total']:.1f}")
    for level, share in metrics["decided_at"].items():
        if share is not None:
            table.add_row(f"decided at {level} frames", f"{100 * share:.1f} %")
    table.add_row("without an answer", str(metrics["num_without_answer"]))
    table.add_row("failed", str(metrics["num_failed"]))
    if metrics["failed"]:
        names = [escape(printable(name)) for name in metrics["failed"][:SHOWN_FAILURES]]
        more = ["…"] if len(metrics["failed"]) > SHOWN_FAILURES else []
        table.add_row("failed questions", ",\n".join(names + more))
    return table


def _breakdown(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    table = Table(title="accuracy by category, %")
    table.add_column("category", overflow="fold")
    for name in ("accuracy", "questions", "failed"):
        table.add_column(name, justify="right")
    for name, categories in found.items():
        for row in _rows(name, categories):
            table.add_row(*row)
        table.add_section()
    return table


def _rows(name: str, categories: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    if len(categories) > SHOWN_CATEGORIES:
        yield f"[bold]{escape(printable(name))}[/]: {len(categories)}, see metrics.json", "", "", ""
        return
    yield f"[bold]{escape(printable(name))}[/]", "", "", ""
    for category, numbers in categories.items():
        questions, failed = str(numbers["num_questions"]), str(numbers["num_failed"] or "")
        yield f"  {escape(printable(category))}", _accuracy(numbers), questions, failed


def _accuracy(numbers: Mapping[str, Any]) -> str:
    """Accuracy in percent with its standard error, where it has one."""
    if numbers["accuracy"] is None:
        return ""
    share = f"{100 * numbers['accuracy']:.1f}"
    error = numbers["accuracy_stderr"]
    return share if error is None else f"{share} ± {100 * error:.1f}"
