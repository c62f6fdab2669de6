"""FSDP1 on two gloo processes, against one process that holds all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.callbacks.runs import (
    build_model,
    make_data,
    make_trainer,
    make_videos,
    questions,
    started,
)
from tests.models.flat_runs import run
from tests.models.sharded_runs import build
from vrts.models.fsdp1 import FSDP1
from vrts.models.reference import FrozenCopy
from vrts.types import InputError

CASES: dict[str, dict[str, Any]] = {
    "full": {"checkpointing": True, "clip": 0.05, "count": 7, "damaged": [3]},
    "lora": {"lora": True, "checkpointing": True, "accumulate": 2, "count": 9},
    "merged": {"lora": True, "merge": True},
    "mixed_dtypes": {"lora": True, "dtype": "bfloat16", "beta": 0.0},
    "resumed": {"adam": True, "resume": 1},
    "to_ddp": {"adam": True, "resume": 1, "parts": (True, False)},
    "lora_to_ddp": {"adam": True, "resume": 1, "parts": (True, False), "lora": True},
}
"""By one process and by two."""
ALONE: dict[str, dict[str, Any]] = {
    "full": CASES["full"],
    "lora": CASES["lora"],
    "resumed": CASES["resumed"],
    "resumed_lora": {"adam": True, "resume": 1, "lora": True},
}
"""By one process with and without FSDP1, which shards nothing there."""


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_video) -> Path:
    """What the processes left; all cases at once, since starting takes longest."""
    root = tmp_path_factory.mktemp("flat")
    for name in ("one", "two", "alone", "model", "videos"):
        (root / name).mkdir()
    model = build_model(root / "model")
    file = model / "model.safetensors"
    exact = {key: weight.bfloat16().float() for key, weight in load_file(file).items()}
    save_file(exact, file, metadata={"format": "pt"})  # so that dtype changes no number
    videos = make_videos(root / "videos", make_video)
    whole = {n: c | {"sharded": False, "dtype": "float32"} for n, c in (CASES | ALONE).items()}
    run(root / "one", model, videos, whole, devices=1)
    log = root / "log"
    for name, cases, devices in (("two", CASES, 2), ("alone", ALONE, 1)):
        job = {"folder": root / name, "model": model, "videos": videos, "cases": cases}
        args = json.dumps(job | {"devices": devices}, default=str)
        with started("tests.models.flat_runs", log, args) as process:
            assert process.wait(600) == 0, log.read_text()[-4000:]
    return root


def read(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_is_that_of_one_process(root, name):
    """The same losses, gradient norms and weights; the exported folder has them too."""
    # a fresh adapter has been rounded to the dtype of the model beside it
    rel = 1e-2 if "dtype" in CASES[name] else 1e-5
    alone = read(root / "one", name)
    check_same(root, "two", name, CASES[name], rel)
    for rank in (0, 1):
        share = read(root / "two", name, rank)["share"]
        ends_sharded = CASES[name].get("parts", (True, True))[1]
        assert share < 0.7 * alone["share"] if ends_sharded else share == alone["share"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_one_process_trains_as_without_it(root, name):
    check_same(root, "alone", name, ALONE[name], rel=1e-5)


def check_same(root: Path, folder: str, name: str, case: dict[str, Any], rel: float) -> None:
    """Compare what ``folder`` has of a case with what one process without FSDP1 left."""
    alone = read(root / "one", name)
    for path in (root / folder).glob(f"{name}-[01].json"):
        found = json.loads(path.read_text())
        assert found["losses"] == pytest.approx(alone["losses"], rel=rel, abs=1e-6)
        assert found["norms"] == pytest.approx(alone["norms"], rel=rel)
    assert alone["norms"][0] > 1e-3
    if "adam" in case:
        return  # it makes steps of rounding noise around zero
    is_adapter = "lora" in case and "merge" not in case
    file = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    folders = (root / "one", root / folder)
    weights = [torch.load(folder / f"{name}-0.pt") for folder in folders]
    exported = [load_file(folder / f"{name}-model" / file) for folder in folders]
    for want, got in (weights, exported):
        assert got.keys() == want.keys()
        for key, parameter in want.items():
            assert (got[key] - parameter).norm() <= rel * parameter.norm(), key


def module_and_trainer(folder: Path, model: Path, **data: Any):
    module = build(model, {})
    trainer = make_trainer(folder, max_epochs=1, strategy=FSDP1())
    return module, trainer, make_data(**data)


def test_what_it_cannot_do_is_refused_before_weights_are_loaded(
    tmp_path, model_folder, monkeypatch
):
    module, trainer, data = module_and_trainer(tmp_path, model_folder, train=[])
    with pytest.raises(InputError, match=r"FSDP1 needs CUDA.*configs/cpu.yaml"):
        trainer.fit(module, datamodule=data)
    assert not module.policy.loaded
    monkeypatch.setattr(FSDP1, "_check_device", lambda self: None)
    asked = questions("none.mp4", 2)
    module, trainer, data = module_and_trainer(tmp_path, model_folder, predict=asked)
    with pytest.raises(InputError, match=r"cannot answer questions; put --config configs/fsdp"):
        trainer.predict(module, datamodule=data)
    module, trainer, data = module_and_trainer(tmp_path, model_folder, train=asked, val=asked)
    with pytest.raises(InputError, match=r"or set data.val to null"):
        trainer.fit(module, datamodule=data)
    assert not module.policy.loaded


def test_a_reference_that_moves_is_refused():
    reference = FrozenCopy(sync_every_n_steps=2)
    with pytest.raises(InputError, match=r"sync_every_n_steps to null"):
        reference.shard_with(lambda policy: None)
