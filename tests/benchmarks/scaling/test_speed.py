"""Seconds computed by hand, with rates of round numbers."""

import json
import math

import pytest

from benchmarks.scaling.plan import Plan, Work
from benchmarks.scaling.rates import Rates, read_rates, ring_s
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
    flops=1e3, memory=1e3, launch_s=1.0, nvlink=100.0, network=10.0, hop_s=0.5, pcie=50.0, host=200
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
    kv = 2 * 2 * 2 * 4 * 6
    reading_s = (2 * (2 * LAYER + 800) + kv) / 1e3
    assert decode_step_s(RATES, MODEL, 0, 6, is_sharded=False) == pytest.approx(reading_s)
    slow = Rates(memory=1e3, launch_s=10.0)
    assert decode_step_s(slow, MODEL, 0, 6, is_sharded=True) == 20.0


def test_gathers_and_gradients():
    assert gather_s(FULL, RATES, 8) == pytest.approx(4 * LAYER * 7 / 800 + 2 * 3.5)
    assert gather_s(Plan(MODEL, is_lora=False), RATES, 8) == 0
    offloaded = Plan(MODEL, False, is_sharded=True, offload=True)
    copied_s = 4 * 2 * LAYER / 8 / 50
    assert gather_s(offloaded, RATES, 8) - gather_s(FULL, RATES, 8) == pytest.approx(copied_s)
    assert gradient_s(FULL, RATES, 8) == pytest.approx(4 * LANGUAGE * 7 / 800 + 2 * 3.5)
    assert gradient_s(Plan(MODEL, False), RATES, 8) == pytest.approx(2 * gradient_s(FULL, RATES, 8))


def test_adam():
    assert optimizer_s(FULL, RATES, 8) == pytest.approx(28 * LANGUAGE / 8 / 1e3)
    assert optimizer_s(Plan(MODEL, False), RATES, 8) == pytest.approx(28 * LANGUAGE / 1e3)
    offloaded = Plan(MODEL, False, is_sharded=True, offload=True)
    assert optimizer_s(offloaded, RATES, 16) == pytest.approx(28 * LANGUAGE / 2 / 200)


@pytest.mark.parametrize(
    ("is_lora", "resident", "gathers"),
    [(True, True, 2), (False, True, 3), (True, False, 4), (False, False, 4)],
)
def test_gathers_of_a_step(is_lora, resident, gathers):
    """Rollout, reference, update forward and backward, where weights do not stay."""
    work = Work((2, 4, 4), 2, G=3, L=50)
    step = training_step(Plan(MODEL, is_lora, True, resident), 64, work, RATES)
    tokens = 0 if resident else expected_longest(3 * 64, 300, 50)
    assert step.num_gathers == pytest.approx(gathers + tokens)
    whole = training_step(Plan(MODEL, is_lora), 64, work, RATES)
    assert whole.num_gathers == whole.gather_s == 0


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
    assert rates.launch_s == pytest.approx(1e-3)
    assert rates.nvlink == Rates().nvlink
    path.write_text(json.dumps({"rows": {"update": rows["update"]}}))
    with pytest.raises(SystemExit, match=r"no rows of decode.*benchmarks/gpu\.py"):
        read_rates(path)
