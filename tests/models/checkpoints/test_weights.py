"""Weights out of checkpoints: files and sharded folders, damaged ones, and hostile ones."""

import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from vrts.models.checkpoints.weights import load_trained
from vrts.types import InputError

RAN = []


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return RAN.append, ("code",)


def make(seed=0, size=5):
    """A module with a frozen layer, two trained ones of different dtypes, and a tied weight."""
    torch.manual_seed(seed)
    module = nn.ModuleDict(
        {"frozen": nn.Linear(3, 3), "a": nn.Linear(3, size), "b": nn.Linear(4, 4)}
    )
    module["b"].bfloat16()
    module["c"] = nn.Linear(4, 4, bias=False)
    module["c"].weight = module["b"].weight
    module["frozen"].requires_grad_(False)
    return module


def trained(module):
    named = module.named_parameters(remove_duplicate=False)
    return {name: p.detach() for name, p in named if p.requires_grad}


def save(module, path, kind, **more):
    """As Lightning does, without what does not matter here."""
    state = trained(module)
    if kind == "file":
        torch.save({"state_dict": state, "global_step": 7, **more}, path)
    else:
        optimizer = {
            "state": {"a.weight": {"step": torch.tensor(1.0)}},
            "param_groups": [{"lr": 1}],
        }
        dcp.save({"state_dict": state, "optimizer_0": optimizer}, checkpoint_id=path, no_dist=True)
        torch.save({"global_step": 7, **more}, path / "meta.pt")
    return path


@pytest.fixture(params=["file", "folder"])
def kind(request):
    return request.param


def test_weights_come_back_and_nothing_else_moves(tmp_path, kind):
    source, target = make(0), make(1)
    before = {name: p.clone() for name, p in target.named_parameters()}
    rest = load_trained(target, save(source, tmp_path / "last.ckpt", kind))
    assert rest["global_step"] == 7
    assert "state_dict" not in rest
    for name, value in target.named_parameters(remove_duplicate=False):
        if name.startswith("frozen"):
            assert torch.equal(value, before[name])
        else:
            assert torch.equal(value, dict(trained(source))[name])
            assert not torch.equal(value, before.get(name, torch.tensor(0.0)))
    assert target["c"].weight is target["b"].weight


def test_another_model_is_named(tmp_path, kind):
    path = save(make(), tmp_path / "last.ckpt", kind)
    with pytest.raises(InputError, match=r"2 tensors differ, the first a\.bias: \(5,\) in the .*6"):
        load_trained(make(size=6), path)


def test_code_in_a_checkpoint_does_not_run(tmp_path, kind):
    path = save(make(), tmp_path / "last.ckpt", kind, callbacks=Hostile())
    with pytest.raises(InputError, match="is not a checkpoint of vrts fit, or a damaged one"):
        load_trained(make(), path)
    assert not RAN


def test_code_in_the_list_of_contents_does_not_run(tmp_path):
    path = save(make(), tmp_path / "last.ckpt", "folder")
    (path / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match=r"\.metadata names "):
        load_trained(make(), path)
    assert not RAN


def test_what_the_list_calls_no_tensor_is_not_unpickled(tmp_path):
    path = tmp_path / "last.ckpt"
    state = {**trained(make()), "a.bias": Hostile()}
    dcp.save({"state_dict": state}, checkpoint_id=path, no_dist=True)
    torch.save({}, path / "meta.pt")
    with pytest.raises(InputError, match=r"the first a\.bias: None in the checkpoint"):
        load_trained(make(), path)
    assert not RAN


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
def test_a_folder_that_lacks_something_is_named(tmp_path, name):
    path = save(make(), tmp_path / "last.ckpt", "folder")
    (path / name).unlink()
    with pytest.raises(InputError, match=f"is not a checkpoint.*{name}"):
        load_trained(make(), path)


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
def test_a_damaged_folder_is_named(tmp_path, name):
    path = save(make(), tmp_path / "last.ckpt", "folder")
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(InputError, match="is not a checkpoint of vrts fit, or a damaged one"):
        load_trained(make(), path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_file_is_named(tmp_path, content):
    path = save(make(), tmp_path / "last.ckpt", "file")
    path.write_bytes(path.read_bytes()[:600] if content is None else content)
    with pytest.raises(InputError, match="is not a checkpoint of vrts fit, or a damaged one"):
        load_trained(make(), path)


def test_a_file_of_something_else_is_named(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="has no state_dict"):
        load_trained(make(), tmp_path / "last.ckpt")


def test_a_moved_folder_is_read(tmp_path):
    source, target = make(0), make(1)
    shutil.move(save(source, tmp_path / "last.ckpt", "folder"), tmp_path / "elsewhere.ckpt")
    load_trained(target, tmp_path / "elsewhere.ckpt")
    assert torch.equal(target["a"].weight, source["a"].weight)
