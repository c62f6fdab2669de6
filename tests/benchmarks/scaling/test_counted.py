"""The memory of a recipe's own step, counted without values."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.common import QWEN_7B, Shape, random_policy
from benchmarks.scaling import counted, shapes
from benchmarks.scaling.checkpoints import CHECKPOINTS, shaped_policy
from benchmarks.scaling.counted import RECIPES, TABLE_HEAD, Recipe, count, run, write_row
from benchmarks.scaling.memory import held
from benchmarks.scaling.plan import Plan
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.tables import COUNTED, NF4_BYTES, PHASES, quantized, sharded
from vrts.models.families.qwen3_5 import SharedDeltaNet
from vrts.models.module import VideoQAModule

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_update_on_a_card_takes_the_memory_that_is_counted(monkeypatch):
    """Four layers of the 7B's width, with LoRA."""
    shape = replace(QWEN_7B, num_layers=4)
    recipe = next(r for r in RECIPES if r.name == "lora")
    options = recipe.options()
    options["model"] |= {
        "max_new_tokens": 256,
        "engine": {"class_path": "NativeEngine", "init_args": {"max_kv_gb": 4.0}},
    }
    monkeypatch.setattr(type(recipe), "options", lambda self: options)
    phases = count(recipe, partial(random_policy, shape))["phases"]
    wanted = max(phases["forward"], phases["backward"])

    accumulate, peaks = VideoQAModule._accumulate_gradients, []

    def watched(self, micro_batches):
        torch.cuda.reset_peak_memory_stats()
        metrics = accumulate(self, micro_batches)
        peaks.append(torch.cuda.max_memory_allocated())
        return metrics

    monkeypatch.setattr(VideoQAModule, "_accumulate_gradients", watched)
    run(recipe, partial(random_policy, shape), torch.device("cuda"))
    (peak,) = peaks
    # the allocator's rounding and cuBLAS's workspaces are not counted
    assert peak == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("configs", [("grpo", "lora", "gpu"), ("s2d", "gpu")], ids=["lora", "s2d"])
def test_recurrences_of_equal_shapes_are_counted_as_if_each_ran(monkeypatch, configs):
    """A hybrid of three gated delta nets and one layer of attention, with and without repeating."""
    whole = CHECKPOINTS["Qwen/Qwen3.5-0.8B"]
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    own = replace(whole, text=whole.text | text | {"layer_types": whole.text["layer_types"][:4]})
    vision = {"depth": 1, "hidden_size": 48, "intermediate_size": 96, "out_hidden_size": 64}
    own = replace(own, vision=whole.vision | vision)
    recipe = Recipe("hybrid", configs, 24, 4)
    options = recipe.options()
    options["model"] |= {"max_new_tokens": 32}
    if recipe.is_training:
        options["model"] |= {"num_generations": 2}
        options["data"] |= {"batch_size": 2}
    monkeypatch.setattr(Recipe, "options", lambda self: options)
    monkeypatch.setattr(counted, "NUM_PREDICTED", 2 * options["data"].get("eval_batch_size", 1))
    real, calls = SharedDeltaNet._run, []

    def noted(*args):
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(SharedDeltaNet, "_run", noted)
    shortened, num_calls = count(recipe, partial(shaped_policy, own)), len(calls)
    monkeypatch.setattr(shapes, "_once", lambda device: SharedDeltaNet._run)
    assert shortened == count(recipe, partial(shaped_policy, own))
    assert num_calls < len(calls) - num_calls, "fewer run"


def test_a_row_is_put_into_the_document_and_the_recipe(monkeypatch, tmp_path):
    """In the order of the checkpoints; whatever else is there is kept, and a row is replaced."""
    document, recipe = tmp_path / "families.md", tmp_path / "models/small.yaml"
    other = f"| `{list(CHECKPOINTS)[-1]}` | 2.25 |"
    document.write_text(f"# Head\n<!-- counted -->\n\n{other}\n\n<!-- end -->\ntail\n")
    recipe.parent.mkdir()
    recipe.write_text("# Overlay: small.\n# Kept.\nmodel: {path: Qwen/Qwen3.5-0.8B}\n")
    monkeypatch.setattr(counted, "FAMILIES", document)
    monkeypatch.setattr(counted, "CONFIGS", tmp_path)
    for peak in ("9.9", "5.4"):
        cells = ("0.85", "1,760", peak, "128", "12,430", "6.1", "8.2", "24 GB")
        write_row("Qwen/Qwen3.5-0.8B", ["224x384", "320x576"], *cells)
    row = "| `Qwen/Qwen3.5-0.8B` | 0.85 | 1,760 | 5.4 | 128 | 12,430 | 6.1 | 8.2 | 24 GB |"
    table = "\n".join([*TABLE_HEAD, row, other])
    want = f"# Head\n<!-- counted -->\n\n{table}\n\n<!-- end -->\ntail\n"
    assert document.read_text() == want
    assert recipe.read_text() == (
        "# Overlay: small.\n"
        "# LoRA: 5.4 GB with 32 frames of 224x384, 1,760 prompt tokens. (Counted.)\n"
        "# Prediction: 8.2 GB with 128 frames of 320x576, 12,430 prompt tokens. (Counted.)\n"
        "# Kept.\n"
        "model: {path: Qwen/Qwen3.5-0.8B}\n"
    )
