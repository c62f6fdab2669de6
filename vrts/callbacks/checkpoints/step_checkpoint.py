"""Regular checkpoints of a training run, which include the results of validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.callbacks.trainer import move_last
from vrts.files.writing import GONE, OLD, PART, delete
from vrts.models.strategies.fully_sharded import wait_for_saves, when_saved

_log = logging.getLogger(__name__)

NEW = ".new"
"""Suffix of a link that is about to replace another one."""


class StepCheckpoint(ModelCheckpoint):
    """Saves every n optimizer steps and at the end. ``last.ckpt`` links to the newest of k.

    If a validation follows the step, it is saved after that, with the best accuracy so far and the
    patience of an early stop. Lightning's ModelCheckpoint saves before, and a run that resumes from
    there leaves the validation out.

    Args:
        every_n_steps: optimizer steps from one checkpoint to the next.
        keep: k; older ones are removed, each when a newer one is complete.
        dirpath: folder; ``checkpoints`` in ``trainer.default_root_dir`` where null.
    """

    def __init__(
        self, every_n_steps: PositiveInt = 50, keep: PositiveInt = 1, dirpath: str | None = None
    ) -> None:
        super().__init__(
            dirpath,
            # not Lightning's name: another ModelCheckpoint would write over and remove these
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=int(keep),
            save_last="link",
            every_n_train_steps=int(every_n_steps),
            save_on_train_epoch_end=False,
            enable_version_counter=False,  # a resumed run continues with its last.ckpt
        )
        self._first_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Come after all other callbacks, so that their newest state is saved."""
        super().setup(trainer, pl_module, stage)
        move_last(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that the run resumes after."""
        super().on_train_start(trainer, pl_module)
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save after every n-th step, unless a validation follows."""
        if not validation_follows(trainer):
            self._save_every_n(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step before, if that was left until now."""
        self._save_every_n(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Finish what is being saved; if that fails too, the run's own error is the one raised."""
        super().on_exception(trainer, pl_module, exception)
        try:
            wait_for_saves(trainer.strategy)
        except Exception as error:  # noqa: BLE001  anything that writing raises
            _log.error("%s", error)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, unless it is saved or this run has made none."""
        if trainer.global_step > self._first_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: steps are counted, not epochs."""

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        """Link ``last.ckpt`` to the newest checkpoint atomically.

        Lightning deletes the old one first. Of a folder, as an interrupted sharded run writes it, a
        kill meanwhile would leave a part that looks complete.
        """
        if trainer.is_global_zero:
            when_saved(trainer.strategy, _link, Path(linkpath), Path(filepath))
        trainer.strategy.barrier()

    def _save_every_n(self, trainer: Trainer) -> None:
        if trainer.global_step % self._every_n_train_steps == 0:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self._should_skip_saving_checkpoint(trainer):
            return  # in a sanity check, or where this step is saved already
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)


def _link(link: Path, target: Path) -> None:
    """Make a relative link, so that the run's folder may be moved."""
    fresh, gone, *old = (link.with_name(link.name + end) for end in (NEW, GONE, PART, OLD))
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(target.relative_to(link.parent))
    except OSError as error:
        delete(link)  # an older checkpoint, which would be taken for the newest
        rank_zero_warn(
            f"cannot link {link} to {target.name} ({error.strerror}), so it is left out; "
            "--ckpt_path last finds the newest checkpoint without it"
        )
        return
    if link.is_dir() and not link.is_symlink():
        link.replace(gone)
    fresh.replace(link)
    # a broken link would let the leftovers of an interrupted swap count as the checkpoint
    for left in (gone, *old):
        delete(left)


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation follows the batch of this `on_train_batch_end`.

    Requires that ``trainer.val_check_interval`` counts batches, as `check_validation` does.
    """
    interval = getattr(trainer, "val_check_interval", None)  # has none by time
    if not isinstance(interval, int) or trainer.check_val_every_n_epoch is not None:
        return False
    # the interval is set even if there is nothing to validate on
    is_possible = trainer.enable_validation and any(trainer.num_val_batches)
    return is_possible and (trainer.fit_loop.total_batch_idx + 1) % interval == 0
