"""Checkpoints hold what is trained and nothing else, and do not go into another model."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    predict,
    questions,
    read_predictions,
)
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.models.checkpoints.contents import check_same_model, keep_trained
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.vlm.loading import Lora
from vrts.types import InputError

KINDS = {
    "full": {},
    "vision": {"freeze_vision": False},
    "lora": {"lora": Lora(rank=4)},
}


def fit(folder, model_folder, videos, kind, steps=2, ckpt_path=None):
    """Train with a reference; the run keeps ``last.ckpt``."""
    options = KINDS[kind] if isinstance(kind, str) else kind
    module = make_module(
        make_policy(model_folder, **options),
        lr=0.2,
        objective=GRPO(beta=0.5),
        reference=AdapterOff() if options.get("lora") else FrozenCopy(),
    )
    keep = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=0)
    history = History()
    trainer = make_trainer(folder, [keep, history], max_steps=steps)
    data = make_data(train=questions(videos["long"], 8), batch_size=2)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, history


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory, model_folder, videos):
    folder = tmp_path_factory.mktemp(request.param)
    module, _ = fit(folder, model_folder, videos, request.param)
    return module, folder / "last.ckpt", request.param


def test_a_checkpoint_holds_the_trained_parameters_alone(trained):
    module, path, kind = trained
    state = torch.load(path, weights_only=False)["state_dict"]
    named = dict(module.named_parameters(remove_duplicate=False))
    assert state.keys() == {n for n, p in named.items() if p.requires_grad}
    assert all(torch.equal(state[n], named[n]) for n in state)
    assert any("visual" in name for name in state) == (kind == "vision")
    assert all("lora_" in name for name in state) == (kind == "lora")
    assert any("lm_head" in name for name in state) == (kind != "lora")
    assert not any("reference" in name for name in state)
    assert sum(p.numel() for p in module.parameters()) == sum(
        p.numel() for p in module.policy.parameters()
    ), "the reference is not a part of the module"


def test_the_state_of_the_module_has_no_reference(trained):
    module, _, _ = trained
    assert all(name.startswith("policy.model.") for name in module.state_dict())


def test_evaluation_and_prediction_load_it(trained, tmp_path, model_folder, videos):
    """The same answers as those of the trained module; others than those of the base."""
    module, path, kind = trained
    chosen = questions(videos["long"], 2)
    want, _ = predict(tmp_path / "want", module.policy.eval(), chosen)
    base, _ = predict(tmp_path / "base", make_policy(model_folder, **KINDS[kind]), chosen)
    fresh = make_module(make_policy(model_folder, **KINDS[kind]))
    folder = tmp_path / "got"
    callbacks = [SparseToDense([4, 8, 16], 3), PredictionWriter(str(folder))]
    trainer = make_trainer(folder, callbacks)
    trainer.predict(
        fresh,
        datamodule=make_data(predict=chosen),
        return_predictions=False,
        ckpt_path=str(path),
    )
    assert read_predictions(folder) == want != base
    assert not fresh.policy.training


def test_a_resumed_run_keeps_the_reference_of_the_first(trained, tmp_path, model_folder, videos):
    """The KL is to the model before training, not to the one of the checkpoint."""
    _, path, kind = trained
    _, uninterrupted = fit(tmp_path / "uninterrupted", model_folder, videos, kind, steps=4)
    _, resumed = fit(tmp_path / "rest", model_folder, videos, kind, 4, str(path))
    assert resumed.ids == uninterrupted.ids[2:]
    if kind != "lora":  # whose first weights are random
        assert resumed.losses == uninterrupted.losses[2:]
    assert max(resumed.losses) > 1e-3


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lora", {"lora": Lora(rank=2)}, r"lora_A.*: \(4, \d+\) in the checkpoint, \(2, \d+\) in"),
        ("lora", {}, r"lora_A.*: \(4, \d+\) in the checkpoint, None in"),
        ("full", {"lora": Lora(rank=4)}, r"lora_A.*: None in the checkpoint, \(4, \d+\) in"),
        ("full", {"freeze_vision": False}, r"visual.*: None in the checkpoint, \(\d+,.* in"),
        ("vision", {}, r"visual.*: \(\d+,.* in the checkpoint, None in"),
        (
            "lora",
            {"lora": Lora(rank=4, target_modules=r".*language_model.*\.q_proj")},
            r"down_proj\.lora_A.* None in model",
        ),
    ],
)
def test_the_checkpoint_of_another_model_is_refused_by_name(
    tmp_path, model_folder, videos, before, after, message
):
    fit(tmp_path, model_folder, videos, before, steps=1)
    path = str(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=rf"--ckpt_path: .* tensors differ, the first .*{message}"):
        fit(tmp_path / "other", model_folder, videos, after, 2, path)
    data = make_data(test=questions(videos["long"], 1))
    module = make_module(make_policy(model_folder, **after))
    with pytest.raises(InputError, match="--ckpt_path: the checkpoint is of another model"):
        make_trainer(tmp_path).test(module, datamodule=data, ckpt_path=path)


def test_every_difference_is_counted():
    module = torch.nn.Linear(3, 2)
    same = {"state_dict": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}}
    check_same_model(module, same)
    other = {"state_dict": {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}}
    with pytest.raises(InputError, match=r"3 tensors differ, the first bias: None in the"):
        check_same_model(module, other)


def test_frozen_tensors_and_buffers_are_dropped():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[0].requires_grad_(False)
    checkpoint = {"state_dict": module.state_dict()}
    keep_trained(module, checkpoint)
    assert checkpoint["state_dict"].keys() == {"1.weight", "1.bias"}
