"""Validation within training on two gloo processes, replicated and sharded, against one."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from tests.callbacks.runs import make_module, make_policy, make_videos
from tests.forked import forked
from tests.ranks.validation_runs import STRATEGIES, run
from vrts.models.checkpoints.weights import load_trained
from vrts.models.vlm.loading import Lora


@pytest.fixture(scope="module")
def folders(made_once, make_video):
    def make(root: Path) -> None:
        model, videos = Path(__file__).parents[2] / "assets/tiny", root / "videos"
        for folder in (one := root / "one", two := root / "two", videos):
            folder.mkdir()
        clips = make_videos(videos, make_video)
        run(one, model, clips, devices=1)
        with forked(root / "log", run, two, model, clips, 2, ranks=2) as processes:
            processes.succeed()

    root = made_once("validation", make)
    return root / "one", root / "two"


def read(folder, name, rank=0):
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for s in STRATEGIES for n in (s, f"{s}-alone")])
def test_two_processes_find_and_keep_what_one_does(name, folders):
    """Shares that are not equal, a failed video, and questions that go on to other levels."""
    one, two = folders
    alone = read(one, name.replace("fsdp", "ddp"))
    ranks = [read(two, name, rank) for rank in (0, 1)]
    count = 1 if name.endswith("alone") else 5
    assert len(alone["losses"]) == 4
    assert len(alone["found"]) == 2
    assert len(alone["depths"]) == 2 * count
    assert sum(len(rank["depths"]) for rank in ranks) == 2 * count
    assert sorted(ranks[0]["depths"] + ranks[1]["depths"]) == sorted(alone["depths"])
    if count > 1:
        assert len(set(alone["depths"])) > 2, "questions differ in depth"
        assert [found["val/num_failed"] for found in alone["found"]] == [1, 1]
        assert all(found["val/agreement"] > 0 for found in alone["found"]), "some answer"
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        assert rank["found"] == alone["found"]
        assert rank["kept"] == alone["kept"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), [("ddp", 0), ("ddp", 1), ("fsdp", 1)])
def test_the_model_is_that_of_the_best_validation(name, index, folders):
    """From the first process, out of a file or out of shards."""
    folder = folders[index]
    (best,) = (folder / f"{name}-kept").glob("best-*.ckpt")
    sharded = name == "fsdp" and index == 1
    assert best.is_dir() == sharded
    policy = make_policy(Path(__file__).parents[2] / "assets/tiny", lora=Lora(rank=4, alpha=8))
    policy.load()
    module = make_module(policy)
    checkpoint = load_trained(module, best)
    kept = get_peft_model_state_dict(policy.model)
    exported = load_file(folder / f"{name}-model/adapter_model.safetensors")
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[key], kept[key]) for key in kept)
    facts = json.loads((folder / f"{name}-model/vrts.json").read_text())
    assert facts["steps"] == checkpoint["global_step"]
    assert facts["selected"]["metric"] == "val/accuracy"
