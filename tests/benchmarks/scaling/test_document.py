"""``docs/scaling.md`` says what the script prints."""

from pathlib import Path

import pytest

from benchmarks.common import RESULTS
from benchmarks.scaling.__main__ import fill, main
from benchmarks.scaling.memory import read_measured
from benchmarks.scaling.rates import Rates
from benchmarks.scaling.tables import markdown, smallest_card, tables

DOCUMENT = Path(__file__).parents[3] / "docs" / "scaling.md"


def test_the_documents_tables_are_those_printed(capsys):
    main([])
    printed = capsys.readouterr().out
    made = tables(read_measured(RESULTS / "update.json"), Rates())
    document = DOCUMENT.read_text()
    for table in made.values():
        assert table in printed
        assert table in document
    assert fill(document, made) == document


def test_measured_rates_change_times_and_no_memory():
    measured = read_measured(RESULTS / "update.json")
    assumed, faster = (tables(measured, rates) for rates in (Rates(), Rates(memory=3e12)))
    assert assumed["steps"] != faster["steps"]
    assert assumed["terms"] == faster["terms"]
    assert assumed["peaks"] == faster["peaks"]


def test_tables_are_put_in_their_places():
    document = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    want = "a\n<!-- x -->\n\n1\n\n<!-- end -->\nb\n<!-- y -->\n\n2\n\n<!-- end -->\n"
    assert fill(document, {"x": "1", "y": "2"}) == want
    assert fill(want, {"x": "1", "y": "2"}) == want
    with pytest.raises(ValueError, match="0 places <!-- z -->"):
        fill(document, {"z": "3"})


def test_a_table():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_the_smallest_card_keeps_a_tenth_free():
    assert smallest_card(21.6e9) == "24 GB"
    assert smallest_card(72e9) == "H100"
    assert smallest_card(72.1e9) == "H200"
    assert smallest_card(127e9) is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"gpu\.json is no file"):
        main(["--gpu", str(tmp_path / "gpu.json")])
