"""Writing the trained model as a folder that transformers, peft and vrts load."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from lightning import Callback, LightningModule, Trainer

from vrts.models.module import VideoQAModule


class ExportPretrained(Callback):
    """Writes a Hugging Face folder when training ends.

    Full weights after full fine-tuning, the adapter after LoRA; with tokenizer and processor.

    Args:
        output_dir: folder to write.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, from one process."""
        if trainer.is_global_zero:
            cast(VideoQAModule, pl_module).policy.save_pretrained(self.output_dir)
