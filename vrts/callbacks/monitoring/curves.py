"""Curves of a training run: ``curves.png``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from lightning import LightningModule, Trainer
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vrts.callbacks.results import RunFile
from vrts.callbacks.trainer import logged_metrics
from vrts.files.writing import replacing
from vrts.types import InputError

_log = logging.getLogger(__name__)

POINTS = "curves"
"""Key in checkpoints."""

Point = dict[str, Any]
"""``step`` and values by name."""

PANELS = (
    ("rewards", "train/reward/"),
    ("validation: accuracy", "val/accuracy"),
    ("loss", "train/loss"),
    ("distance from the reference (KL)", "train/kl"),
    ("entropy of tokens", "train/entropy"),
    ("tokens of a completion", "train/completion_length"),
    ("spread of rewards within a question", "train/reward_std"),
    ("share of questions whose rewards are all equal", "train/frac_reward_zero_std"),
    ("share of completions cut off", "train/truncated"),
    ("share of tokens clipped", "train/clip_ratio"),
    ("learning rate", "lr"),
    ("seconds: rollout, update", "train/rollout_s train/update_s"),
    ("tokens sampled a second", "train/tokens_per_s"),
    ("log-probs of rollout and update: gap", "train/sampling/logprob_diff"),
    ("questions sampled until enough differed", "train/sampled_groups"),
    ("questions without a usable video", "train/skipped"),
    ("steps skipped as not finite", "train/nonfinite_steps"),
    ("validation: agreement", "val/agreement"),
    ("validation: frames", "val/mean_frames"),
    ("validation: failed questions", "val/num_failed"),
)
"""Title of each panel and the metrics in it; a name that ends with ``/`` is a prefix. Each other
metric gets its own panel."""

COLUMNS = 3
SMOOTH_FROM = 50
"""Number of points from which on a running mean is drawn over the values."""


class CurveWriter(RunFile):
    """Draws a run's training metrics into ``curves.png``, also if the run is interrupted.

    The curves have all metrics of each optimizer step, as loggers get them. Checkpoints contain
    them, so that a resumed run draws the steps before it too.
    """

    file_name = "curves.png"

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__(output_dir)
        self.points: list[Point] = []
        """Metrics by name, with ``step``: steps made, from 1 on."""
        self._training = False
        self._learning_rate: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See `RunFile`."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.points = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the points."""
        checkpoint[POINTS] = list(self.points)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the points of the steps before."""
        self.points = list(checkpoint.get(POINTS, []))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to draw."""
        self._training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note the step's learning rate, before the schedule moves on."""
        optimizers = trainer.optimizers
        self._learning_rate = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Add the step."""
        values = logged_metrics(trainer, "train/")
        self.points.append({"step": trainer.global_step, "lr": self._learning_rate, **values})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the results of a validation."""
        if self._training and not trainer.sanity_checking:
            self.points.append({"step": trainer.global_step, **logged_metrics(trainer, "val/")})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draw what there is; a failure here must not hide why the run ends."""
        try:
            self._draw(trainer)
        except OSError as error:
            _log.warning("cannot draw the curves: %s", error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the curves, after other callbacks have saved the model; raises `InputError`."""
        try:
            self._draw(trainer)
        except OSError as error:
            raise InputError(
                f"CurveWriter.output_dir: cannot write the curves ({error}); the model is saved"
            ) from error

    def _draw(self, trainer: Trainer) -> None:
        """Draw once for each training run."""
        was_training, self._training = self._training, False
        if was_training and trainer.is_global_zero and self.points:
            write_curves(self.path(trainer), self.points)


def series(points: Iterable[Point]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each metric, by step; of two values of a step the later one counts."""
    found: dict[str, dict[int, float]] = {}
    for point in points:
        for name, value in point.items():
            if name != "step" and value is not None:
                found.setdefault(name, {})[point["step"]] = value
    ordered = {name: sorted(values.items()) for name, values in found.items()}
    return {name: ([s for s, _ in v], [x for _, x in v]) for name, v in ordered.items()}


def panels(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Titles of the panels that are not empty, with the names of the metrics in each."""
    left, found = list(names), []
    for title, wanted in PANELS:
        keys = wanted.split()
        shown = [n for n in left if any(n == k or (k[-1] == "/" and n.startswith(k)) for k in keys)]
        left = [name for name in left if name not in shown]
        found.append((title, shown))
    found += [(name, [name]) for name in left]
    return [(title, shown) for title, shown in found if shown]


def is_constant(values: Sequence[float]) -> bool:
    """Whether a curve shows nothing that its first value does not."""
    return all(value == values[0] for value in values) or not any(map(math.isfinite, values))


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and its neighbours, an odd number of them; of the finite ones."""
    half = width // 2
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def write_curves(path: Path, points: Sequence[Point]) -> None:
    """Draw one panel for each kind of metric into a PNG, and name below what never changed."""
    curves = series(points)
    drawn = panels(curves)
    constant = [panel for panel in drawn if all(is_constant(curves[n][1]) for n in panel[1])]
    if len(constant) < len(drawn):
        drawn = [panel for panel in drawn if panel not in constant]
    else:
        constant = []  # all of a run of one step are
    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
    with rc_context(style):
        rows = math.ceil(len(drawn) / COLUMNS)
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(4.6 * COLUMNS, 2.7 * max(rows, 1)), layout=layout)
        grid = figure.subplots(max(rows, 1), COLUMNS, squeeze=False).flatten()
        for axes, (title, names) in zip(grid, drawn, strict=False):
            for name in names:
                _draw_curve(axes, name, *curves[name])
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("optimizer step", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            axes.margins(x=0.02)
            if len(names) > 1:  # below the axes, where it covers no curve
                axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        for axes in grid[len(drawn) :]:
            axes.remove()
        if constant:
            shown = [f"{title}: {curves[names[0]][1][0]:.6g}" for title, names in constant]
            figure.supxlabel(fill("all the time: " + "; ".join(shown), 190), fontsize=8)
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=110)


def _draw_curve(axes: Axes, name: str, steps: Sequence[int], values: Sequence[float]) -> None:
    """Draw one metric: its values, with their running mean if there are many."""
    label = name.removeprefix("train/").removeprefix("reward/").removesuffix("_s")
    finite = [value if math.isfinite(value) else math.nan for value in values]
    marker = "o" if len(values) < 15 else ""
    if len(values) < SMOOTH_FROM:
        axes.plot(steps, finite, label=label, marker=marker, markersize=3)
        return
    (line,) = axes.plot(steps, finite, alpha=0.3, linewidth=0.8)
    smooth = running_mean(values, len(values) // 20 | 1)
    axes.plot(steps, smooth, label=label, color=line.get_color())
