"""Checkpoints of sharded training: replaced atomically, and refused by name."""

import os
import pickle
import resource
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import FileSystemWriter, load, save

from vrts.models.checkpoints.finding import newest
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.types import InputError


class MakesFolder:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def written(monkeypatch):
    """Let Lightning's part of saving write two files, and fail before the second where told to."""

    def save(self, checkpoint, filepath, storage_options=None):
        folder = Path(filepath)
        folder.mkdir(exist_ok=True)
        (folder / "shard").write_text(checkpoint["value"])
        if checkpoint["fails"]:
            raise OSError("no space left")
        (folder / ".metadata").write_text(checkpoint["value"])
        torch.save({}, folder / "meta.pt")

    monkeypatch.setattr(ModelParallelStrategy, "save_checkpoint", save)

    def contents(folder: Path) -> dict[str, str]:
        return {name: (folder / name).read_text() for name in ("shard", ".metadata")}

    return contents


def test_a_save_that_fails_leaves_the_checkpoint_before(tmp_path, written):
    strategy, path = FullySharded(), tmp_path / "last.ckpt"
    strategy.save_checkpoint({"value": "1", "fails": False}, path)
    with pytest.raises(OSError, match="no space"):
        strategy.save_checkpoint({"value": "2", "fails": True}, path)
    assert written(path) == {"shard": "1", ".metadata": "1"}
    strategy.save_checkpoint({"value": "3", "fails": False}, path)
    assert written(path) == {"shard": "3", ".metadata": "3"}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("left", ["last.ckpt.part", "last.ckpt.old"])
