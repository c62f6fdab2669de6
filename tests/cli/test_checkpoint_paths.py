"""Which checkpoint a run goes on from: found, or refused by name, before weights are loaded."""

from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from vrts.cli.checkpoint_paths import find_checkpoint
from vrts.models.checkpoints.contents import FORMAT, FORMAT_KEY
from vrts.types import InputError

WHOLE = {
    "state_dict": {"weight": torch.ones(2)},
    "pytorch-lightning_version": "2.6",
    "loops": {"fit_loop": {}},
    "optimizer_states": [{}],
    FORMAT_KEY: FORMAT,
}


def config(root, ckpt_path, callbacks=()):
    trainer = Namespace(default_root_dir=str(root), callbacks=list(callbacks))
    return Namespace(trainer=trainer, ckpt_path=str(ckpt_path))


def without(name):
    return {key: value for key, value in WHOLE.items() if key != name}


@pytest.mark.parametrize("subcommand", ["fit", "predict", "export"])
def test_a_whole_one_is_taken(tmp_path, subcommand):
    path = tmp_path / "last.ckpt"
    torch.save(WHOLE, path)
    found = config(tmp_path, path)
    find_checkpoint(found, subcommand)
    assert found.ckpt_path == str(path)


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(3),
        [1, 2],
        {"weight": torch.ones(2)},
        {"state_dict": {"weight": torch.ones(2)}},
        WHOLE | {"state_dict": None},
        without("pytorch-lightning_version"),
    ],
)
@pytest.mark.parametrize("subcommand", ["fit", "predict", "export"])
def test_another_file_of_torch_is_refused(tmp_path, content, subcommand):
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(
        InputError, match=r"foreign\.ckpt is not a checkpoint of vrts fit: it has no"
    ):
        find_checkpoint(config(tmp_path, tmp_path / "foreign.ckpt"), subcommand)


def test_a_pickle_is_refused_whatever_the_user_allows(tmp_path):
    torch.save(WHOLE | {"of a callback": {Path("x")}}, tmp_path / "own.ckpt")
    found = config(tmp_path, tmp_path / "own.ckpt")
    with pytest.raises(
        InputError, match=r"own\.ckpt is not a checkpoint .* code in it is never run"
    ):
        find_checkpoint(found, "fit")
    found.weights_only = False
    with pytest.raises(InputError, match="--weights_only: code in a checkpoint is never run"):
        find_checkpoint(found, "fit")


@pytest.mark.parametrize(("found", "age"), [(None, "an earlier"), (FORMAT + 1, "a later")])
def test_another_format_answers_and_does_not_resume(tmp_path, found, age):
    path = tmp_path / "other.ckpt"
    torch.save(without(FORMAT_KEY) if found is None else WHOLE | {FORMAT_KEY: found}, path)
    find_checkpoint(config(tmp_path, path), "predict")
    find_checkpoint(config(tmp_path, path), "export")
    message = rf"other\.ckpt was written by {age} version of vrts \(format {found or 0}, this one"
    with pytest.raises(InputError, match=message):
        find_checkpoint(config(tmp_path, path), "fit")


@pytest.mark.parametrize("name", ["loops", "optimizer_states"])
def test_weights_alone_answer_and_do_not_train(tmp_path, name):
    path = tmp_path / "weights.ckpt"
    torch.save(without(name), path)
    find_checkpoint(config(tmp_path, path), "predict")
    with pytest.raises(InputError, match=f"weights alone and no {name}.*vrts export"):
        find_checkpoint(config(tmp_path, path), "fit")


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict", "export"])
def test_the_last_is_looked_for_in_the_run_folder_also_without_callbacks(tmp_path, subcommand):
    with pytest.raises(InputError, match=f"no checkpoint in {tmp_path}/checkpoints; give"):
        find_checkpoint(config(tmp_path, "last"), subcommand)
    (tmp_path / "checkpoints").mkdir()
    torch.save(WHOLE, tmp_path / "checkpoints/last.ckpt")
    found = config(tmp_path, "last")
    find_checkpoint(found, subcommand)
    assert found.ckpt_path == str(tmp_path / "checkpoints/last.ckpt")


def test_a_run_that_has_no_checkpoint_yet_may_replace_what_it_has_left(tmp_path):
    callback = Namespace(
        class_path="vrts.callbacks.checkpoints.step_checkpoint.StepCheckpoint",
        init_args=Namespace(dirpath=str(tmp_path)),
    )
    found = config(tmp_path, "last", [callback])
    find_checkpoint(found, "fit")
    assert (found.ckpt_path, found.overwrite) == (None, True)


def test_bytes_that_have_changed_are_noticed(tmp_path):
    path = tmp_path / "last.ckpt"
    weight = torch.arange(1000.0)
    torch.save(WHOLE | {"state_dict": {"weight": weight}}, path)
    content = bytearray(path.read_bytes())
    place = content.index(weight.numpy().tobytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"last\.ckpt is damaged: .*data/0 in it does not match"):
        find_checkpoint(config(tmp_path, path), "predict")
