"""Two gloo processes that hold a part of the weights each, against one that holds all."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.callbacks.runs import build_model, make_videos, started
from tests.models.sharded_runs import run

GIVEN_BACK = {"resident_rollout": False}

CASES: dict[str, dict[str, Any]] = {
    "full": {"checkpointing": True, "clip": 0.05, "count": 7, "damaged": [3], "export": True},
    "vision": {"freeze_vision": False, "beta": 0.0, "accumulate": 4, "count": 8},
    "lora": {
        "lora": True,
        "checkpointing": True,
        "accumulate": 4,
        "count": 9,
        "damaged": [0],
        "export": True,
    },
    "lora_alone": {"lora": True, "beta": 0.0, "clip": 0.05, "updates": 2, "count": 4},
    "moving": {"frozen": {"sync_every_n_steps": 1, "mixup": 0.5}, "accumulate": 2, "count": 8},
    "given_back": {"sharding": GIVEN_BACK, "count": 6, "damaged": [3], "max_new_tokens": 24},
    "given_back_lora": {"sharding": GIVEN_BACK, "count": 4, "lora": True, "checkpointing": True},
    "answered": {"do": "answer", "count": 7, "damaged": [1]},
    "answered_given_back": {"do": "answer", "count": 1, "sharding": GIVEN_BACK},
    "kept": {"sharding": {"reshard_after_forward": False}, "count": 4, "checkpointing": True},
}
"""Trained by one process and by two."""

CHOICES: dict[str, Any] = {
    "temporal": True,
    "num_groups": 1,
    "dapo": True,
    "beta": 0.1,
    "batch": 6,
    "count": 12,
    "damaged": [0, 2, 4, 7],
}
TOGETHER: dict[str, dict[str, Any]] = {
    "choices": CHOICES,
    "choices_given_back": CHOICES | {"sharding": GIVEN_BACK},
    "resumed": {"do": "resume", "adam": True, "frozen": {"sync_every_n_steps": 2}},
    "resumed_alone": {"do": "resume", "adam": True, "beta": 0.0},
    "resumed_frozen": {"do": "resume", "adam": True},
    "resumed_lora": {"do": "resume", "adam": True, "lora": True},
    "short": {"count": 4},
    "long": {"count": 4, "max_new_tokens": 32},
}
"""Trained by two processes only, whose questions are not those of one."""


def start(folder: Path, model: Path, videos: dict[str, str], cases: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    job = {"folder": folder, "model": model, "videos": videos, "cases": cases, "devices": 2}
    log = folder / "log"
    with started("tests.models.sharded_runs", log, json.dumps(job, default=str)) as process:
        assert process.wait(200) == 0, log.read_text()[-4000:]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video) -> dict[str, str]:
    return make_videos(tmp_path_factory.mktemp("videos"), make_video)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model, videos) -> tuple[Path, Path]:
    """What one process and two left; all cases at once, since starting takes longest."""
    root = tmp_path_factory.mktemp("sharded")
    (root / "one").mkdir()
    run(root / "one", model, videos, CASES, devices=1)
    start(root / "two", model, videos, CASES | TOGETHER)
    return root / "one", root / "two"


def read(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sharded_training_is_training(folders, name):
    """The same losses, gradient norms and weights."""
    one, two = folders
    alone, ranks = read(one, name, 0), [read(two, name, r) for r in (0, 1)]
    case = CASES[name]
    num_batches = case["count"] // 2 * case.get("updates", 1)
    assert len(alone["norms"]) == math.ceil(num_batches / case.get("accumulate", 1))
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert alone["norms"][0] > 1e-3
    if "clip" in case:
        assert max(alone["norms"]) > case["clip"]
    want, got = (torch.load(folder / f"{name}-0.pt") for folder in folders)
    assert got.keys() == want.keys()
    for key, parameter in want.items():
        assert (got[key] - parameter).norm() <= 1e-5 * parameter.norm(), key


@pytest.mark.slow
def test_choosing_groups_and_shuffled_frames_are_done_in_step(folders):
    """Also where one process has no usable video at all, and whatever is kept."""
    kept, given_back = (
        [read(folders[1], name, rank) for rank in (0, 1)]
        for name in ("choices", "choices_given_back")
    )
    for found in (*kept, *given_back):
        assert found["losses"] == pytest.approx(kept[0]["losses"], rel=1e-5, abs=1e-6)
        assert found["norms"] == pytest.approx(kept[0]["norms"], rel=1e-5)
        assert len(found["norms"]) == 2
    assert kept[0]["norms"][0] > 1e-3


@pytest.mark.slow
def test_weights_that_stay_are_gathered_independently_of_the_length(folders):
    short, long = (read(folders[1], name, 0) for name in ("short", "long"))
    assert max(long["lengths"]) > max(short["lengths"]) + 4
    assert set(short["gathers"]) == set(long["gathers"])
    for name in ("full", "moving", "lora", "lora_alone"):
        found = read(folders[1], name, 0)
        assert 0 < max(found["gathers"]) <= 3 * found["sharded"], name
    assert max(read(folders[1], "given_back", 0)["gathers"]) > 3 * found["sharded"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_sharded_policy_is_exported_whole(folders, name):
    one, two = (folder / f"{name}-model" for folder in folders)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    want, got = load_file(one / file), load_file(two / file)
    assert got.keys() == want.keys()
    for key, parameter in want.items():
        assert (got[key] - parameter).norm() <= 1e-5 * parameter.norm(), key
