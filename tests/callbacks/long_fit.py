"""Trains for a long time, on two processes with decode workers, and counts its steps."""

import os
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from vrts.callbacks.checkpoints.interruption import SaveOnInterrupt
from vrts.models.grpo.objectives import GRPO
from vrts.models.strategies.fully_sharded import FullySharded


class Count(Callback):
    def setup(self, trainer: Trainer, *_args: Any, **_options: Any) -> None:
        print(f"rank {trainer.global_rank} is {os.getpid()}", flush=True)  # noqa: T201

    def on_train_batch_end(self, trainer: Trainer, *_args: Any) -> None:
        print(f"step {trainer.global_step}", flush=True)  # noqa: T201


def run(folder: str, model: str, video: str, strategy: str) -> None:
    """Train under ``ddp`` or ``fsdp``."""
    module = make_module(make_policy(Path(model)), objective=GRPO(beta=0))
    trainer = make_trainer(
        Path(folder),
        [SaveOnInterrupt(), Count()],
        max_epochs=1000,
        devices=2,
        strategy=FullySharded(timeout_s=300) if strategy == "fsdp" else strategy,
    )
    data = make_data(train=questions(video, 4), num_workers=1)
    trainer.fit(module, datamodule=data)
