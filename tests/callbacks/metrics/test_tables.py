"""The metrics as people see them on a terminal."""

from dataclasses import replace

from rich.console import Console
from rich.text import Text

from tests.callbacks.metrics.test_summary import PREDICTIONS, predicted
from vrts.callbacks.metrics.summary import summarise
from vrts.callbacks.metrics.tables import SHOWN_CATEGORIES, SHOWN_FAILURES, metrics_tables


def text(metrics) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(metrics_tables(metrics))
    return capture.get()


def rows(metrics) -> list[list[str]]:
    """Words of the tables' rows."""
    found = [line for line in text(metrics).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in found]


def test_the_tables_show_percent():
    first, *others = summarise(PREDICTIONS, [4])["failed"]
    assert len(others) == 2
    assert rows(summarise(PREDICTIONS, [4, 8, 16])) == [
        ["questions", "8"],
        ["accuracy of 6", "33.3 ± 12.8 %"],
        ["unanimous and wrong", "16.7 %"],
        ["agreement", "75.0 %"],
        ["frames, deciding round", "10.0"],
        ["frames, all rounds", "16.4"],
        ["decided at 4 frames", "12.5 %"],
        ["decided at 8 frames", "25.0 %"],
        ["decided at 16 frames", "25.0 %"],
        ["without an answer", "1"],
        ["with damaged frames", "1"],
        ["failed", "3"],
        ["failed questions", f"{first},"],
        ["", f"{others[0]},"],
        ["", others[1]],
        ["damaged", "3"],
        ["easy", "50.0", "2", ""],
        ["hard", "33.3 ± 22.2", "4", "1"],
        ["short", "100.0", "1", ""],
    ]


def test_failed_questions_are_one_row_and_not_too_many():
    found = [
        predicted(f"q{i}", False, error="damaged", answer=None) for i in range(SHOWN_FAILURES + 1)
    ]
    overall = metrics_tables(summarise(found, [4])).renderables[0]
    names, values = (list(column.cells) for column in overall.columns)
    assert names[-2:] == ["failed", "failed questions"]
    assert values[-2:] == ["6", "q0,\nq1,\nq2,\nq3,\nq4,\n…"]


def test_they_leave_out_what_is_not_known():
    assert rows(summarise([], [4])) == [
        ["questions", "0"],
        ["without an answer", "0"],
        ["failed", "0"],
    ]
    assert ["decided at 4 frames", "0.0 %"] in rows(summarise([PREDICTIONS[-1]], [4]))


def test_agreement_is_a_lower_bound_if_completions_were_cancelled():
    early = predicted("early", True, (4, 0.6))
    last = replace(early.rounds[0], cancelled=(False, False, False, False, True))
    early = replace(early, rounds=(last,))
    assert ["agreement, at least", "60.0 %"] in rows(summarise([early], [4]))


def test_the_gain_is_shown():
    found = rows(summarise(PREDICTIONS, [4], {"right": False, "majority": True}))
    assert ["knowledge gain", "100.0 %"] in found


def test_names_with_very_many_categories_are_left_to_the_file():
    found = [
        predicted(str(i), True, (4, 1.0), subject=f"s{i}", kind="x")
        for i in range(SHOWN_CATEGORIES + 1)
    ]
    shown = text(summarise(found, [4]))
    assert f"{SHOWN_CATEGORIES + 1} of them, see metrics.json" in shown
    assert "s17" not in shown
    assert "100.0 ± 0.0" in shown


def breakdown_table(*breakdowns):
    """The table of breakdowns, of questions in these categories; None where there is none."""
    found = [predicted(str(i), True, (4, 1.0), **b) for i, b in enumerate(breakdowns)]
    tables = metrics_tables(summarise(found, [4])).renderables[1:]
    return tables[0] if tables else None


def test_a_single_name_heads_its_column():
    table = breakdown_table({"category": "a"}, {"category": "b"})
    assert table.title == "accuracy by category, %"
    assert list(table.columns[0].cells) == ["a", "b"]
    table = breakdown_table({"task": "a", "kind": "x"}, {"task": "b", "kind": "x"})
    assert (table.title, table.columns[0].header) == ("accuracy by task, %", "task")
    assert list(table.columns[0].cells) == ["a", "b"]


def test_a_single_category_of_all_questions_breaks_nothing_down():
    assert breakdown_table({"category": "a"}, {"category": "a"}) is None
    assert list(breakdown_table({"category": "a"}, {}).columns[0].cells) == ["a"]


def test_reasons_of_failures_are_shown_the_most_frequent_first():
    found = [
        predicted(f"q{i}", False, error=f"{reason}\x1b", answer=None)
        for i, reason in enumerate("abcdefghb")
    ]
    table = metrics_tables(summarise(found, [4])).renderables[1]
    assert table.title == "why questions failed"
    assert list(table.columns[0].cells) == [*(f"{c}\\x1b" for c in "bacde"), "…"]
    assert list(table.columns[1].cells) == ["2", "1", "1", "1", "1", ""]


def test_an_example_of_a_reason_has_its_numbers():
    found = [
        predicted(f"q{i}", False, error=f"{i}00 tokens [x] exceed 50", answer=None) for i in (7, 8)
    ]
    (cell,) = metrics_tables(summarise(found, [4])).renderables[1].columns[0].cells
    assert Text.from_markup(cell).plain == (
        "# tokens [x] exceed #\nsuch as question q7: 700 tokens [x] exceed 50"
    )


def test_names_are_escaped_and_shortened():
    found = [predicted("\x1b[2J" + "x" * 100_000, False, error="damaged", answer=None)]
    shown = text(summarise(found, [4]))
    assert "\x1b" not in shown
    assert len(shown) < 5000


def test_names_of_questions_and_categories_are_no_markup():
    bad = "[red]x[/nonsense]"
    found = [predicted(bad, False, error=bad, answer=None, **{bad: bad})]
    found += [predicted("q", True, (4, 1.0))]
    assert text(summarise(found, [4])).count(bad) == 5
