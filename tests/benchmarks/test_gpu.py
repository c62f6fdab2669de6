"""The GPU benchmark without a GPU: every case with a tiny model, and what it does with trouble."""

import json
from functools import partial
from importlib.util import find_spec

import pytest
import torch

from benchmarks.common import flops
from benchmarks.gpu import BUDGET_S, TARGETS, attempt, main, run, summary
from benchmarks.gpu_bench import FULL, TINY, Bench, Case
from benchmarks.gpu_cases import cases
from benchmarks.gpu_passes import shared_update
from benchmarks.gpu_rates import bandwidth, decode_bytes, update_flops
from vrts.models.families.flops import attention_flops, visible_pairs

CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_case_runs_with_a_tiny_model(tmp_path, capsys):
    path = tmp_path / "out" / "gpu.json"
    main(["--small", "--output", str(path)])
    found = json.loads(path.read_text())
    sections = {
        "rates", "exactness", "fit command", "predict command", "step rollout", "decode", "update",
        "profile", "generate", "update memory", "sharded command", "resumed command",
        "full command",
    }  # fmt: skip
    not_run = {}
    if find_spec("trl") is None:
        not_run = {"step: against TRL, lora": "trl is not installed"}
    assert set(found["rows"]) - {"step"} == sections
    assert found["not run"] == not_run
    for section in ("exactness", "predict command", "sharded command", "resumed command"):
        assert all(row["ok"] for row in found["rows"][section]), found["rows"][section]
    for row in [*found["rows"]["fit command"], *found["rows"]["full command"]]:
        assert row["mfu_update"] > 0
        assert row["MFU is of TFLOP/s"] > 0
        assert row["B"] == TINY.B
    (predicted,) = found["rows"]["predict command"]
    assert predicted["rounds"] == len(predicted["levels"]) * predicted["questions"]
    assert len({row["P"] for row in found["rows"]["decode"]}) == 2
    assert {row["adapter"] for row in found["rows"]["decode"]} == {False, True}
    assert {row["adapter"] for row in found["rows"]["update"]} == {False, True}
    assert {row["what"] for row in found["summary"]} == set(TARGETS)
    assert "wrote" in capsys.readouterr().out


def test_without_a_device_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small"):
        main([])


def found_nothing():
    return {"rows": {}, "not run": {}, "summary": []}


def test_what_does_not_fit_is_a_result(tmp_path):
    def too_large():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    found, path = found_nothing(), tmp_path / "gpu.json"
    bench = Bench(CPU, TINY)
    todo = [Case("other", "a", 1, too_large), Case("other", "b", 1, lambda: {"x": 1.0})]
    bench.prompt(TINY.sides[0])
    run(found, todo[:1], bench, path)
    assert bench._policy is None
    run(found, todo[1:], bench, path)
    rows = json.loads(path.read_text())["rows"]["other"]
    assert rows == [{"case": "a", "out of memory": "CUDA out of memory"}, {"x": 1.0}]
    assert summary(found["rows"] | {"update": rows[:1]}) == []


def test_other_errors_are_not_hidden():
    def broken():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        attempt(Case("update", "a", 1, broken), Bench(CPU, TINY))


def test_no_case_begins_that_would_end_too_late(tmp_path):
    found = found_nothing()
    todo = [
        Case("a", "long", 1e6, lambda: {"x": 1}),
        Case("b", "short", 1, lambda: {"x": 2}),
        Case("c", "absent", 0, dict, missing="a package"),
    ]
    run(found, todo, Bench(CPU, FULL), tmp_path / "gpu.json")
    assert found["rows"] == {"b": [{"x": 2}]}
    assert "were left" in found["not run"]["a: long"]
    assert found["not run"]["c: absent"] == "a package"


def test_all_cases_fit_into_the_budget():
    everything = list(cases(Bench(CPU, FULL)))
    expected_s = [case.expected_s for case in everything if not case.on_request]
    assert len(expected_s) > 20
    assert sum(expected_s) <= 540
    assert sum(case.expected_s for case in everything if case.on_request) <= BUDGET_S


def test_operations_are_those_that_torch_counts():
    bench = Bench(CPU, TINY)
    policy, prompt = bench.policy, bench.prompt(TINY.sides[0])
    P, G, L = prompt.num_tokens, 3, 7
    counted = flops(partial(shared_update, policy, prompt, G, L))
    # torch counts no attention on a CPU; backward computes the head's logits again
    text = policy.base.config.text_config
    pairs = visible_pairs(P, [L - 1] * G)
    attention = attention_flops(text.hidden_size * text.num_hidden_layers, pairs)
    head = 2 * policy.base.lm_head.weight.numel() * G * L
    assert counted == update_flops(policy, prompt, G, L) - 3 * attention + head


def test_bytes_of_a_step():
    policy = Bench(CPU, TINY).policy
    text = policy.base.config.text_config
    a_token = decode_bytes(policy, 11, 2, 5.0) - decode_bytes(policy, 10, 2, 5.0)
    head_dim = text.hidden_size // text.num_attention_heads
    assert a_token == 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim
    weights = decode_bytes(policy, 0, 0, 0.0)
    layers = sum(p.numel() for p in policy.base.model.language_model.layers.parameters())
    assert weights == 2 * (layers + text.vocab_size * text.hidden_size)


def test_bandwidth_is_that_of_the_better_call():
    assert bandwidth(1 << 16, CPU) > 0
