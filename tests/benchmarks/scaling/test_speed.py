"""Seconds computed by hand, with rates of round numbers."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks.scaling.plan import TRAINING, Plan, Work
from benchmarks.scaling.rates import Rates, read_rates, ring_s
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.speed import (
    decode_step_s,
    expected_longest,
    gather_s,
    gradient_s,
    optimizer_s,
    training_step,
)
from tests.benchmarks.scaling.test_memory import LANGUAGE, LAYER, MODEL

RATES = Rates(
    flops=1e3, memory=1e3, nvlink=100.0, network=10.0, hop_s=0.5, pcie=50.0, host=200
)  # fmt: skip
FULL = Plan(MODEL, is_lora=False, is_sharded=True)


def test_a_ring():
    assert ring_s(RATES, 800, 2, 8) == pytest.approx(800 * 7 / 8 / 100 + 2 * 7 * 0.5)
    # eight links of a machine together are slower than what is within it
    assert ring_s(RATES, 1600, 1, 16) == pytest.approx(1600 * 15 / 16 / 80 + 15 * 0.5)
    assert ring_s(RATES, 800, 2, 1) == 0


def test_expected_length_of_the_longest():
    # of one completion cut at 2: 1 + exp(-1/m)
    assert expected_longest(1, 4, 2) == pytest.approx(1 + math.exp(-1 / 4))
    assert expected_longest(10**6, 300, 768) == pytest.approx(768)
    assert expected_longest(8, 300, 10**4) == pytest.approx(
        300 * sum(1 / k for k in range(1, 9)), rel=1e-2
    )


def test_a_token():
    kv, matrices = 2 * 2 * 2 * 4 * 6, 2 * LAYER + 800
    assert decode_step_s(RATES, MODEL, 0, 6, 1) == pytest.approx((2 * matrices + kv) / 1e3)
    # many rows, and an adapter of 50 parameters: arithmetic
    assert decode_step_s(RATES, MODEL, 50, 6, 40) == pytest.approx(2 * (matrices + 50) * 40 / 1e3)


def test_gathers_and_gradients():
    assert gather_s(FULL, RATES, 8) == pytest.approx(4 * LAYER * 7 / 800 + 2 * 3.5)
    assert gather_s(Plan(MODEL, is_lora=False), RATES, 8) == 0
    offloaded = Plan(MODEL, False, is_sharded=True, offload=True)
    copied_s = 4 * 2 * LAYER / 8 / 50
    assert gather_s(offloaded, RATES, 8) - gather_s(FULL, RATES, 8) == pytest.approx(copied_s)
    assert gradient_s(FULL, RATES, 8) == pytest.approx(4 * LANGUAGE * 7 / 800 + 2 * 3.5)
    assert gradient_s(Plan(MODEL, False), RATES, 8) == pytest.approx(2 * gradient_s(FULL, RATES, 8))
    often = replace(FULL, batch_size=3, sync_every_micro_batch=True)
    assert gradient_s(often, RATES, 8) == pytest.approx(3 * gradient_s(FULL, RATES, 8))


def test_adam():
    assert optimizer_s(FULL, RATES, 8) == pytest.approx(28 * LANGUAGE / 8 / 1e3)
    assert optimizer_s(Plan(MODEL, False), RATES, 8) == pytest.approx(28 * LANGUAGE / 1e3)
    offloaded = Plan(MODEL, False, is_sharded=True, offload=True)
    assert optimizer_s(offloaded, RATES, 16) == pytest.approx(28 * LANGUAGE / 2 / 200)


@pytest.mark.parametrize(
    ("is_lora", "keep_gathered", "gathers"),
    [(True, True, 1), (False, True, 3), (True, False, 9), (False, False, 10)],
)
def test_gathers_of_a_step(is_lora, keep_gathered, gathers):
    """Engine (of all weights in full tuning), reference, and updates of three micro-batches."""
    work = Work((2, 4, 4), 2, G=3, L=50)
    plan = Plan(MODEL, is_lora, True, batch_size=3, keep_gathered=keep_gathered)
    step = training_step(plan, 64, work, RATES)
    assert step.num_gathers == gathers
    assert step.gather_s == pytest.approx(gathers * gather_s(plan, RATES, 64))
    whole = training_step(Plan(MODEL, is_lora), 64, work, RATES)
    assert whole.num_gathers == whole.gather_s == 0


def test_questions_sampled_together_share_the_reading_of_weights():
    plans = (Plan(MODELS[0], True, batch_size=B) for B in (1, 8))
    one, eight = (training_step(plan, 1, TRAINING, Rates()) for plan in plans)
    assert one.decode_s < eight.decode_s < 1.5 * one.decode_s
    assert eight.update_s == pytest.approx(8 * one.update_s)


def test_more_gpus_wait_for_longer_completions():
    work = Work((2, 4, 4), 2, G=2, L=768)
    two, many = (training_step(Plan(MODEL, True), n, work, RATES) for n in (2, 64))
    want = 1 - expected_longest(2, 300, 768) / expected_longest(4, 300, 768)
    assert two.idle == pytest.approx(want)
    assert many.idle > two.idle
    assert many.decode_s > two.decode_s


def test_measured_rates_replace_those_assumed(tmp_path):
    path = tmp_path / "gpu.json"
    update = {"pass": "shared", "checkpointing": True, "TFLOP": 30.0, "s": 0.1}
    rows = {
        "update": [
            update,
            {**update, "checkpointing": False, "s": 9.0},
            {**update, "pass": "naive", "s": 9.0},
            {"case": "too large", "out of memory": "CUDA out of memory"},
        ],
        "decode": [{"GB a step": 15.0, "ms a step": 7.5, "without graphs": 28.0}],
    }
    path.write_text(json.dumps({"rows": rows}))
    rates = read_rates(path)
    assert rates.flops == pytest.approx(400e12)
    assert rates.memory == pytest.approx(2e12)
    assert rates.nvlink == Rates().nvlink
    path.write_text(json.dumps({"rows": {"update": rows["update"]}}))
    with pytest.raises(SystemExit, match=r"no rows of decode.*benchmarks/gpu\.py"):
        read_rates(path)
