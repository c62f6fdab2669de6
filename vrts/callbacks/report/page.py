"""The report as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vrts.callbacks.report.charts import make_charts
from vrts.callbacks.report.items import TAGS, Item
from vrts.callbacks.tables import metrics_tables

PACKAGE = "vrts.callbacks.report"


@dataclass(frozen=True, slots=True)
class Inline:
    """A style or a script of ours within the page."""

    text: Markup
    hash: str
    """By which the page's content security policy allows it, and nothing else."""


def render_report(
    outlines: Sequence[Item],
    items: Iterable[Item],
    metrics: Mapping[str, Any],
    strips: Mapping[str, bytes],
    settings: Mapping[str, Any] | None = None,
    title: str = "vrts predict",
    frames_note: str = "",
) -> Iterator[str]:
    """Render a run's page piece by piece, so that its questions are never in memory together.

    Text from outside stays text: it is escaped here, and becomes text nodes in the browser; the
    page's content security policy forbids all scripts but its own, and all that is fetched.

    Args:
        outlines: of the questions, as `outline` gives them.
        items: the questions themselves, as `report_item` gives them, in the same order; taken one
            at a time.
        metrics: content of ``metrics.json``.
        strips: JPEGs of frames by question id, of some questions.
        settings: of the run, by name.
        title: of the page.
        frames_note: which questions' frames are missing and why, where some are.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["base64"] = _base64
    return environment.get_template("page.html.j2").generate(
        title=title,
        style=_inline("page.css"),
        script=_inline("page.js"),
        tables=[_cells(table) for table in metrics_tables(metrics).renderables],
        charts=make_charts(outlines, metrics),
        settings=settings or {},
        tag_names=TAGS,
        tag_counts=Counter(tag for item in outlines for tag in item["tags"]),
        groups=_group_counts(outlines),
        num_items=len(outlines),
        items=items,
        frames_note=frames_note,
        strips={name: f"data:image/jpeg;base64,{_base64(data)}" for name, data in strips.items()},
    )


def _inline(name: str) -> Inline:
    """A file of this package, allowed by its hash."""
    text = files(PACKAGE).joinpath(name).read_text(encoding="utf-8")
    return Inline(Markup(text), f"sha256-{_base64(hashlib.sha256(text.encode()).digest())}")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _cells(table: RenderableType) -> dict[str, Any]:
    """Words of a table that the terminal shows too."""
    assert isinstance(table, Table)
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": _plain(str(table.title)),
        "columns": [_plain(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def _plain(cell: RenderableType) -> str:
    """Text of a cell without its markup."""
    return Text.from_markup(str(cell)).plain


def _group_counts(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    """Questions of each category, by breakdown, of breakdowns with more than one, by name."""
    pairs = Counter(pair for item in items for pair in item["groups"].items())
    counts: dict[str, dict[str, int]] = {}
    for (name, value), count in sorted(pairs.items()):
        counts.setdefault(name, {})[value] = count
    return {name: values for name, values in counts.items() if len(values) > 1}
