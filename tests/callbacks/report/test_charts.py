"""Charts and the numbers behind them: well-formed SVG, and accuracy by level counted by hand."""

import random
import re
from dataclasses import replace
from statistics import mean
from xml.etree import ElementTree

import pytest

from tests.callbacks.report.predictions import decided as predicted
from tests.callbacks.report.predictions import failed, make_round, question
from vrts.callbacks.report.charts import MOST_GROUPS, level_accuracies, make_charts
from vrts.callbacks.report.entries import report_entry
from vrts.voting import VotingRule, agreement, decide


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(node.itertext()).strip() for node in root.iterfind(".//{*}text")]


def category(num_scored, accuracy, stderr=0.1):
    return {"num_scored": num_scored, "accuracy": accuracy, "accuracy_stderr": stderr}


def charts_of(groups, decided=None):
    """Charts of two questions, with a breakdown of these categories."""
    entries = []
    for votes in ("ABB", "AAA", "AAB"):
        asked = question("q")
        entries.append(report_entry(predicted(asked, f4=votes), 10))
    return make_charts(
        entries, {"decided_at": decided or {"4": 1.0}, "breakdown": {"place": groups}}
    )


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


def test_too_many_categories_are_cut_which_the_title_says():
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
    lost = [report_entry(failed(asked), 10)]
    titles = [chart.title for chart in make_charts(lost, {"decided_at": {"4": 0.0}})]
    assert titles == ["Share of questions decided at each level"]


@pytest.mark.parametrize("votes", ["AAA", "BBB"])
def test_labels_are_clear_of_the_axis_and_the_ground_is_the_page_s(votes):
    """The highest and the lowest accuracy that there can be."""
    entries = [report_entry(predicted(question(f"q{i}"), f4=votes), 10) for i in range(9)]
    chart = make_charts(entries, {"decided_at": {"4": 1.0}})[0]
    svg = chart.svg.decode()
    height = float(ElementTree.fromstring(svg).get("viewBox").split()[3])
    (label,) = re.findall(r'translate\(\S+ ([\d.]+)\)">up to 4', svg)
    axis = max(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>[\d.]+</text>', svg))
    assert 8 < float(label) < axis - 16 < height
    assert "fill: #ffffff" not in svg.partition("axes_1")[0]


def entries():
    q = [question(f"q{i}") for i in range(4)]
    unknown = question("unknown", answer=None)
    found = [
        predicted(q[0], f4="AAA"),  # right at once
        predicted(q[1], f4="ABB", f8="AAA"),  # wrong at 4, right at 8
        predicted(q[2], f4="AAB", f8="BBA"),  # right at 4, wrong at 8
        failed(q[3], f4="AAB"),  # right at 4, fails at 8
        predicted(unknown, f4="AAA"),
    ]
    return [report_entry(prediction, 100) for prediction in found]


def test_stopping_at_a_level_gives_that_level_s_majority():
    sparse, dense = level_accuracies(entries(), ["4", "8"])
    assert (sparse.lowest, sparse.highest, sparse.num_scored) == (3 / 4, 3 / 4, 4)
    assert sparse.mean_frames == 4
    assert (dense.lowest, dense.highest) == (2 / 4, 2 / 4)
    assert dense.mean_frames == mean([4, 12, 12, 4])
    assert sparse.stderr == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_the_last_level_has_the_accuracy_of_the_run():
    rng = random.Random(3)
    found, right = [], 0
    for i in range(200):
        asked = question(f"q{i}")
        fails = rng.random() < 0.1  # in place of a further round
        rounds = rng.randint(0, 2) if fails else rng.randint(1, 3)
        votes = {f"f{4 << k}": "".join(rng.choices("ABC-", k=3)) for k in range(rounds)}
        prediction = failed(asked, **votes) if fails else predicted(asked, **votes)
        right += prediction.correct
        found.append(report_entry(prediction, 10))
    levels = level_accuracies(found, ["4", "8", "16"])
    assert levels[-1].lowest == levels[-1].highest == right / 200
    assert [level.level for level in levels] == ["4", "8", "16"]


def test_nothing_to_score_has_no_accuracies():
    asked = question("q", answer=None)
    unscored = [report_entry(predicted(asked, f4="AAA"), 10)]
    assert level_accuracies(unscored, ["4"]) == []
    assert level_accuracies([], ["4"]) == []


LEVELS = (4, 8, 16)


def stopped_early(asked, votes, rule, order):
    """The same question with the completions cancelled that the rule cancels."""
    rounds = []
    for level, letters in zip(LEVELS, votes, strict=True):
        is_last = level == LEVELS[-1]
        full = make_round(asked, level, letters)
        done = [False] * len(letters)
        for place in order:
            done[place] = True
            known = [a if d else None for a, d in zip(full.answers, done, strict=True)]
            if rule.may_stop(known, [], done, is_last=is_last):
                break
        cancelled = tuple(not d for d in done)
        cut = replace(full, answers=tuple(known), agreement=agreement(known), cancelled=cancelled)
        rounds.append(cut if rule.early_stop else full)
        if rule.is_settled(rounds[-1]):
            break
    return report_entry(decide(asked, rounds, rule), 10)


@pytest.mark.parametrize("consensus", [None, 3])
def test_what_an_early_stop_cancels_is_between_the_bounds(consensus):
    """Run the same votes with and without one: levels that can be known are, and no other."""
    rng = random.Random(7)
    bounds, truth = [], []
    rules = [VotingRule(consensus=consensus, early_stop=stop) for stop in (True, False)]
    for i in range(300):
        asked = question(f"q{i}")
        votes = ["".join(rng.choices("AABC-", k=5)) for _ in LEVELS]
        order = rng.sample(range(5), 5)
        for rule, entries in zip(rules, (bounds, truth), strict=True):
            entries.append(stopped_early(asked, votes, rule, order))
    names = [str(level) for level in LEVELS]
    for got, want in zip(
        level_accuracies(bounds, names), level_accuracies(truth, names), strict=True
    ):
        assert want.lowest == want.highest
        assert got.lowest <= want.lowest <= got.highest
        assert got.mean_frames == want.mean_frames
        assert (got.lowest < got.highest) == (got.level != "16")


@pytest.mark.parametrize(
    ("letters", "num_cancelled", "right"),
    [
        ("AB___", 3, None),
        ("AAB_", 1, True),  # a second B would be a tie, which A leads since it came first
        ("_BA", 1, None),
        ("AAB__", 2, None),
        ("AABB_", 1, None),
        ("BCB__", 2, False),  # two A come to a tie, and behind
        ("__BCB", 2, None),
        ("BBC_", 1, False),  # no A can catch up, whichever of the others leads
        ("AAAB_", 1, True),
        ("_____", 5, None),
    ],
)
def test_whether_a_round_is_right_is_known_or_not(letters, num_cancelled, right):
    asked = question("q")
    full = make_round(asked, 4, letters.replace("_", "-"))
    gone = tuple(letter == "_" for letter in letters)
    assert sum(gone) == num_cancelled
    entry = report_entry(decide(asked, [replace(full, cancelled=gone), full]), 10)
    assert entry["rounds"][0]["right"] is right
