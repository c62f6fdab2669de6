"""Trains with validation, on one process or as one of several over gloo."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from tests.callbacks.plugins import ask
from tests.callbacks.runs import make_data, make_module, make_policy, make_trainer, questions
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.callbacks.export.callback import ExportPretrained
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.reference import AdapterOff
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.models.vlm.loading import Lora
from vrts.types import Prediction

STRATEGIES = ("ddp", "fsdp")


class Trace(Callback):
    """Losses, as means over the processes, and what each validation found."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.found: list[dict[str, float]] = []
        self.depths: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        count = pl_module._evaluation.count

        def counting(predictions: Sequence[Prediction]) -> None:
            if not trainer.sanity_checking:
                self.depths += [len(prediction.rounds) for prediction in predictions]
            count(predictions)

        pl_module._evaluation.count = counting

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self.found.append({n: float(metrics[n]) for n in metrics if n.startswith("val/")})


def train(folder: Path, model: Path, videos: dict[str, str], name: str, devices: int) -> None:
    """Four batches of two questions, a validation of five or one after every second one."""
    torch.manual_seed(0)  # of the adapter
    sharded = name.startswith("fsdp")
    lora = Lora(rank=4, alpha=8)
    module = make_module(
        make_policy(model, lora=lora, gradient_checkpointing=True),
        lr=0.2,
        objective=GRPO(beta=0.1),
        reference=AdapterOff(),
        max_new_tokens=24,
    )
    validated = [ask(f"v{i}", videos["long"], "ABC"[i % 3]) for i in range(5)]
    validated[2] = ask("v2", videos["damaged"])
    validated[3] = ask("v3", videos["short"], "B")
    if name.endswith("alone"):
        del validated[1:]
    data = make_data(
        train=questions(videos["long"], 8),
        val=validated,
        batch_size=2 // devices,
        eval_batch_size=2,
        shuffle=False,
    )
    trace = Trace()
    kept = folder / f"{name}-kept"
    trainer = make_trainer(
        folder,
        [
            StepCheckpoint(every_n_steps=2, keep=2, dirpath=str(kept)),
            SparseToDense([4, 8, 16], 3),
            trace,
            ModelCheckpoint(
                kept, "best-{step}", monitor="val/accuracy", mode="max",
                save_on_train_epoch_end=False,
            ),
            EarlyStopping("val/accuracy", mode="max", patience=9),
            ExportPretrained(str(folder / f"{name}-model")),
        ],
        max_epochs=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        devices=devices,
        strategy="auto" if devices == 1 else FullySharded(timeout_s=300) if sharded else "ddp",
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    found = {key: getattr(trace, key) for key in ("losses", "found", "depths")}
    found["kept"] = sorted(path.name for path in kept.iterdir())
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(found))


def run(folder: Path, model: Path, videos: dict[str, str], devices: int) -> None:
    for strategy in STRATEGIES[: None if devices > 1 else 1]:  # one process needs none
        for name in (strategy, f"{strategy}-alone"):
            print(name, flush=True)  # noqa: T201 tells where it hangs
            train(folder, model, videos, name, devices)
