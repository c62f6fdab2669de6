"""Folders of `vrts fit` that cannot be written, or have no room."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.cli.test_command import fit_args, own_train
from tests.permissions import permissions_count
from vrts.cli.command import main
from vrts.models.module import VideoQAModule
from vrts.models.vlm.policy import TransformersPolicy

COMPLETIONS = "completions.jsonl"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own for a folder."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room on a folder's disk."""
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def fails(model, annotations, tmp_path, capsys, monkeypatch):
    """Run and return the error, which has to come before the model is loaded."""
    monkeypatch.setattr(TransformersPolicy, "load", lambda self: pytest.fail("the model is loaded"))

    def run(*more: str, root: Path = tmp_path) -> str:
        assert main(fit_args(model, root, *own_train(annotations), *more)) == 1
        return capsys.readouterr().err

    return run


def csv_in(folder: Path) -> list[str]:
    return ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}"]


@pytest.mark.parametrize(
    ("file", "options", "named"),
    [
        ("", None, "trainer.default_root_dir: cannot use {} ("),
        ("checkpoints", None, "StepCheckpoint.dirpath: cannot use {} ("),
        ("lightning_logs", None, "trainer.logger: cannot use {} ("),
        ("csv", csv_in, "trainer.logger: cannot use {}/lightning_logs ("),
        ("lightning_logs/version_0", None, "{}: File exists; fix this"),
    ],
)
def test_a_file_in_the_place_of_a_folder(fails, tmp_path, file, options, named):
    place = tmp_path / "run" / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    err = fails(*(options(place) if options else ()), root=tmp_path / "run")
    assert f"vrts: error: {named.format(place)}" in err
    assert "fix this" in err


@pytest.mark.parametrize(
    ("folder", "option"),
    [
        (COMPLETIONS, "CompletionLog.output_dir"),
        ("curves.png", "CurveWriter.output_dir"),
        ("checkpoints/last.ckpt", "StepCheckpoint.dirpath"),
    ],
)
def test_a_folder_in_the_place_of_a_file(fails, tmp_path, folder, option):
    place = tmp_path / folder
    place.mkdir(parents=True)
    assert f"vrts: error: {option}: {place} is a folder" in fails()
    assert list(place.iterdir()) == []


def test_a_folder_that_is_read_only(fails, tmp_path):
    root = tmp_path / "run"
    root.mkdir(mode=0o555)
    with permissions_count():
        err = fails(root=root)
    assert f"trainer.default_root_dir: cannot use {root} ([Errno 13] Permission denied" in err


@pytest.mark.parametrize(
    ("folder", "option"),
    [("", "trainer.default_root_dir"), ("checkpoints", "StepCheckpoint.dirpath")],
)
def test_a_disk_that_is_full_from_the_start(fails, tmp_path, folder, option):
    root = tmp_path / "run"
    with small_disk(root / folder, "1m") as disk:
        fill(disk)
        err = fails(root=root)
        assert [path.name for path in disk.iterdir()] == ["filler"]
    assert f"vrts: error: {option}: cannot use {disk} ([Errno 28] No space left on device" in err


KEEPER = "{class_path: StepCheckpoint, init_args: {every_n_steps: 1}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--trainer.callbacks=[{keeper}, {{class_path: CompletionLog, init_args: "
         "{{every_n_steps: 1, output_dir: {disk}}}}}]",
         "cannot write {disk}/completions.jsonl (No space left on device); checkpoints saved"),
        ("--trainer.callbacks=[{keeper}] --trainer.logger=CSVLogger "
         "--trainer.logger.save_dir={disk}",
         "trainer.logger: cannot use {disk}/lightning_logs ([Errno 28] No space left on device)"),
    ],
    ids=["CompletionLog", "CSVLogger"],
)  # fmt: skip
def test_a_disk_that_is_full_later_is_named_and_the_run_resumes(
    model, annotations, tmp_path, capsys, monkeypatch, options, named
):  # fmt: skip
    args = [*fit_args(model, tmp_path, *own_train(annotations)), "--trainer.logger=false"]
    assert main([*args, f"--trainer.callbacks=[{KEEPER}]", "--trainer.max_steps=1"]) == 0
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    before = checkpoint.read_bytes()
    training_step = VideoQAModule.training_step
    with small_disk(tmp_path / "disk", "1m") as disk:

        def then_full(module, batch, batch_idx):
            fill(disk)
            return training_step(module, batch, batch_idx)

        more = [word.format(keeper=KEEPER, disk=disk) for word in options.split(" --")]
        args += [more[0], *(f"--{word}" for word in more[1:]), "--ckpt_path=last"]
        with monkeypatch.context() as patch:
            patch.setattr(VideoQAModule, "training_step", then_full)
            assert main(args) == 1
        assert f"vrts: error: {named.format(disk=disk)}" in capsys.readouterr().err
        if "CSVLogger" not in options:  # which writes after the checkpoint
            assert checkpoint.read_bytes() == before
        (disk / "filler").unlink()
        assert main(args) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    "left",
    ["checkpoints/last.ckpt", "checkpoints/step=3.ckpt.old", "curves.png", COMPLETIONS,
     "model/vrts.json"],
)  # fmt: skip
def test_what_another_run_has_left_is_not_replaced(fails, tmp_path, left):
    place = tmp_path / left
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("{}")
    err = fails()
    assert f"trainer.default_root_dir: {place} is of another training run" in err
    assert "--ckpt_path last" in err
    assert "give another folder" in err
    assert "--overwrite true" in err
    assert place.read_text() == "{}"


def test_a_second_run_resumes_or_says_that_it_replaces(model, annotations, tmp_path, capsys):
    args = fit_args(model, tmp_path, *own_train(annotations))
    assert main([*args, "--trainer.max_steps=1"]) == 0
    weights = (tmp_path / "model/model.safetensors").read_bytes()
    assert main(args) == 1
    assert "is of another training run" in capsys.readouterr().err
    backup = tmp_path / "backup/last.ckpt"
    backup.parent.mkdir()
    shutil.copy(tmp_path / "checkpoints/last.ckpt", backup)
    assert main([*args, f"--ckpt_path={backup}"]) == 1
    assert "is of another training run" in capsys.readouterr().err
    assert (tmp_path / "model/model.safetensors").read_bytes() == weights
    assert main([*args, "--ckpt_path=last"]) == 0
    assert main([*args, "--overwrite=true", "--trainer.max_steps=1"]) == 0
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1


def test_a_run_that_left_no_checkpoint_starts_over_with_last(model, annotations, tmp_path):
    (tmp_path / COMPLETIONS).write_text("")
    args = fit_args(model, tmp_path, *own_train(annotations), "--trainer.max_steps=1")
    assert main([*args, "--ckpt_path=last"]) == 0


def test_an_export_that_fails_loses_no_step(model, annotations, tmp_path, capsys, monkeypatch):
    """The last step is saved before, whatever every_n_steps is."""
    args = fit_args(model, tmp_path, *own_train(annotations), "--trainer.max_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_234_567))
        assert main(args) == 1
    err = capsys.readouterr().err
    assert re.search(r"it takes \d\.\d+ MB, and 1\.23 MB are free; make room .* vrts export", err)
    assert not (tmp_path / "model").exists()
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    export = ["export", *args[1:], f"--output_dir={tmp_path / 'model'}"]
    assert main(export) == 0
    assert (tmp_path / "model/model.safetensors").is_file()
