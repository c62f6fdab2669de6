import json

import pytest
import torch

from benchmarks import common, update
from benchmarks.common import random_completions, random_sample
from benchmarks.naive import naive_backward, naive_rows, token_rows
from benchmarks.update import (
    formula,
    memory_growth,
    passes,
    shared_backward,
)
from tests.benchmarks.conftest import TINY


@pytest.mark.parametrize(("P", "L", "G", "ratio"), [(7, 3, 1, 1.0), (90, 10, 8, 800 / 170)])
def test_the_formula_counts_tokens(P, L, G, ratio):
    assert formula(P, L, G) == ratio


def test_the_formula_tends_to_the_group():
    assert formula(10**9, 10, 8) == pytest.approx(8.0, rel=1e-6)


def test_growth_names_constant_and_slope():
    found = memory_growth("x", [10, 20, 40], [1e6 + 10e3, 1e6 + 20e3, 1e6 + 40e3], "G·L")
    assert found["constant MB"] == pytest.approx(1.0)
    for key in ("kB a token", "least", "most"):
        assert found[key] == pytest.approx(1.0)
    assert found["off the line %"] == pytest.approx(0.0, abs=1e-6)


def gradients(policy):
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return found


def naive_pass(name):
    if name == "prefix_grouper":
        pytest.importorskip(name, reason="it is missing: pip install '.[bench]'")
        from benchmarks.grouper import grouper_backward

        return grouper_backward
    return {"rows": naive_rows, "batch": naive_backward}[name]


@pytest.mark.parametrize("name", ["rows", "batch", "prefix_grouper"])
def test_all_passes_give_the_same_gradient(tiny_policy, name):
    samples = [random_sample(6, 56, 56, seed=3)]
    completions = random_completions([7] * 3, 200)
    (prompt,) = tiny_policy.network().encode(samples)
    shared_backward(tiny_policy, samples, completions)
    expected = gradients(tiny_policy)
    naive_pass(name)(tiny_policy, prompt, token_rows(completions, tiny_policy.device))
    found = gradients(tiny_policy)
    assert found.keys() == expected.keys()
    assert expected
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=name)


def test_passes_leave_no_gradient(tiny_policy):
    P, runs = passes(tiny_policy, 4, G=2, L=5)
    assert P > 4
    for run in runs.values():
        run()
        assert all(p.grad is None for p in tiny_policy.parameters())


def test_without_prefix_grouper_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(update, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --editable '\.\[bench\]'"):
        update.main()


def test_the_command_writes_times_and_memory(tmp_path, monkeypatch):
    pytest.importorskip("prefix_grouper", reason="it is missing: pip install '.[bench]'")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(update, "SMALL", TINY)
    monkeypatch.setattr(update, "CASES", [(2, 2, 3)])
    monkeypatch.setattr(update, "MEMORY_LENGTHS", (8,))
    monkeypatch.setattr(update, "MEMORY_FRAMES", 2)
    monkeypatch.setattr(update, "REPEATS", 1)
    update.main()
    found = json.loads((tmp_path / "update.json").read_text())
    row = found["rows"][0]
    assert row["G(P+L)/(P+GL)"] == formula(row["P"], 3, 2)
    assert row["ratio"] == pytest.approx(row["naive s"] / row["shared s"])
    # the head and the vision tower run once as well
    assert row["FLOP ratio"] > 1
    for row, checkpointing in zip(found["prefix_grouper"], (False, True), strict=True):
        assert row["checkpointing"] is checkpointing
        assert row["time ratio"] == pytest.approx(row["prefix_grouper s"] / row["vrts s"])
        assert 0 < row["memory ratio"] == pytest.approx(row["vrts MB"] / row["prefix_grouper MB"])
    shared = [r["shared MB"] for r in found["memory"]]
    assert shared == sorted(shared)
    growth = {g["pass"]: g["off the line %"] for g in found["memory growth"]}
    assert growth.keys() == {"shared, L = 8", "naive batch"}
    assert all(off < 10 for off in growth.values()), growth
