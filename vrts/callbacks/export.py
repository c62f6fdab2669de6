"""Writing the trained model as a folder that transformers, peft and vrts load."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from lightning import Callback, LightningModule, Trainer

from vrts.callbacks.folders import make_folder
from vrts.models.module import VideoQAModule


class ExportPretrained(Callback):
    """Writes a Hugging Face folder when training ends.

    Full weights after full fine-tuning, the adapter after LoRA; with tokenizer and processor.

    Args:
        output_dir: folder to write; ``model`` in ``trainer.default_root_dir`` where null.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder now: training may take days, and its end is no time to miss one.

        Raises:
            InputError: the folder cannot be made.
        """
        if stage == "fit" and trainer.is_global_zero:
            make_folder(self._folder(trainer), "ExportPretrained.output_dir")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, from one process; all take part where weights are sharded."""
        module = cast(VideoQAModule, pl_module)
        if trainer.is_global_zero or module.is_sharded:
            module.policy.save_pretrained(self._folder(trainer))

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.output_dir or Path(trainer.default_root_dir) / "model")
