"""Checkpoint files are complete or not there, and the newest complete one is found."""

import errno
import os
import threading

import pytest
import torch

import vrts.models.checkpoints.checkpoint_io as checkpoint_files
from vrts.models.checkpoints.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO
from vrts.models.checkpoints.finding import is_complete, newest, surviving
from vrts.types import InputError

KINDS = (AtomicCheckpointIO, BackgroundCheckpointIO)


def value(path) -> float:
    return float(torch.load(path)["value"])


def save(io, path, number: float) -> None:
    io.save_checkpoint({"value": torch.tensor(number), "more": torch.zeros(10_000)}, path)


def save_all(io, path, number: float) -> None:
    save(io, path, number)
    io.teardown()


def folder_checkpoint(path, number: float) -> None:
    """As a sharded run leaves it."""
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"shard")
    (path / ".metadata").write_bytes(b"metadata")
    torch.save({"value": number}, path / "meta.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_saved_loaded_replaced_and_removed(tmp_path, kind):
    io, path = kind(), tmp_path / "new/last.ckpt"
    for number in (1.0, 2.0):
        save(io, path, number)
        assert float(io.load_checkpoint(path)["value"]) == number
    save(io, tmp_path / "new/other.ckpt", 3.0)
    io.remove_checkpoint(path)
    io.teardown()
    assert [file.name for file in path.parent.iterdir()] == ["other.ckpt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_halfway_leaves_the_older_one(tmp_path, monkeypatch, kind):
    io, path = kind(), tmp_path / "last.ckpt"
    save(io, path, 1.0)
    io.teardown()

    def fails(checkpoint, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_files.torch, "save", fails)
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*last\.ckpt \(No space"):
        save_all(io, path, 2.0)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert value(path) == 1
    save(io, path, 3.0)
    io.teardown()
    assert value(path) == 3


def test_what_is_no_matter_of_disks_is_raised_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="odd"):
        AtomicCheckpointIO().save_checkpoint({"value": Odd()}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


class Odd:
    def __reduce__(self):
        raise RuntimeError("odd")


class TestBackground:
    @pytest.fixture
    def gate(self, monkeypatch):
        """Saves wait for it."""
        gate, original = threading.Event(), torch.save

        def slow(checkpoint, file):
            assert gate.wait(60)
            original(checkpoint, file)

        monkeypatch.setattr(checkpoint_files.torch, "save", slow)
        yield gate
        gate.set()

    def test_it_is_of_the_moment_at_which_it_was_asked_for(self, tmp_path, gate):
        io, weight = BackgroundCheckpointIO(), torch.ones(3)
        io.save_checkpoint({"nested": [{"weight": weight}]}, tmp_path / "last.ckpt")
        weight.zero_()
        assert not (tmp_path / "last.ckpt").exists(), "training is not held up"
        gate.set()
        io.teardown()
        saved = torch.load(tmp_path / "last.ckpt")["nested"][0]["weight"]
        assert torch.equal(saved, torch.ones(3))

    def test_the_older_one_is_removed_after_the_newer_one_is_written(self, tmp_path, gate):
        io = BackgroundCheckpointIO()
        gate.set()
        save(io, tmp_path / "1.ckpt", 1.0)
        io.wait()
        gate.clear()
        save(io, tmp_path / "2.ckpt", 2.0)
        io.remove_checkpoint(tmp_path / "1.ckpt")
        assert value(tmp_path / "1.ckpt") == 1
        gate.set()
        io.teardown()
        assert [file.name for file in tmp_path.iterdir()] == ["2.ckpt"]

    def test_the_older_one_stays_where_the_newer_one_failed(self, tmp_path, monkeypatch):
        io = BackgroundCheckpointIO()
        save(io, tmp_path / "1.ckpt", 1.0)
        io.wait()
        (tmp_path / "file").write_text("")
        save(io, tmp_path / "file/2.ckpt", 2.0)
        io.remove_checkpoint(tmp_path / "1.ckpt")
        with pytest.raises(InputError, match=r"cannot write the checkpoint .*file/2\.ckpt"):
            save(io, tmp_path / "3.ckpt", 3.0)
        io.teardown()
        assert value(tmp_path / "1.ckpt") == 1


class TestNewest:
    def test_the_newest_last_counts(self, tmp_path):
        for index, name in enumerate(("last.ckpt", "last-v1.ckpt", "epoch=0-step=9.ckpt")):
            save(AtomicCheckpointIO(), tmp_path / name, index)
            os.utime(tmp_path / name, ns=(index, index))
        assert newest([tmp_path]) == tmp_path / "last-v1.ckpt"
        assert newest([tmp_path / "none"]) is None

    @pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
    def test_a_torn_one_is_passed_over_by_name(self, tmp_path, share):
        for index, name in enumerate(("step=1.ckpt", "step=2.ckpt", "last.ckpt")):
            save(AtomicCheckpointIO(), tmp_path / name, index)
            os.utime(tmp_path / name, ns=(index, index))
        content = (tmp_path / "last.ckpt").read_bytes()
        (tmp_path / "last.ckpt").write_bytes(content[: int(len(content) * share)])
        with pytest.warns(UserWarning, match=r"skipped .*last\.ckpt, which is damaged"):
            assert newest([tmp_path]) == tmp_path / "step=2.ckpt"
        for name in ("step=1.ckpt", "step=2.ckpt"):
            (tmp_path / name).write_bytes(b"")
        refused = pytest.raises(InputError, match=r"no checkpoint in .* is complete")
        with pytest.warns(UserWarning, match="skipped"), refused:
            newest([tmp_path])

    def test_a_folder_without_its_last_files_is_incomplete(self, tmp_path):
        folder_checkpoint(tmp_path / "last.ckpt", 1)
        assert is_complete(tmp_path / "last.ckpt")
        (tmp_path / "last.ckpt/meta.pt").write_bytes(b"PK")
        assert not is_complete(tmp_path / "last.ckpt")
        folder_checkpoint(tmp_path / "other.ckpt", 1)
        (tmp_path / "other.ckpt/.metadata").unlink()
        assert not is_complete(tmp_path / "other.ckpt")

    def test_a_swap_that_was_cut_short_is_seen_through(self, tmp_path):
        last = tmp_path / "last.ckpt"
        folder_checkpoint(tmp_path / "last.ckpt.old", 1)
        assert newest([tmp_path]) == surviving(last) == tmp_path / "last.ckpt.old"
        folder_checkpoint(tmp_path / "last.ckpt.part", 2)
        assert newest([tmp_path]) == surviving(last) == tmp_path / "last.ckpt.part"
        (tmp_path / "last.ckpt.part/meta.pt").unlink()
        assert newest([tmp_path]) == tmp_path / "last.ckpt.old"
        folder_checkpoint(last, 3)
        assert newest([tmp_path]) == surviving(last) == last


class MakesFolder:
    """Runs code where it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_file_does_not_run_whatever_is_asked_for(tmp_path, kind):
    torch.save({"value": MakesFolder(tmp_path / "marker")}, tmp_path / "last.ckpt")
    with pytest.raises(
        InputError, match=r"last\.ckpt is not a checkpoint .* code in it is never run"
    ):
        kind().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "marker").exists()
