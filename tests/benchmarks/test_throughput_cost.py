import json

from benchmarks import common, throughput_cost
from tests.benchmarks.conftest import TINY


def test_the_command_compares_steps_with_and_without(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(throughput_cost, "SMALL", TINY)
    monkeypatch.setattr(throughput_cost, "PAIRS", 2)
    monkeypatch.setattr(throughput_cost, "L", 4)
    throughput_cost.main()
    (row,) = json.loads((tmp_path / "throughput_cost.json").read_text())["rows"]
    assert row["step s with"] > 0
    assert 0 < row["callback CPU ms"] < 1e3 * row["step s with"]
    assert row["ratio"] > 0
