"""Values computed by hand, for a model of two layers."""

import json
from dataclasses import replace

import pytest

from benchmarks.common import Shape
from benchmarks.scaling import memory
from benchmarks.scaling.memory import Measured
from benchmarks.scaling.plan import Plan, Work
from benchmarks.scaling.sizes import MODELS, Model

SHAPE = Shape(8, 2, 2, 1, 10, 4, 1, 100)
MODEL = Model("x", SHAPE, vision_ffn=6)
WORK = Work((2, 4, 4), 2, G=3, L=5)  # 8 video tokens, P = 10, 12 completion tokens forwarded
# a layer's matrices: 64 + 2*32 + 64 + 3*80; its biases 8 + 2*4, its norms 16
LAYER = 432 + 16 + 16
LANGUAGE = 2 * LAYER + 8 + 2 * 800
# a block: 4*16 + 3*24, biases 12 + 4 and 2*6 + 4, norms 8; merger 256 + 128, 16 + 8, 4
VISION = 136 + 32 + 8 + 384 + 28 + 1176 * 4


def test_parameters():
    assert MODEL.layer == LAYER
    assert MODEL.language == LANGUAGE
    assert MODEL.vision == VISION
    # q, o: 8 + 8; k, v: 8 + 4; three of the feed-forward: 8 + 10
    assert MODEL.adapter(3) == 2 * 3 * (32 + 24 + 54)


def test_what_is_held_in_full_tuning():
    held = memory.held(Plan(MODEL, is_lora=False))
    assert held.weights == held.reference == 4 * (LANGUAGE + VISION)
    assert held.gradients == 4 * LANGUAGE
    assert held.optimizer == 8 * LANGUAGE


def test_what_is_held_with_an_adapter():
    held = memory.held(Plan(MODEL, is_lora=True))
    adapter = 2 * 64 * 110
    assert held.total == 2 * (LANGUAGE + VISION) + (4 + 4 + 8) * adapter
    assert held.reference == 0


def test_shares_of_it():
    plan = Plan(MODEL, is_lora=False, is_sharded=True)
    total = 20 * LANGUAGE + 8 * VISION
    assert memory.held_bytes(plan, 8) == total / 8
    assert memory.held_bytes(Plan(MODEL, is_lora=False), 1) == total + 2 * LANGUAGE
    assert memory.held_bytes(Plan(MODEL, is_lora=False), 2) == total + 6 * LANGUAGE
    offloaded = Plan(MODEL, is_lora=False, is_sharded=True, offload=True)
    assert memory.held_bytes(offloaded, 8) == 0
    assert memory.host_bytes(offloaded, 8) == total
    assert memory.host_bytes(offloaded, 64) == total / 8
    assert memory.host_bytes(plan, 8) == 0


def test_the_engines_copy():
    adapter, every = 2 * 64 * 110, 2 * (LANGUAGE + VISION)
    assert memory.engine_bytes(Plan(MODEL, is_lora=True)) == 3 * adapter
    assert memory.engine_bytes(Plan(MODEL, is_lora=True, is_sharded=True)) == every + 3 * adapter
    assert memory.engine_bytes(Plan(MODEL, is_lora=False)) == every


def test_gathered_weights():
    plan = Plan(MODEL, is_lora=False, is_sharded=True)
    assert memory.gathered_bytes(plan) == 2 * (LANGUAGE + VISION)
    some = replace(plan, keep_gathered=False)
    assert memory.gathered_bytes(some) == 2 * (3 * LAYER + 1600 + 8)
    assert memory.gathered_bytes(Plan(MODEL, is_lora=False)) == 0


def test_gradients_on_their_way():
    plan = Plan(MODEL, is_lora=False, is_sharded=True, batch_size=2)
    assert memory.summed_bytes(plan) == 4 * LANGUAGE
    one_layer = 6 * LAYER
    assert memory.summed_bytes(replace(plan, sync_every_micro_batch=True)) == one_layer
    assert memory.summed_bytes(replace(plan, micro_batch_size=2)) == one_layer
    assert memory.summed_bytes(Plan(MODEL, is_lora=False, batch_size=2)) == 0


