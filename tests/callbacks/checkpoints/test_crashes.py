"""Training runs that were killed, at every moment that can make a difference, and are resumed."""

import json

import pytest
import torch

from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from tests.crashes import copied_at_changes
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.callbacks.export.callback import ExportPretrained
from vrts.callbacks.monitoring.completion_log import CompletionLog
from vrts.models.checkpoints.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO
from vrts.models.checkpoints.finding import newest
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.reference import AdapterOff
from vrts.models.sharding import unsharded
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.models.vlm.loading import Lora

HOW = {
    "files": lambda: {"plugins": [AtomicCheckpointIO()]},
    "files in the background": lambda: {"plugins": [BackgroundCheckpointIO()]},
    "folders": lambda: {"strategy": FullySharded()},
    "folders in the background": lambda: {"strategy": FullySharded(save_in_background=True)},
}
EVERY = {"files": 1, "files in the background": 4, "folders": 3, "folders in the background": 6}
"""Of the states that kills leave: those of writing in the background are nearly the same."""


def train(folder, model, videos, how, callbacks=()):
    """Two steps with dropout, from the newest checkpoint on, as ``--ckpt_path last`` does."""
    torch.manual_seed(0)
    module = make_module(
        make_policy(model, lora=Lora(rank=4, alpha=8, dropout=0.2)),
        objective=GRPO(beta=0.1),
        reference=AdapterOff(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        num_generations=2,
        max_new_tokens=4,
    )
    log = CompletionLog(every_n_steps=1, num_shown=0)
    saver = StepCheckpoint(every_n_steps=1, dirpath=str(folder / "checkpoints"))
    path = newest([folder / "checkpoints"])
    data = make_data(train=questions(videos["long"], 2), batch_size=1)
    trainer = make_trainer(folder, [log, *callbacks, saver], max_epochs=1, **HOW[how]())
    trainer.fit(module, datamodule=data, ckpt_path=path)
    assert trainer.global_step == 2
    weights = {n: unsharded(p.detach()) for n, p in module.named_parameters() if p.requires_grad}
    assert newest([folder / "checkpoints"]) is not None
    return weights, (folder / "completions.jsonl").read_text()


def assert_equal(got, want, where):
    assert got[1] == want[1], where
    assert got[0].keys() == want[0].keys()
    for name, weight in want[0].items():
        assert torch.equal(got[0][name], weight), (where, name)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_run_that_was_killed_anywhere_comes_to_the_same(how, tmp_path, model_folder, videos):
    """Completions and weights, to the last bit; also where it is killed a second time."""
    whole = tmp_path / "whole"
    with copied_at_changes(whole, tmp_path / "killed") as once:
        want = train(whole, model_folder, videos, how)
    assert len(once) >= 18
    assert all(weight.count_nonzero() for weight in want[0].values())
    chosen = once[:: EVERY[how]]
    for folder in chosen[:-1]:
        assert_equal(train(folder, model_folder, videos, how), want, folder.name)
    with copied_at_changes(chosen[-1], tmp_path / "killed_again") as twice:
        assert_equal(train(chosen[-1], model_folder, videos, how), want, "again")
    assert_equal(train(twice[len(twice) // 2], model_folder, videos, how), want, "twice")


@pytest.mark.slow
def test_an_exported_model_is_whole_or_not_there(tmp_path, model_folder, videos):
    """The one before stays until then; training has ended, so that only the export is repeated."""
    exported = tmp_path / "run/model"

    def export(folder):
        return train(
            folder, model_folder, videos, "files", [ExportPretrained(str(folder / "model"))]
        )

    def files(folder):
        """Contents by name; of those that tell of the run, whether they are whole."""
        found = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
        json.loads(found.pop("vrts.json"))
        assert b"## Versions" in found.pop("README.md")
        return found

    want = export(exported.parent), files(exported.parent)
    assert "adapter_model.safetensors" in want[1]
    with copied_at_changes(exported.parent, tmp_path / "killed") as copies:
        export(exported.parent)
    assert len(copies) > 15
    for folder in copies:
        if (folder / "model").exists():
            assert files(folder) == want[1], folder.name
    for folder in copies[::5]:
        assert_equal(export(folder), want[0], folder.name)
        assert files(folder) == want[1], folder.name
        assert [path.name for path in folder.iterdir() if "model" in path.name] == ["model"]
