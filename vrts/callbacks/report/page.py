"""The report as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vrts.callbacks.metrics.tables import metrics_tables, result_rows
from vrts.callbacks.report.charts import make_charts
from vrts.callbacks.report.entries import TAGS, Entry
from vrts.files.fingerprints import yaml_line

PACKAGE = "vrts.callbacks.report"


def render_report(
    summaries: Sequence[Entry],
    entries: Iterable[Entry],
    metrics: Mapping[str, Any],
    thumbnails: Mapping[str, bytes],
    settings: Mapping[str, Any] | None = None,
    title: str = "vrts predict",
    folder: str = "",
    frames_note: str = "",
) -> Iterator[str]:
    """Render a run's page piece by piece, so that its questions are never in memory together.

    Text from outside is escaped here, and becomes text nodes in the browser; the page's content
    security policy forbids all other scripts, and everything that is fetched.

    Args:
        summaries: of the questions, see `entries.summary`.
        entries: of the questions, see `entries.report_entry`, in the same order; taken one by one.
        metrics: content of ``metrics.json``.
        thumbnails: JPEGs of frames by question id, of some questions.
        settings: of the run, by name.
        title: of the page.
        folder: of the run.
        frames_note: which questions' frames are not shown, and why.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"base64": _base64, "yaml": yaml_line}
    return environment.get_template("page.html.j2").generate(
        title=title,
        folder=folder,
        style=_inline("page.css"),
        script=_inline("page.js"),
        tables=[_cells(table) for table in metrics_tables(metrics).renderables],
        notes={name: note for name, _, note in result_rows(metrics) if note},
        charts=make_charts(summaries, metrics),
        settings=settings or {},
        tag_names=TAGS,
        tag_counts=Counter(tag for entry in summaries for tag in entry["tags"]),
        groups=_group_counts(summaries),
        num_entries=len(summaries),
        entries=entries,
        frames_note=frames_note,
        thumbnails={
            name: f"data:image/jpeg;base64,{_base64(data)}" for name, data in thumbnails.items()
        },
    )


def _inline(name: str) -> dict[str, str]:
    """The page's own style or script, with the hash by which its security policy allows it."""
    text = files(PACKAGE).joinpath(name).read_text(encoding="utf-8")
    digest = _base64(hashlib.sha256(text.encode()).digest())
    return {"text": Markup(text), "hash": f"sha256-{digest}"}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _cells(table: RenderableType) -> dict[str, Any]:
    """Texts of one of the terminal's tables."""
    assert isinstance(table, Table)
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": _plain(str(table.title)),
        "columns": [_plain(column.header) for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
    }


def report_title(settings: Mapping[str, Any], date: str) -> str:
    """Return the title of a run with these settings: its model, its data and its date."""
    path = settings.get("path")
    model = "/".join(Path(path).parts[-2:]) if isinstance(path, str) else settings.get("policy")
    found = settings.get("reader.path", settings.get("reader.paths", settings.get("reader.video")))
    names = found if isinstance(found, list) else [found or settings.get("reader")]
    data = ", ".join(Path(str(name).partition(" sha256:")[0]).name for name in names)
    return f"{model} on {data}, {date}"


def _plain(cell: RenderableType) -> str:
    """Text of a cell without its markup."""
    return Text.from_markup(str(cell)).plain


def _group_counts(summaries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Questions of each category, of breakdowns with more than one; both sorted by name."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in summaries:
        for name, category in entry["groups"].items():
            counts[name][category] += 1
    return {name: dict(sorted(c.items())) for name, c in sorted(counts.items()) if len(c) > 1}
