import json

import numpy as np
import pytest
import torch

from benchmarks import common, step
from benchmarks.step import check_equal, measure, median, write_model
from benchmarks.step_case import Case, VisionPasses, frame_images, trl_settings, variety
from benchmarks.step_vrts import Variety, vrts_sample
from tests.benchmarks.conftest import TINY
from vrts.types import Completion

CASE = Case(num_images=3, B=2, G=2, L=4)


def facts(**changes):
    same = {"P": 9, "lengths": [4, 4, 4, 4], "patches": np.ones((6, 2), np.float32)}
    return same | changes


def test_equal_work_passes():
    check_equal(CASE, facts(), facts())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"P": 10}, "prompts differ: 9 tokens in vrts, 10 in TRL"),
        ({"lengths": [4, 3]}, r"TRL sampled completions of \[4, 3\] tokens, not 2 times 2 of 4"),
        ({"patches": np.zeros((6, 2), np.float32)}, "patches differ"),
        ({"patches": np.ones((5, 2), np.float32)}, "patches differ"),
    ],
)
def test_unequal_work_is_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        check_equal(CASE, facts(), facts(**changes))


def test_without_trl_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(step, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --editable '\.\[bench\]'"):
        step.main()


def test_the_command_lists_every_setting(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="TRL is missing: pip install '.[bench]'")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(step, "SMALL", TINY)
    monkeypatch.setattr(step, "measure", lambda folder, case, repeats: {"G": case.G, "ratio": 1.0})
    step.main()
    found = json.loads((tmp_path / "step.json").read_text())
    assert [row["G"] for row in found["rows"]] == [case.G for case in step.CASES]
    assert found["settings"]["trl"][0]["max_steps"] == step.REPEATS + 1
    assert set(found["settings"]["versions"]) == {"trl", "accelerate", "datasets"}
    assert found["settings"]["shape"]["num_layers"] == TINY.num_layers


def test_medians_of_seconds_and_facts():
    steps = [(3.0, {"a": 1}), (1.0, {"a": 5}), (2.0, {"a": 9})]
    assert median(steps) == 2.0
    assert median(steps, "a") == 5


def test_trl_is_asked_for_full_completions_without_vision_tokens():
    settings = trl_settings(CASE, 7, [1, 2])
    assert settings["generation_kwargs"] == {"min_new_tokens": 4, "suppress_tokens": [1, 2]}
    assert settings["max_completion_length"] == 4
    assert settings["max_steps"] == 7
    assert settings["gradient_checkpointing"] is False
    assert settings["per_device_train_batch_size"] == settings["num_generations"] == CASE.G
    assert settings["steps_per_generation"] == settings["gradient_accumulation_steps"] == CASE.B


def test_the_reward_is_the_same_for_both_and_tells_completions_apart():
    reward = Variety()
    completions = [Completion("aab", 3, 4), Completion("abcd", 4, 4)]
    assert reward.score(completions, []) == [variety("aab"), variety("abcd")] == [2.0, 4.0]
    assert reward.lengths == [3, 4]


def test_vision_passes_are_counted_step_by_step():
    tower = torch.nn.Identity()
    passes = VisionPasses(tower, CASE)
    size = passes.size
    patches = torch.randn(2 * size, 5)
    tower(patches)
    tower(patches[:size])
    found = passes.facts()
    assert found["vision passes"] == 3
    np.testing.assert_array_equal(found["patches"], patches[:size].numpy())
    tower(patches[size:])
    assert passes.facts()["vision passes"] == 1


def test_a_frame_twice_gives_the_patches_of_an_image(tiny_policy):
    out = tiny_policy.processor.image_processor(
        images=list(frame_images(CASE, 1)),
        do_resize=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    (found,) = tiny_policy.network().encode([vrts_sample(CASE, 1)])
    assert found.grid[0] == CASE.num_images
    patches = found.patches(torch.device("cpu"))
    torch.testing.assert_close(patches, out["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_both_sides_have_equal_work_in_real_steps(tmp_path):
    pytest.importorskip("trl", reason="TRL is missing: pip install '.[bench]'")
    write_model(tmp_path, TINY)
    row = measure(tmp_path, CASE, repeats=1)
    assert row["vrts vision passes"] == CASE.B
    assert row["TRL vision passes"] == 2 * CASE.B * CASE.G
    assert row["ratio"] > 0
