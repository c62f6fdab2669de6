"""Trains, validates and predicts, on one process or as one of several over gloo."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from tests.callbacks.plugins import ask
from tests.callbacks.prediction.test_writer import SCRIPT, nine
from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
    run_prediction,
    scripted,
)
from vrts.callbacks.monitoring.completion_log import CompletionLog
from vrts.models.grpo.objectives import DAPO, GRPO
from vrts.models.grpo.reference import FrozenCopy

OBJECTIVES = {"grpo": GRPO(beta=0.1), "dapo": DAPO(beta=0.0)}


class Losses(Callback):
    """Losses as they are logged: means over the processes."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def parallel(devices: int) -> dict[str, Any]:
    return {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}


def train(folder: Path, model: Path, videos: dict[str, str], name: str, devices: int) -> None:
    """Two steps of two questions, two updates in each; the second one lacks a video."""
    module = make_module(
        make_policy(model),
        lr=0.2,
        objective=OBJECTIVES[name],
        reference=FrozenCopy(),
        updates_per_rollout=2,
    )
    asked = questions(videos["long"], 4)
    asked[3] = ask("q3", videos["damaged"])
    data = make_data(train=asked, batch_size=2 // devices, shuffle=False)
    losses, history = Losses(), History()
    log = CompletionLog(str(folder / name), 1, 0)
    trainer = make_trainer(folder, [losses, history, log], max_epochs=1, **parallel(devices))
    trainer.fit(module, datamodule=data)
    rank = trainer.global_rank
    (folder / f"{name}-{rank}.json").write_text(
        json.dumps({"losses": losses.values, "ids": history.ids})
    )
    trained = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    torch.save(trained, folder / f"{name}-{rank}.pt")


def validate(folder: Path, videos: dict[str, str], count: int, devices: int) -> None:
    """Some questions, of which every third has the answer that the script gives, and a failure."""
    asked = questions(videos["long"], count)
    if count > 1:
        asked[1] = ask("q1", videos["damaged"])
    trainer = make_trainer(folder, **parallel(devices))
    (result,) = trainer.validate(
        make_module(scripted()), datamodule=make_data(val=asked), verbose=False
    )
    (folder / f"val-{count}-{trainer.global_rank}.json").write_text(json.dumps(result))


def run(folder: Path, model: Path, videos: dict[str, str], devices: int) -> None:
    for name in OBJECTIVES:
        train(folder, model, videos, name, devices)
    for count in (7, 1):
        validate(folder, videos, count, devices)
    for count in (9, 1):
        run_prediction(
            folder / f"predicted-{count}",
            scripted(SCRIPT),
            nine(videos)[:count],
            trainer=parallel(devices),
            data={"eval_batch_size": 2},
        )
