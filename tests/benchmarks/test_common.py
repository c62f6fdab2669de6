import json

import pytest
import torch

from benchmarks import common
from benchmarks.common import (
    QWEN_7B,
    Shape,
    alternating_seconds,
    engine_of,
    flops,
    print_table,
    random_completions,
    random_policy,
    random_sample,
    report,
    roll_out,
    write_results,
)


def test_results_hold_machine_settings_rows_and_sections(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    rows = [{"P": 3, "ratio": 2.5}]
    path = write_results("x", rows, {"more": [1]}, shape=Shape(1, 2, 3, 4, 5, 6, 7), repeats=3)
    content = json.loads(path.read_text())
    assert path == tmp_path / "results" / "x.json"
    assert content["rows"] == rows
    assert content["more"] == [1]
    assert content["settings"]["repeats"] == 3
    assert content["settings"]["shape"]["num_layers"] == 2
    assert content["machine"]["torch"] == torch.__version__.split("+")[0]
    assert str(path) in capsys.readouterr().out


def test_a_report_prints_what_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    report("y", [{"P": 3, "ratio": 2.51234}], dtype="float32")
    assert json.loads((tmp_path / "y.json").read_text())["rows"][0]["ratio"] == 2.51234
    out = capsys.readouterr().out
    assert "ratio" in out
    assert "2.512" in out


def test_a_table_shows_every_row(capsys):
    print_table("title", [{"a": 1, "b": None}, {"a": 22, "b": 0.5}])
    out = capsys.readouterr().out
    assert all(text in out for text in ("title", "22", "None", "0.5"))


def test_timed_calls_take_turns():
    made = []
    times = alternating_seconds(
        {"a": lambda: made.append("a"), "b": lambda: made.append("b")}, 3, torch.device("cpu")
    )
    assert made == ["a", "b"] * 3
    assert set(times) == {"a", "b"}
    assert all(value >= 0 for value in times.values())


def test_flops_of_a_product():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_random_completions_have_the_lengths_asked_for():
    completions = random_completions([3, 1, 4], 20)
    assert [c.num_tokens for c in completions] == [3, 1, 4]
    assert [len(c.token_ids) for c in completions] == [3, 1, 4]
    assert max(int(c.token_ids.max()) for c in completions) < 20


def test_the_7b_has_the_parameters_of_the_real_one():
    """Those of Qwen2.5-VL-7B-Instruct, whose head has weights of its own."""
    policy = random_policy(QWEN_7B, torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in policy.parameters()) == 8_292_166_656
    vision = policy.base.config.vision_config
    assert vision.fullatt_block_indexes == [7, 15, 23, 31]
    assert vision.intermediate_size == 3420


@pytest.mark.parametrize("G", [1, 3])
def test_completions_of_a_random_policy_have_their_full_length(tiny_policy, G):
    engine = engine_of(tiny_policy, torch.device("cpu"))
    (group,) = roll_out(engine, engine.encode([random_sample(4, 56, 56, seed=0)]), G, 40)
    assert [c.num_tokens for c in group] == [40] * G
    assert not any(c.finished for c in group)
