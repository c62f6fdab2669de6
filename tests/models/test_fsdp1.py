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
}
"""By one process and by two."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_video) -> tuple[Path, Path]:
    """What one process and two left; all cases at once, since starting takes longest."""
    root = tmp_path_factory.mktemp("flat")
    for name in ("one", "two", "model", "videos"):
        (root / name).mkdir()
    model = build_model(root / "model")
    file = model / "model.safetensors"
    exact = {key: weight.bfloat16().float() for key, weight in load_file(file).items()}
    save_file(exact, file, metadata={"format": "pt"})  # so that dtype changes no number
    videos = make_videos(root / "videos", make_video)
    alone = {name: case | {"sharded": False, "dtype": "float32"} for name, case in CASES.items()}
    run(root / "one", model, videos, alone, devices=1)
    job = {"folder": root / "two", "model": model, "videos": videos, "cases": CASES, "devices": 2}
    log = root / "log"
    with started("tests.models.flat_runs", log, json.dumps(job, default=str)) as process:
        assert process.wait(600) == 0, log.read_text()[-4000:]
    return root / "one", root / "two"


def read(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_is_that_of_one_process(folders, name):
    """The same losses, gradient norms and weights; the exported folder has them too."""
    one, two = folders
    # a fresh adapter has been rounded to the dtype of the model beside it
    rel = 1e-2 if "dtype" in CASES[name] else 1e-5
    alone, ranks = read(one, name), [read(two, name, rank) for rank in (0, 1)]
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=rel, abs=1e-6)
        assert found["norms"] == pytest.approx(alone["norms"], rel=rel)
        assert found["share"] < 0.7 * alone["share"]
    assert alone["norms"][0] > 1e-3
    if "adam" in CASES[name]:
        return  # it makes steps of rounding noise around zero
    is_adapter = "lora" in CASES[name] and "merge" not in CASES[name]
    file = "adapter_model.safetensors" if is_adapter else "model.safetensors"
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
