"""Checkpoints of sharded training: replaced as a whole, and refused by name."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import save

from vrts.models.strategy import FullySharded
from vrts.types import InputError


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
    with pytest.raises(InputError, match=r"last\.ckpt is no checkpoint, or an incomplete one"):
        FullySharded().load_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_that_was_not_sharded_is_named(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    torch.save({"optimizer_states": [optimizer.state_dict()]}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt is of a run that was not sharded"):
        FullySharded().load_checkpoint(tmp_path / "last.ckpt")


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
