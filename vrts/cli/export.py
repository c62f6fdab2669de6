"""``vrts export``: the model of an existing checkpoint as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts.callbacks.checkpoints.run_folders import check_no_other_run
from vrts.callbacks.export.callback import FACTS, check_base_stays, export_model, selected
from vrts.callbacks.export.folder import prepare_target
from vrts.callbacks.export.recipe import training_facts
from vrts.cli.checkpoint_paths import find_checkpoint, keep_in_run_folder
from vrts.models.checkpoints.contents import check_same_policy
from vrts.models.checkpoints.weights import load_trained
from vrts.models.module import VideoQAModule
from vrts.types import InputError

WHOLE_PRECISIONS = ("bf16-true", "16-true")
"""Under these a run converts its weights, and so does their export."""


class VrtsTrainer(Trainer):
    """Lightning's Trainer, which replaces no other run's files, and can also export."""

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        """Train.

        Args:
            model: to train.
            train_dataloaders: in place of the data module's.
            val_dataloaders: in place of the data module's.
            datamodule: of the run's configuration.
            ckpt_path: a file that fit wrote, or a folder where it was sharded; ``last`` for the
                newest of the run, ``best`` for that of its best validation.
            weights_only: null or true; code in a checkpoint is never run.
            overwrite: replace checkpoints, curves, completions and model of an earlier run into the
                same folders, which is refused otherwise.

        Raises:
            InputError: the folders hold another run's files.
        """
        if not overwrite:
            check_no_other_run(self, ckpt_path)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        output_dir: str,
        ckpt_path: str | None = "last",
        merge: bool = False,
        weights_only: bool | None = None,
    ) -> None:
        """Write the model of a checkpoint as a Hugging Face folder.

        It takes one process on the CPU, whatever the run took.

        Args:
            model: of the run's configuration.
            datamodule: of the run's configuration; its files are not needed.
            output_dir: folder to write; one with an earlier export is replaced.
            ckpt_path: a file that fit wrote, or a folder where it was sharded; ``last`` for the
                newest of the run, ``best`` for that of its best validation.
            merge: write the full model with its LoRA adapter merged in, in the base model's dtype
                (``--model.policy.init_args.dtype float32`` for float32).
            weights_only: null or true; code in a checkpoint is never run.

        Raises:
            InputError: no such checkpoint, or of another model; the base model is missing; the
                folder holds something else, or there is no room.
        """
        assert isinstance(model, VideoQAModule)
        folder, path = Path(output_dir), Path(str(ckpt_path))
        check_base_stays(model.policy, folder, "--output_dir")
        prepare_target(folder, "--output_dir")
        model.policy.load()
        self.precision_plugin.convert_module(model)
        checkpoint = load_trained(model, path)
        check_same_policy(model.policy, checkpoint)
        for name, weight in model.named_parameters():
            if weight.requires_grad and not weight.isfinite().all():
                raise InputError(
                    f"--ckpt_path: {path} has weights that are not finite, {name} first: training "
                    "diverged, or the file is damaged; give an earlier one"
                )
        facts = checkpoint.get(FACTS) or {
            **training_facts(self, model, datamodule),
            "steps": checkpoint.get("global_step"),
            "metrics": {"training": {}, "validation": {}},
        }
        facts |= selected(checkpoint, path)
        export_model(model.policy.eval(), folder, merge, facts)
        rank_zero_info(f"wrote the model of {path} (step {facts['steps']}) to {folder}")


def prepare_export(config: Namespace) -> None:
    """Find the checkpoint, and leave of the Trainer's options what one CPU process can take.

    The configuration of the subcommand is changed; raises as `find_checkpoint`.
    """
    trainer = config.trainer
    config.ckpt_path = config.ckpt_path or "last"
    keep_in_run_folder(trainer)
    find_checkpoint(config, "export")
    one_process: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": trainer.precision if trainer.precision in WHOLE_PRECISIONS else "32-true",
        "callbacks": [],
        "logger": False,
        "plugins": None,
        "profiler": None,
        "sync_batchnorm": False,
        "enable_checkpointing": False,
    }
    trainer.update(dict_to_namespace(one_process))
