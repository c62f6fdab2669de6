"""Results of the demo, as JSON values and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

MODELS = {"base": "base", "rl": "GRPO"}
MODES = {"sparse": "sparse: 4", "dense": "dense: 16", "s2d": "S2D: 4, 8, 16"}


def predict_report(metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what the demo shows of a ``metrics.json``, and the duration of the run."""
    names = ("accuracy", "mean_frames", "mean_frames_total", "unanimous_and_wrong")
    numbers = {name: metrics[name] for name in names}
    return numbers | {"stderr": metrics["accuracy_stderr"], "seconds": round(seconds, 1)}


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """Compare the base and the trained model in all modes, from the content of ``summary.json``."""
    fit = summary["fit"]
    table = Table(
        title=f"{summary['num_questions']} held-out questions; "
        f"{fit['steps']} GRPO steps in {fit['seconds']:.0f} s"
    )
    for name in ("model", "levels"):
        table.add_column(name, no_wrap=True)
    for name in ("accuracy, %", "frames", "in all", "agreed, wrong", "s"):
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
