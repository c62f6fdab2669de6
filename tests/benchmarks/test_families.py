"""Families are measured one by one, and what was measured before is kept."""

import json

import pytest

from benchmarks import common, families
from benchmarks.common import RESULTS


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results are written; nothing is measured, but for numbers that count on."""
    numbers = iter(range(100))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(families, "RESULTS", tmp_path)
    monkeypatch.setattr(
        families, "measure", lambda name: ({"family": name, "n": next(numbers)}, lambda: None)
    )
    monkeypatch.setattr(
        families, "measure_rollout", lambda name: {"family": name, "n": next(numbers)}
    )
    monkeypatch.setattr(families, "operators", lambda run: [{"operator": "mm", "calls": 1}])

    def read():
        return json.loads((tmp_path / "families.json").read_text())

    return read


def numbers_of(rows):
    return [(row["family"], row["n"]) for row in rows]


def test_parts_are_put_together(results):
    families.main(["--family", "Qwen3.5"])
    found = results()
    assert numbers_of(found["rows"]) == [("Qwen3.5", 0)]
    assert numbers_of(found["rollout"]) == [("Qwen3.5", 1)]
    assert found[families.OPERATORS] == [{"operator": "mm", "calls": 1}]
    families.main(["--only", "update", "--family", "Qwen3-VL", "Qwen2.5-VL"])
    families.main(["--only", "rollout", "--family", "Qwen3.5"])
    found = results()
    assert numbers_of(found["rows"]) == [("Qwen2.5-VL", 3), ("Qwen3-VL", 2), ("Qwen3.5", 0)]
    assert numbers_of(found["rollout"]) == [("Qwen3.5", 4)]
    assert found[families.OPERATORS] == [{"operator": "mm", "calls": 1}]
    assert found["settings"]["frames"] == families.FRAMES


def test_what_was_measured():
    """The text model's update is near what the token count says, the hybrid's is reported."""
    found = json.loads((RESULTS / "families.json").read_text())
    for section in ("rows", "rollout"):
        assert [row["family"] for row in found[section]] == list(families.SHAPES)
    shares = {row["family"]: row["share of it"] for row in found["rows"]}
    assert min(shares["Qwen2.5-VL"], shares["Qwen3-VL"]) >= 0.9
    assert all(row["ratio"] > 1 for row in found["rollout"]), "transformers' generate is slower"
    assert sum(row["share"] for row in found[families.OPERATORS]) > 0.5
