"""When regular checkpoints are saved, and which of them stay."""

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.models.checkpoints.checkpoint_io import AtomicCheckpointIO, BackgroundCheckpointIO
from vrts.models.grpo.objectives import GRPO
from vrts.types import InputError


class Saves(Callback):
    """Notes at which batch, counted from 1, and after which hook a checkpoint is written."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []
        self.hook = ""
        self.batch = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.hook, self.batch = "batch", batch_idx + 1

    def on_validation_end(self, trainer, pl_module) -> None:
        self.hook = "validation"

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self.seen.append((self.batch, self.hook))


def fit(
    folder: Path, model: Path, videos, keeper: ModelCheckpoint, ckpt_path=None, validates=True,
    **options,
):  # fmt: skip
    """Four steps of two questions each."""
    saves = Saves()
    module = make_module(make_policy(model), lr=0.01, objective=GRPO(beta=0))
    trainer = make_trainer(
        folder, [keeper, saves],
        **({"max_epochs": 1, "num_sanity_val_steps": 1, "check_val_every_n_epoch": None} | options),
    )  # fmt: skip
    video = videos["long"]
    val = questions(video, 1, "v") if validates else None
    data = make_data(train=questions(video, 8), val=val, batch_size=2)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return saves.seen, trainer


@pytest.mark.parametrize("keep", [1, 2])
def test_after_the_validation_where_one_follows(keep, tmp_path, model_folder, videos):
    keeper = StepCheckpoint(every_n_steps=1, keep=keep, dirpath=str(tmp_path / "kept"))
    seen, trainer = fit(tmp_path, model_folder, videos, keeper, val_check_interval=2)
    assert seen == [(1, "batch"), (2, "validation"), (3, "batch"), (4, "validation")]
    assert trainer.callbacks[-1] is keeper
    newest = [f"step={step}.ckpt" for step in range(5 - keep, 5)]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["last.ckpt", *newest]
    last = tmp_path / "kept/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    # the run's folder may be moved
    assert str(last.readlink()) == newest[-1]


def test_the_last_step_is_saved_whenever_it_comes(tmp_path, model_folder, videos):
    keeper = StepCheckpoint(every_n_steps=3, dirpath=str(tmp_path / "kept"))
    fit(tmp_path, model_folder, videos, keeper, validates=False)
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["last.ckpt", "step=4.ckpt"]
    assert torch.load(tmp_path / "kept/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(("validates", "interval"), [(True, 3), (False, 2)])
def test_the_end_of_an_epoch_is_saved_where_nothing_is_validated_there(
    validates, interval, tmp_path, model_folder, videos
):
    """Without questions Lightning begins a validation that asks nothing."""
    keeper = StepCheckpoint(every_n_steps=4, dirpath=str(tmp_path / "kept"))
    options = {"val_check_interval": interval, "max_epochs": 1 if validates else 2}
    seen, _ = fit(tmp_path, model_folder, videos, keeper, validates=validates, **options)
    assert seen == [(4, "batch")] * options["max_epochs"]


def test_a_resumed_run_saves_at_the_same_steps(tmp_path, model_folder, videos):
    """Also after the validations that come at the same steps as in the full run."""
    options = {"val_check_interval": 3, "max_epochs": 2}
    keeper = StepCheckpoint(every_n_steps=2, dirpath=str(tmp_path / "whole"))
    whole, _ = fit(tmp_path, model_folder, videos, keeper, **options)
    assert [hook for _, hook in whole] == ["batch", "batch", "validation", "batch"]
    parts = []
    for max_steps in (4, 6, -1):
        keeper = StepCheckpoint(every_n_steps=2, dirpath=str(tmp_path / "kept"))
        path = str(tmp_path / "kept/last.ckpt") if parts else None
        seen, trainer = fit(
            tmp_path, model_folder, videos, keeper, path, max_steps=max_steps, **options
        )
        parts += seen
        assert keeper.best_k_models.keys() == {keeper.best_model_path}
    assert parts == whole
    assert trainer.global_step == 8


class TestLink:
    """`last.ckpt` in the place of whatever had the name."""

    @pytest.fixture
    def link(self, tmp_path):
        def link(target: str) -> Path:
            path = tmp_path / "last.ckpt"
            StepCheckpoint._link_checkpoint(FakeTrainer(), str(tmp_path / target), str(path))
            return path

        (tmp_path / "step=1.ckpt").write_text("1")
        (tmp_path / "step=2.ckpt").write_text("2")
        yield link
        FakeTrainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def test_of_a_link(self, link, tmp_path):
        for step in ("1", "2", "2"):
            assert link(f"step={step}.ckpt").read_text() == step
        assert len(list(tmp_path.iterdir())) == 3

    def test_of_a_file(self, link, tmp_path):
        (tmp_path / "last.ckpt").write_text("interrupted")
        assert link("step=2.ckpt").read_text() == "2"
        assert len(list(tmp_path.iterdir())) == 3

    def test_of_folders_and_what_a_swap_has_left(self, link, tmp_path):
        for end in ("", ".part", ".old"):
            (tmp_path / f"last.ckpt{end}").mkdir()
            (tmp_path / f"last.ckpt{end}/shard").write_text("interrupted")
        assert link("step=2.ckpt").read_text() == "2"
        assert len(list(tmp_path.iterdir())) == 3

    def test_a_disk_without_links_goes_without_it(self, link, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        (tmp_path / "last.ckpt").write_text("an older one")
        monkeypatch.setattr(Path, "symlink_to", refuse)
        with pytest.warns(UserWarning, match=r"cannot link .*last\.ckpt to step=2\.ckpt \(Operat"):
            link("step=2.ckpt")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step=1.ckpt", "step=2.ckpt"]

    def test_it_stays_until_the_newest_is_written(self, link, tmp_path):
        """The file of that name may be the only complete checkpoint."""
        (tmp_path / "last.ckpt").write_text("interrupted")
        FakeTrainer.strategy.checkpoint_io = io = BackgroundCheckpointIO()
        gate = threading.Event()
        io.when_saved(gate.wait, 60)
        assert link("step=2.ckpt").read_text() == "interrupted"
        gate.set()
        io.wait()
        assert (tmp_path / "last.ckpt").read_text() == "2"

    def test_it_stays_where_the_newest_cannot_be_written(self, link, tmp_path):
        (tmp_path / "last.ckpt").write_text("interrupted")
        FakeTrainer.strategy.checkpoint_io = io = BackgroundCheckpointIO()
        io.save_checkpoint({}, tmp_path / "step=1.ckpt/impossible")
        link("step=2.ckpt")
        with pytest.raises(InputError, match="cannot write the checkpoint"):
            io.wait()
        assert (tmp_path / "last.ckpt").read_text() == "interrupted"


def test_a_save_that_failed_does_not_hide_why_the_run_ended(tmp_path, model_folder, videos, caplog):
    """It is reported next to the error of the run."""

    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 1:
                raise ValueError("the run's own")

    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/step=1.ckpt.part").mkdir()  # in the way of the file
    keeper = StepCheckpoint(every_n_steps=1, dirpath=str(tmp_path / "kept"))
    module = make_module(make_policy(model_folder), lr=0.01, objective=GRPO(beta=0))
    trainer = make_trainer(
        tmp_path, [keeper, Fails()], max_epochs=1, plugins=BackgroundCheckpointIO()
    )
    data = make_data(train=questions(videos["long"], 8), batch_size=1)
    with pytest.raises(ValueError, match="the run's own"):
        trainer.fit(module, datamodule=data)
    assert "cannot write the checkpoint" in caplog.text


class FakeTrainer:
    is_global_zero = True

    class strategy:
        checkpoint_io: TorchCheckpointIO = AtomicCheckpointIO()

        @staticmethod
        def barrier() -> None:
            """Nobody else is there."""
