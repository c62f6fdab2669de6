"""Charts: well-formed SVG with the right words, whatever the categories are called."""

from xml.etree import ElementTree

import pytest

from tests.callbacks.report.lines import decided, failed, question
from vrts.callbacks.report.charts import MOST_GROUPS, make_charts
from vrts.callbacks.report.items import report_item


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(node.itertext()).strip() for node in root.iterfind(".//{*}text")]


def items_of(groups):
    found = []
    for i, group in enumerate(groups):
        asked = question(f"q{i}", metadata={"breakdown": {"place": group}})
        found.append(report_item(decided(asked, f4="ABB" if i % 2 else "AAA"), asked, 10))
    return found


def test_each_chart_shows_its_numbers():
    charts = make_charts(items_of(["kitchen", "garden", "kitchen"]), {"decided_at": {"4": 1.0}})
    assert [chart.title for chart in charts] == [
        "Accuracy, had the run stopped at a level",
        "Share of questions decided at each level",
        "Accuracy by place",
    ]
    assert "66.7 %" in texts(charts[0].svg)
    assert "100.0 %" in texts(charts[1].svg)
    assert {"kitchen (2)", "garden (1)"} <= set(texts(charts[2].svg))
    assert charts[2].alt == "kitchen 100.0 % of 2; garden 0.0 % of 1"


@pytest.mark.parametrize(
    "name", ["$x_", "</text><script>alert(1)</script>", "\x00\x08\ud800", "廚房", ""]
)
def test_any_name_of_a_category_is_drawn_as_it_is(name):
    charts = make_charts(items_of([name, "garden"]), {"decided_at": {"4": 1.0}})
    shown = texts(charts[2].svg)
    assert "garden (1)" in shown
    assert b"<script" not in charts[2].svg
    if name.isprintable() and len(name) < 20 and name:
        assert f"{name} (1)" in shown


def test_too_many_categories_are_cut_and_that_is_said():
    groups = [f"g{i}" for i in range(MOST_GROUPS + 5)]
    chart = make_charts(items_of([*groups, "g3"]), {"decided_at": {}})[0]
    assert chart.title == f"Accuracy by place, the {MOST_GROUPS} largest of {MOST_GROUPS + 5}"
    assert "g3 (2)" in texts(chart.svg)


def test_the_same_run_gives_the_same_bytes():
    groups, metrics = ["a", "b"], {"decided_at": {"4": 1.0}}
    first, second = (make_charts(items_of(groups), metrics) for _ in range(2))
    assert [chart.svg for chart in first] == [chart.svg for chart in second]


def test_runs_without_anything_to_draw_have_no_charts():
    assert make_charts([], {"decided_at": {"4": None}}) == []
    asked = question("q")
    lost = [report_item(failed(asked), asked, 10)]
    titles = [chart.title for chart in make_charts(lost, {"decided_at": {"4": 0.0}})]
    assert titles == ["Share of questions decided at each level"]
