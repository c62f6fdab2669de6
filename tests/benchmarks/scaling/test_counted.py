"""The memory of a recipe's own step, counted without values."""

import json
from functools import partial

import pytest

from benchmarks.common import Shape, random_policy
from benchmarks.scaling.counted import RECIPES, count
from benchmarks.scaling.memory import held
from benchmarks.scaling.plan import Plan
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.tables import COUNTED, NF4_BYTES, PHASES, quantized, sharded

FOUND = json.loads(COUNTED.read_text())["recipes"]
TINY = Shape(256, 2, 4, 2, 1024, 128, 2, 4096, 340, tied_head=False)


def test_a_recipes_step_runs_through_all_phases_on_shapes(monkeypatch):
    recipe = next(r for r in RECIPES if r.name == "lora, small_gpu")
    options = recipe.options()
    options["model"] |= {"num_generations": 2, "max_new_tokens": 64}
    options["data"] |= {"num_frames": 4, "batch_size": 2}
    options["model"]["policy"]["init_args"]["lora"] = {"rank": 4, "alpha": 8}
    monkeypatch.setattr(type(recipe), "options", lambda self: options)
    peaks = {}
    for size in (None, 64):
        options["model"]["policy"]["init_args"]["mlp_chunk_size"] = size
        found = count(recipe, partial(random_policy, TINY))
        assert set(found["phases"]) == set(PHASES)
        assert all(peak >= found["held"] > 0 for peak in found["phases"].values())
        peaks[size] = found["phases"]
    assert peaks[64]["backward"] < peaks[None]["backward"]


def test_the_overlay_leaves_two_gb_of_a_24_gb_card():
    assert max(FOUND["lora, small_gpu"]["phases"].values()) <= 22e9


def test_what_is_held_is_what_the_arithmetic_says():
    """Full: weights, moments and reference, and the engine's copy in 16 bits."""
    model = MODELS[0]
    own = held(Plan(model, is_lora=False))
    wanted = own.total - own.gradients + 2 * (model.language + model.vision)
    assert FOUND["full"]["held"] == pytest.approx(wanted, rel=0.01)
    own = held(Plan(model, is_lora=True))
    assert FOUND["lora"]["held"] == pytest.approx(own.total - own.gradients, rel=0.04)


def test_rows_by_arithmetic():
    full = FOUND["full"]
    two, eight = (sharded(full, n) for n in (2, 8))
    assert two["phases"]["backward"] > eight["phases"]["backward"]
    # the engine's copy and activations are not divided
    copy = 2 * (MODELS[0].language + MODELS[0].vision)
    assert eight["held"] == pytest.approx((full["held"] - copy) / 8 + copy, rel=0.02)
    small = FOUND["lora, small_gpu"]
    saved = small["held"] - quantized(small)["held"]
    assert saved == pytest.approx((2 - NF4_BYTES) * 6.52e9, rel=0.01)
