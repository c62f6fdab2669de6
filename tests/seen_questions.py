"""A callback that notes which questions each rank trains on."""

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class SeenQuestions(Callback):
    """Appends ``{"step", "ids", "loss"}`` to ``seen-RANK.jsonl`` after each batch."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._path = Path(trainer.default_root_dir) / f"seen-{trainer.global_rank}.jsonl"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._path is not None
        line = {
            "step": trainer.global_step,
            "ids": [sample.question.id for sample in batch],
            "loss": float(trainer.callback_metrics["train/loss"]),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