def test_activations_of_the_update():
    plan = Plan(MODEL, is_lora=False, is_sharded=True, batch_size=4, micro_batch_size=2)
    # 20 prompt tokens and 24 of completions; 8*8 + 3*4 + 4*10 values a token
    inputs, values, logits = 2 * 2 * 8 * 44, 2 * 116 * (1.5 * 20 + 24), 4 * 5 * 256 * 100
    got = memory.activation_bytes(plan, WORK, Measured(1.5, 1.0))
    assert got == inputs + values + logits
    # float32 embeddings where nothing is gathered
    whole = memory.activation_bytes(replace(plan, is_sharded=False), WORK, Measured(1.5, 1.0))
    assert whole == got + inputs


def test_the_peak_is_the_largest_phase():
    plan, measured = Plan(MODEL, is_lora=False, is_sharded=True), Measured(1.0, 1.0)
    every = 2 * (LANGUAGE + VISION)
    update = every + memory.activation_bytes(plan, WORK, measured) + 6 * LAYER
    held = (20 * LANGUAGE + 8 * VISION) / 2
    assert memory.training_peak(plan, 2, WORK, measured) == held + every + update
    # with few logits it is the scoring by the frozen copy, for which the policy's layers stay
    large = Plan(MODELS[0], is_lora=False, is_sharded=True)
    every = 2 * (MODELS[0].language + MODELS[0].vision)
    scored = memory.forward_bytes(MODELS[0], 10 + 3 * 5)
    want = memory.held_bytes(large, 8) + 3 * every + scored
    assert memory.training_peak(large, 8, WORK, measured) == want


def test_the_peak_grows_with_the_micro_batch_and_of_the_step_with_the_rollout_alone():
    measured = Measured(1.0, 1.0)

    def peak(**changes):
        return memory.training_peak(
            replace(Plan(MODEL, is_lora=True), **changes), 1, WORK, measured
        )

    assert peak(batch_size=8) == peak(batch_size=1)  # the update is larger
    assert peak(batch_size=8, micro_batch_size=4) > peak(batch_size=8)
    short = Work((1, 2, 2), 9, G=3, L=5)
    few = memory.rollout_bytes(Plan(MODEL, is_lora=True, batch_size=2), short)
    assert few == 2 * 2 * 2 * 4 * (20 + 6 * 5) + 2 * 20 * (16 + 30)
    # 64 rows at most
    many = memory.rollout_bytes(Plan(MODEL, is_lora=True, batch_size=40), short)
    assert many == 2 * 2 * 2 * 4 * (400 + 64 * 5) + 2 * 400 * (16 + 30)


def test_the_cache_of_prediction():
    assert memory.prediction_kv_bytes(MODELS[0], 80e9) == pytest.approx(
        0.6 * (72e9 - 2 * 8_292_166_656)
    )
    assert memory.prediction_kv_bytes(MODELS[1], 80e9) == 0


def test_measured_factors_are_those_of_the_file(tmp_path):
    path = tmp_path / "update.json"
    shape = {name: getattr(SHAPE, name) for name in Shape.__slots__}
    mb = 2 * 116 * 4 / 1e6  # two layers in float32
    lines = [
        {"grows with": "G·L", "constant MB": 150 * mb, "kB a token": 1.2e3 * mb},
        {"grows with": "G·L", "constant MB": 140 * mb, "kB a token": 1.1e3 * mb},
        {"grows with": "G(P+L)", "constant MB": 900.0, "kB a token": 900.0},
    ]
    settings = {"shape": shape}
    found = {"settings": settings, "memory": [{"P": 100}], "memory growth": lines}
    path.write_text(json.dumps(found))
    measured = memory.read_measured(path)
    assert (measured.prompt, measured.completion) == pytest.approx((1.5, 1.2))
