"""Charts: well-formed SVG with the right words, whatever the categories are called."""

import re
from xml.etree import ElementTree

import pytest

from tests.callbacks.report.predictions import decided as decided_line
from tests.callbacks.report.predictions import failed, question
from vrts.callbacks.report.charts import MOST_GROUPS, make_charts
from vrts.callbacks.report.items import report_item


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(node.itertext()).strip() for node in root.iterfind(".//{*}text")]


def category(num_scored, accuracy, stderr=0.1):
    return {"num_scored": num_scored, "accuracy": accuracy, "accuracy_stderr": stderr}


def charts_of(groups, decided=None):
    """Charts of two questions, with a breakdown of these categories."""
    items = []
    for votes in ("ABB", "AAA", "AAB"):
        asked = question("q")
        items.append(report_item(decided_line(asked, f4=votes), 10))
    return make_charts(items, {"decided_at": decided or {"4": 1.0}, "breakdown": {"place": groups}})


def test_each_chart_shows_its_numbers():
    charts = charts_of({"garden": category(1, 0.0, None), "kitchen": category(20, 0.25)})
    assert [chart.title for chart in charts] == [
        "Accuracy, had the run stopped at a level",
        "Share of questions decided at each level",
        "Accuracy by place",
    ]
    assert "66.7 %" in texts(charts[0].svg)
    assert "100.0 %" in texts(charts[1].svg)
    assert {"kitchen (20)", "garden (1)", "25.0", "0.0"} <= set(texts(charts[2].svg))
    assert charts[2].alt == "kitchen 25.0 % of 20; garden 0.0 % of 1"


@pytest.mark.parametrize(
    "name", ["$x_", "</text><script>alert(1)</script>", "\x00\x08\ud800", "廚房", ""]
)
def test_any_name_of_a_category_is_drawn_as_it_is(name):
    chart = charts_of({name: category(2, 0.5), "garden": category(1, 1.0)})[2]
    shown = texts(chart.svg)
    assert "garden (1)" in shown
    assert b"<script" not in chart.svg
    if name.isprintable() and 0 < len(name) < 20:
        assert f"{name} (2)" in shown


def test_too_many_categories_are_cut_and_that_is_said():
    groups = {f"g{i}": category(i, 0.5) for i in range(1, MOST_GROUPS + 6)}
    chart = charts_of(groups)[2]
    assert chart.title == f"Accuracy by place, the {MOST_GROUPS} largest of {MOST_GROUPS + 5}"
    shown = texts(chart.svg)
    assert f"g{MOST_GROUPS + 5} ({MOST_GROUPS + 5})" in shown
    assert "g5 (5)" not in shown


def test_categories_without_a_known_answer_have_no_bar():
    groups = {"a": category(2, 0.5), "b": category(3, 0.5), "c": category(0, None, None)}
    assert charts_of(groups)[2].alt == "b 50.0 % of 3; a 50.0 % of 2"
    del groups["a"]
    assert len(charts_of(groups)) == 2, "one category alone is no breakdown"


def test_the_same_run_gives_the_same_bytes():
    groups = {"a": category(2, 0.5), "b": category(3, 0.5)}
    first, second = charts_of(groups), charts_of(groups)
    assert [chart.svg for chart in first] == [chart.svg for chart in second]


def test_runs_without_anything_to_draw_have_no_charts():
    assert make_charts([], {"decided_at": {"4": None}}) == []
    asked = question("q")
    lost = [report_item(failed(asked), 10)]
    titles = [chart.title for chart in make_charts(lost, {"decided_at": {"4": 0.0}})]
    assert titles == ["Share of questions decided at each level"]


@pytest.mark.parametrize("votes", ["AAA", "BBB"])
def test_labels_are_clear_of_the_axis_and_the_ground_is_the_page_s(votes):
    """The highest and the lowest accuracy that there can be."""
    items = [report_item(decided_line(question(f"q{i}"), f4=votes), 10) for i in range(9)]
    chart = make_charts(items, {"decided_at": {"4": 1.0}})[0]
    svg = chart.svg.decode()
    height = float(ElementTree.fromstring(svg).get("viewBox").split()[3])
    (label,) = re.findall(r'translate\(\S+ ([\d.]+)\)">up to 4', svg)
    axis = max(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>[\d.]+</text>', svg))
    assert 8 < float(label) < axis - 16 < height
    assert "fill: #ffffff" not in svg.partition("axes_1")[0]