def test_what_a_killed_swap_left_is_kept_until_the_next_one_is_whole(tmp_path, written, left):
    strategy, path = FullySharded(), tmp_path / "last.ckpt"
    strategy.save_checkpoint({"value": "1", "fails": False}, path)
    path.rename(tmp_path / left)
    with pytest.raises(OSError, match="no space"):
        strategy.save_checkpoint({"value": "2", "fails": True}, path)
    assert written(path) == {"shard": "1", ".metadata": "1"}
    strategy.save_checkpoint({"value": "3", "fails": False}, path)
    assert written(path) == {"shard": "3", ".metadata": "3"}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_of_an_earlier_run_is_replaced_too(tmp_path, written):
    strategy, path = FullySharded(), tmp_path / "last.ckpt"
    path.write_text("of one process")
    for value in ("1", "2"):
        strategy.save_checkpoint({"value": value, "fails": False}, path)
        assert written(path) == {"shard": value, ".metadata": value}
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_incomplete_checkpoint_is_named(tmp_path, written):
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint, or an incomplete one"):
        FullySharded().load_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_that_was_not_sharded_is_named(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    state = {"state": {0: optimizer.state_dict()["state"][0]}}
    torch.save({"optimizer_states": [state]}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt is of a run that was not sharded"):
        FullySharded().load_checkpoint(tmp_path / "last.ckpt")


def test_code_in_the_list_of_contents_does_not_run(tmp_path):
    path = tmp_path / "last.ckpt"
    save({"state_dict": {"weight": torch.ones(3)}}, checkpoint_id=path, no_dist=True)
    torch.save({}, path / "meta.pt")
    (path / ".metadata").write_bytes(pickle.dumps(MakesFolder(tmp_path / "marker")))
    with pytest.raises(InputError, match=r"\.metadata names posix\.mkdir"):
        FullySharded().load_checkpoint(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("cut", [True, False])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, cut):
    path = tmp_path / "last.ckpt"
    save({"state_dict": {"weight": torch.ones(3)}}, checkpoint_id=path, no_dist=True)
    torch.save({}, path / "meta.pt")
    (part,) = path.glob("*.distcp")
    if cut:
        part.write_bytes(part.read_bytes()[:10])
    else:
        part.unlink()
    with pytest.raises(InputError, match=rf"incomplete: {part.name} is missing or cut off"):
        FullySharded().load_checkpoint(path)


@pytest.fixture
def alone(tmp_path):
    """A process group of one, in the place of any that an earlier test has left."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()
    (tmp_path / "group").unlink(missing_ok=True)


@pytest.fixture
def no_file_larger_than_a_page():
    """What the system then answers is as final as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_value(strategy: FullySharded, path: Path, value: float) -> torch.Tensor:
    weight = torch.full((10_000,), value)
    strategy.save_checkpoint({"state_dict": {"weight": weight}, "value": value}, path)
    return weight


def loaded_value(path: Path) -> float:
    """Of all parts of a checkpoint."""
    state = {"state_dict": {"weight": torch.zeros(10_000)}}
    load(state, checkpoint_id=path)
    (value,) = state["state_dict"]["weight"].unique().tolist()
    assert torch.load(path / "meta.pt")["value"] == value
    return value


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("background", [False, True])
class TestSaving:
    def test_a_checkpoint_is_saved_replaced_and_removed(self, tmp_path, background):
        strategy = FullySharded(save_in_background=background)
        for value in (1.0, 2.0):
            save_value(strategy, tmp_path / "last.ckpt", value)
            strategy.wait_for_saves()
            assert loaded_value(tmp_path / "last.ckpt") == value
        save_value(strategy, tmp_path / "other.ckpt", 3.0)
        strategy.remove_checkpoint(tmp_path / "last.ckpt")
        strategy.wait_for_saves()
        assert [path.name for path in tmp_path.glob("*.ckpt*")] == ["other.ckpt"]

    def test_a_link_is_replaced_and_what_it_names_stays(self, tmp_path, background):
        strategy = FullySharded(save_in_background=background)
        save_value(strategy, tmp_path / "step=1.ckpt", 1.0)
        strategy.wait_for_saves()
        (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
        save_value(strategy, tmp_path / "last.ckpt", 2.0)
        strategy.wait_for_saves()
        assert loaded_value(tmp_path / "step=1.ckpt") == 1
        assert loaded_value(tmp_path / "last.ckpt") == 2
        assert len(list(tmp_path.glob("*.ckpt*"))) == 2

    def test_a_write_that_fails_is_named_and_leaves_the_older_one(
        self, tmp_path, no_file_larger_than_a_page, background
    ):
        strategy, path = FullySharded(save_in_background=background), tmp_path / "last.ckpt"
        save_value(strategy, path, 1.0)
        strategy.wait_for_saves()
        no_file_larger_than_a_page()

        def save() -> None:
            save_value(strategy, path, 2.0)
            strategy.wait_for_saves()

        with pytest.raises(InputError, match=r"cannot write the checkpoint .*last\.ckpt \(is the"):
            save()
        assert loaded_value(path) == 1


@pytest.mark.usefixtures("alone")
class TestBackground:
    @pytest.fixture
    def gate(self, monkeypatch):
        """Writes wait for it."""
        gate, original = threading.Event(), FileSystemWriter.write_data

        def slow(*args):
            assert gate.wait(60)
            return original(*args)

        monkeypatch.setattr(FileSystemWriter, "write_data", slow)
        yield gate
        gate.set()

    def test_it_is_of_the_moment_at_which_it_was_asked_for(self, tmp_path, gate):
        strategy, path = FullySharded(save_in_background=True), tmp_path / "last.ckpt"
        weight = save_value(strategy, path, 1.0)
        weight.zero_()
        assert not path.exists(), "training is not held up"
        gate.set()
        strategy.wait_for_saves()
        assert loaded_value(path) == 1

    def test_the_older_one_is_removed_after_the_newer_one_is_written(self, tmp_path, gate):
        strategy = FullySharded(save_in_background=True)
        gate.set()
        save_value(strategy, tmp_path / "1.ckpt", 1.0)
        strategy.wait_for_saves()
        gate.clear()
        save_value(strategy, tmp_path / "2.ckpt", 2.0)
        strategy.remove_checkpoint(tmp_path / "1.ckpt")
        assert loaded_value(tmp_path / "1.ckpt") == 1
        gate.set()
        strategy.wait_for_saves()
        assert [path.name for path in tmp_path.glob("*.ckpt*")] == ["2.ckpt"]

    def test_the_older_one_stays_where_the_newer_one_failed(
        self, tmp_path, no_file_larger_than_a_page
    ):
        strategy = FullySharded(save_in_background=True)
        save_value(strategy, tmp_path / "1.ckpt", 1.0)
        strategy.wait_for_saves()
        no_file_larger_than_a_page()
        save_value(strategy, tmp_path / "2.ckpt", 2.0)
        strategy.remove_checkpoint(tmp_path / "1.ckpt")
        with pytest.raises(InputError, match=r"cannot write the checkpoint .*2\.ckpt"):
            save_value(strategy, tmp_path / "3.ckpt", 3.0)
        assert loaded_value(tmp_path / "1.ckpt") == 1

    def test_what_a_swap_has_left_stands_beside_a_link_that_leads_nowhere(self, tmp_path):
        strategy, path = FullySharded(), tmp_path / "last.ckpt"
        save_value(strategy, path, 1.0)
        path.rename(tmp_path / "last.ckpt.part")
        path.symlink_to("step=9.ckpt")
        save_value(strategy, path, 2.0)
        assert loaded_value(path) == 2
        assert [path.name for path in tmp_path.glob("*.ckpt*")] == ["last.ckpt"]

    def test_what_a_run_went_on_from_is_removed_under_the_name_it_should_have(self, tmp_path):
        """A run that was killed before a rename resumes from the folder's other name."""
        strategy = FullySharded()
        save_value(strategy, tmp_path / "1.ckpt", 1.0)
        (tmp_path / "1.ckpt").rename(tmp_path / "1.ckpt.part")
        save_value(strategy, tmp_path / "2.ckpt", 2.0)
        strategy.remove_checkpoint(tmp_path / "1.ckpt")
        assert [path.name for path in tmp_path.glob("*.ckpt*")] == ["2.ckpt"]

    def test_a_removal_that_was_cut_short_counts_for_nothing(self, tmp_path, monkeypatch):
        strategy = FullySharded()
        save_value(strategy, tmp_path / "1.ckpt", 1.0)
        save_value(strategy, tmp_path / "2.ckpt", 2.0)
        monkeypatch.setattr("vrts.models.strategies.fully_sharded.delete", lambda _: None)
        strategy.remove_checkpoint(tmp_path / "1.ckpt")
        monkeypatch.undo()
        assert newest([tmp_path]) == tmp_path / "2.ckpt"
        save_value(strategy, tmp_path / "3.ckpt", 3.0)
        assert sorted(path.name for path in tmp_path.glob("*.ckpt*")) == ["2.ckpt", "3.ckpt"]
