"""Charts of a prediction run, as SVG that shows in any browser, and the numbers behind them."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vrts.callbacks.report.entries import Entry
from vrts.terminal import one_line

MOST_GROUPS = 30
"""Categories in one chart, the largest ones."""
BLUE, GREY = "#1f6feb", "#57606a"
OPEN_NOTE = (
    "A grey bar spans what the accuracy can have been: an early stop cancelled completions whose "
    "votes would have counted there. A run with SparseToDense.early_stop: false knows it."
)


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, with its numbers as text for those who do not see it."""

    title: str
    alt: str
    svg: bytes
    note: str = ""
    """A caveat."""


@dataclass(frozen=True, slots=True)
class LevelAccuracy:
    """The accuracy of a run, had it stopped at one level."""

    level: str
    mean_frames: float
    """Of all rounds so far, over questions that had one."""
    lowest: float
    highest: float
    """Bounds of the accuracy, whatever the completions that an early stop cancelled would have
    answered; equal if none of those mattered."""
    num_scored: int

    @property
    def stderr(self) -> float:
        """Standard error of a known accuracy, questions taken as independent."""
        return math.sqrt(self.lowest * (1 - self.lowest) / self.num_scored)


def level_accuracies(entries: Sequence[Entry], levels: Sequence[str]) -> list[LevelAccuracy]:
    """Accuracy against frames: what stopping at each level would have given, by majority.

    A question that was decided before keeps its answer and its frames; one that failed after a
    level has that level's answer. Questions whose right answer is not known do not count.
    """
    scored = [entry for entry in entries if "unscored" not in entry["tags"]]
    n, found = len(scored), []
    for index, level in enumerate(levels):
        right, unknown, frames = 0, 0, []
        for entry in scored:
            rounds = entry["rounds"][: index + 1]
            if not rounds:
                continue
            frames.append(sum(r["frames"] for r in rounds))
            failed_here = "failed" in entry["tags"] and len(entry["rounds"]) <= index
            if not failed_here:
                right += rounds[-1]["right"] is True
                unknown += rounds[-1]["right"] is None
        if frames:
            mean_frames = sum(frames) / len(frames)
            found.append(LevelAccuracy(level, mean_frames, right / n, (right + unknown) / n, n))
    return found


def make_charts(entries: Sequence[Entry], metrics: Mapping[str, Any]) -> list[Chart]:
    """Draw the charts for which a run's entries (or their summaries) and metrics have data."""
    decided = {k: v for k, v in metrics.get("decided_at", {}).items() if v is not None}
    charts = []
    if accuracies := level_accuracies(entries, list(decided)):
        charts.append(_accuracy_chart(accuracies))
    if decided:
        charts.append(_share_chart(decided))
    for name, categories in metrics.get("breakdown", {}).items():
        scored = {k: v for k, v in categories.items() if v["accuracy"] is not None}
        if len(scored) > 1:
            charts.append(_group_chart(name, scored))
    return charts


def _accuracy_chart(found: Sequence[LevelAccuracy]) -> Chart:
    known = [f for f in found if f.lowest == f.highest]
    open_ = [f for f in found if f.lowest != f.highest]

    def draw(axes: Axes) -> None:
        frames, shares = [f.mean_frames for f in known], [100 * f.lowest for f in known]
        errors = [100 * f.stderr for f in known]
        axes.errorbar(frames, shares, yerr=errors, fmt="o-", color=BLUE, capsize=3)
        spans = [100 * f.lowest for f in open_], [100 * f.highest for f in open_]
        axes.vlines([f.mean_frames for f in open_], *spans, color=GREY, linewidth=6, alpha=0.5)
        axes.set_xlabel("mean frames of all rounds")
        axes.set_ylabel("accuracy, %")
        axes.margins(x=0.3, y=0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(max(min(low, high - 20), 0), min(max(high, low + 20), 105))
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        middle = sum(axes.get_ylim()) / 2
        for f in found:
            place = 50 * (f.lowest + f.highest)
            below = place > middle  # away from the nearer edge
            axes.annotate(
                f"{_share(f)}\nup to {f.level}",
                (f.mean_frames, place),
                xytext=(8, -4 if below else 4),
                textcoords="offset points",
                va="top" if below else "bottom",
                fontsize=8,
            )

    words = [f"{_share(f)} up to {f.level} frames" for f in found]
    chart = _chart("Accuracy, had the run stopped at a level", words, draw)
    return replace(chart, note=OPEN_NOTE) if open_ else chart


def _share(found: LevelAccuracy) -> str:
    low, high = f"{100 * found.lowest:.1f}", f"{100 * found.highest:.1f}"
    return f"{low} %" if found.lowest == found.highest else f"{low} to {high} %"


def _share_chart(decided: Mapping[str, float]) -> Chart:
    shares = [100 * share for share in decided.values()]

    def draw(axes: Axes) -> None:
        bars = axes.bar(list(decided), shares, color=BLUE, width=0.6)
        axes.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
        axes.set_xlabel("frames")
        axes.set_ylabel("questions, %")
        axes.set_ylim(0, 1.15 * max(*shares, 1))
        axes.margins(x=0.25 if len(shares) > 1 else 1)

    words = [f"{share:.1f} % at {level} frames" for level, share in decided.items()]
    return _chart("Share of questions decided at each level", words, draw)


def _group_chart(name: str, categories: Mapping[str, Mapping[str, Any]]) -> Chart:
    by_size = sorted(categories.items(), key=lambda group: -group[1]["num_scored"])
    shown = by_size[:MOST_GROUPS]
    shares = [100 * numbers["accuracy"] for _, numbers in shown]
    # a single video has no standard error
    errors = [100 * (numbers["accuracy_stderr"] or 0.0) for _, numbers in shown]

    def draw(axes: Axes) -> None:
        labels = [f"{_cut(group)} ({numbers['num_scored']:,})" for group, numbers in shown]
        places = range(len(shown))
        bars = axes.barh(
            places, shares, xerr=errors, color=BLUE, ecolor=GREY, capsize=2, height=0.7
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axes.set_yticks(places, labels)
        axes.set_xlim(0, 120)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("accuracy, % (number of questions)")
        axes.invert_yaxis()

    left_out = f", the {len(shown)} largest of {len(by_size)}" if by_size[MOST_GROUPS:] else ""
    words = [f"{g} {100 * n['accuracy']:.1f} % of {n['num_scored']}" for g, n in shown]
    height = max(0.8 + 0.24 * len(shown), 1.8)
    return _chart(f"Accuracy by {_cut(name)}{left_out}", words, draw, height)


def _cut(text: str) -> str:
    """A short label on one line, of characters that XML allows."""
    text = one_line(text)
    return text if len(text) <= 32 else text[:31] + "…"


def _chart(
    title: str, words: Sequence[str], draw: Callable[[Axes], None], height: float = 2.8
) -> Chart:
    """Draw one chart, without its title; the height is in inches of 96 pixels."""
    style: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "svg.fonttype": "none",  # text stays text, in the browser's fonts
        "svg.hashsalt": "vrts",  # the same bytes for the same numbers
        "text.parse_math": False,  # names of categories are not formulas
    }
    buffer = io.BytesIO()
    with rc_context(style), warnings.catch_warnings():
        # the browser has fonts for what matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(4.2, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return Chart(title, "; ".join(words), buffer.getvalue())
