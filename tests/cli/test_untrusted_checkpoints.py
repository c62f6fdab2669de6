"""No subcommand and no strategy runs code that was planted in a checkpoint."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from tests.cli.test_command import fit_args, own_train, predict_args
from vrts.cli.command import main
from vrts.models.checkpoints.reading import read_contents

SHARDED = "--trainer.strategy={class_path: FullySharded, init_args: {timeout_s: 300}}"
SUBCOMMANDS = ("fit", "validate", "test", "predict", "export")


class Planted:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(autouse=True)
def no_group() -> Iterator[None]:
    """Sharded runs on one process leave a process group."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def trained(root: Path, folder: Path, data: Path, *more: str) -> Path:
    """The checkpoint of a step of training."""
    args = fit_args(folder, root, *own_train(data), "--trainer.max_steps=1", *more)
    assert main(args) == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    return (root / "checkpoints/last.ckpt").resolve()


@pytest.fixture(scope="module")
def file(model, annotations, tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("file"), model, annotations)


@pytest.fixture(scope="module")
def folder(model, annotations, tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("folder"), model, annotations, SHARDED)


@pytest.fixture
def command(model, annotations, tmp_path):
    """Arguments of a subcommand that reads a checkpoint."""

    def args(subcommand: str, path: Path, *more: str) -> list[str]:
        common = [f"--ckpt_path={path}", *more]
        root = tmp_path / "run"
        if subcommand == "predict":
            return predict_args(model, root, annotations, *common)
        words = fit_args(model, root, *own_train(annotations), *common)
        if subcommand == "export":
            common = [f"--output_dir={tmp_path / 'exported'}"]
        elif subcommand == "fit":
            common = []
        else:
            name = {"validate": "val", "test": "test"}[subcommand]
            common = [
                f"--data.{name}=VideoR1Reader",
                f"--data.{name}.init_args.path={annotations}",
                f"--data.{name}.init_args.video_root=null",
            ]
        return [subcommand, *words[1:], *common]

    return args


def refuses(args: list[str], capsys: pytest.CaptureFixture[str], marker: Path) -> None:
    capsys.readouterr()
    assert main(args) == 1
    error = capsys.readouterr().err
    assert "is not a checkpoint of vrts fit, or a damaged one (" in error
    assert len(error[error.index("vrts: error:") :].splitlines()) <= 3
    assert not marker.exists(), "the code has run"


@pytest.mark.parametrize("strategy", ["auto", "ddp", SHARDED])
@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_code_in_a_file_does_not_run(file, command, tmp_path, capsys, subcommand, strategy):
    marker = tmp_path / "marker"
    checkpoint = torch.load(file, weights_only=True)
    torch.save(checkpoint | {"callbacks": Planted(marker)}, tmp_path / "planted.ckpt")
    more = [strategy] if strategy == SHARDED else [f"--trainer.strategy={strategy}"]
    refuses(command(subcommand, tmp_path / "planted.ckpt", *more), capsys, marker)


def plant_in_the_list(folder: Path, marker: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Planted(marker)))


def plant_in_the_rest(folder: Path, marker: Path) -> None:
    rest = torch.load(folder / "meta.pt", weights_only=True)
    torch.save(rest | {"callbacks": Planted(marker)}, folder / "meta.pt")


def plant_in_a_value(folder: Path, marker: Path) -> None:
    """In an option of the optimizer, which is no tensor."""
    metadata = read_contents(folder)
    names = metadata.state_dict_metadata.items()
    name = next(n for n, v in names if isinstance(v, BytesStorageMetadata) and n.endswith("lr"))
    torch.save(Planted(marker), folder / "planted.distcp")
    size = (folder / "planted.distcp").stat().st_size
    index = next(index for index in metadata.storage_data if index.fqn == name)
    metadata.storage_data[index] = _StorageInfo("planted.distcp", 0, size)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("plant", [plant_in_the_list, plant_in_the_rest])
@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_code_in_a_folder_does_not_run(folder, command, tmp_path, capsys, subcommand, plant):
    marker = tmp_path / "marker"
    shutil.copytree(folder, tmp_path / "planted.ckpt")
    plant(tmp_path / "planted.ckpt", marker)
    refuses(command(subcommand, tmp_path / "planted.ckpt", SHARDED), capsys, marker)


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_code_in_a_value_of_a_folder_does_not_run(folder, command, tmp_path, capsys, subcommand):
    """Only fit reads the optimizer's values; it loads the model first."""
    marker = tmp_path / "marker"
    shutil.copytree(folder, tmp_path / "planted.ckpt")
    plant_in_a_value(tmp_path / "planted.ckpt", marker)
    args = command(subcommand, tmp_path / "planted.ckpt", SHARDED)
    if subcommand == "fit":
        refuses([*args, "--trainer.max_steps=2"], capsys, marker)
    else:
        assert main(args) == 0
        assert not marker.exists(), "the code has run"


@pytest.mark.parametrize(
    ("subcommand", "kind"),
    [("fit", "file"), ("predict", "file"), ("export", "file"), ("fit", "folder")],
)
def test_a_checkpoint_without_code_is_read(request, command, subcommand, kind):
    """So that the others are refused for the code that is in them.

    The test above has other subcommands read a folder.
    """
    path = request.getfixturevalue(kind)
    more = (SHARDED,) if kind == "folder" else ()
    assert main(command(subcommand, path, *more)) == 0


def test_nobody_can_ask_for_it(file, command, capsys):
    for subcommand in SUBCOMMANDS:
        assert main([*command(subcommand, file), "--weights_only=false"]) == 1
        assert "code in a checkpoint is never run" in capsys.readouterr().err
