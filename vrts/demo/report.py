"""The demo's numbers, as JSON values and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

MODELS = {"base": "base", "rl": "GRPO"}
MODES = {"sparse": "sparse: 4", "dense": "dense: 16", "s2d": "S2D: 4, 8, 16"}


def predict_report(metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Pick what the demo reports from a prediction run's ``metrics.json``.

    Args:
        metrics: its content.
        seconds: what the run took.
    """
    return {
        "accuracy": metrics["accuracy"],
        "stderr": metrics["accuracy_stderr"],
        "mean_frames": metrics["mean_frames"],
        "mean_frames_total": metrics["mean_frames_total"],
        "seconds": round(seconds, 1),
        "unanimous_and_wrong": metrics["unanimous_and_wrong"],
    }


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """Show the base and the trained model, each with its three ways to predict.

    Args:
        summary: content of ``summary.json``.
    """
    fit = summary["fit"]
    table = Table(
        title=f"{summary['num_questions']} held-out questions; "
        f"{fit['steps']} GRPO steps in {fit['seconds']:.0f} s"
    )
    table.add_column("model", no_wrap=True)
    table.add_column("levels", no_wrap=True)
    columns = ("accuracy, %", "frames", "in all", "agreed, wrong", "s")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for model, model_label in MODELS.items():
        for mode, mode_label in MODES.items():
            run = summary[model][mode]
            table.add_row(
                model_label,
                mode_label,
                f"{100 * run['accuracy']:.1f} ± {100 * run['stderr']:.1f}",
                f"{run['mean_frames']:.1f}",
                f"{run['mean_frames_total']:.1f}",
                f"{100 * run['unanimous_and_wrong']:.1f}",
                f"{run['seconds']:.0f}",
            )
        table.add_section()
    return table
