"""Runs of the real Trainer on the tiny model or a script, with small real videos."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.callbacks.plugins import FragileDecoder, QuestionList, ScriptedPolicy, TextReward, ask
from tools.tiny.model import build_model_folder
from vrts.callbacks.monitoring.curves import POINTS
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.data.datamodule import VideoQADataModule
from vrts.data.video.resolution import Resolution
from vrts.models.checkpoints.finding import REST, newest
from vrts.models.module import VideoQAModule
from vrts.models.policy import Policy
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Question

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SMALL = Resolution(min_pixels=56 * 56, max_pixels=56 * 56)


def build_model(folder: Path) -> Path:
    """A tiny model for which one token in ten ends a completion, so that lengths differ."""
    build_model_folder(folder, seed=0)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    config["eos_token_id"] = [*config["eos_token_id"], *range(300, 360)]
    path.write_text(json.dumps(config))
    return folder


def make_videos(folder: Path, make_video: Callable[..., str]) -> dict[str, str]:
    """Paths by name: ``long`` and ``fragile`` of 16 frames, ``short`` of 6, ``damaged``."""
    size = (56, 56)
    (folder / "damaged.mp4").write_bytes(b"no video at all" * 50)
    return {
        "long": make_video(folder / "long.mp4", size=size),
        "fragile": make_video(folder / "fragile.mp4", size=size),
        "short": make_video(folder / "short.mp4", num_frames=6, size=size),
        "damaged": str(folder / "damaged.mp4"),
    }


def make_policy(folder: Path, **options: Any) -> TransformersPolicy:
    """The model of a folder in float32, with short prompts."""
    template = PromptTemplate(preamble="", multiple_choice="")
    return TransformersPolicy(str(folder), **({"prompt": template, "dtype": "float32"} | options))


def make_module(policy: Policy, lr: float = 0.05, **options: Any) -> VideoQAModule:
    """A module whose gradient can be read off its steps: SGD without momentum."""
    defaults = {
        "rewards": [TextReward()],
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=lr),
        "num_generations": 4,
        "max_new_tokens": 8,
    }
    return VideoQAModule(policy, **(defaults | options))


def make_data(**options: Any) -> VideoQADataModule:
    """A data module that decodes in the calling process; readers may be lists of questions."""
    defaults = {"decoder": FragileDecoder(), "resolution": SMALL, "num_frames": 4, "num_workers": 0}
    for name in ("train", "val", "test", "predict"):
        if isinstance(options.get(name), list):
            options[name] = QuestionList(options[name])
    return VideoQADataModule(**(defaults | options))


def make_trainer(folder: Path, callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    """A silent Trainer that keeps no checkpoint unless a callback does."""
    keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = QUIET | {"default_root_dir": str(folder), "enable_checkpointing": keeps}
    return Trainer(callbacks=list(callbacks), **(defaults | options))


def questions(video: str, count: int, prefix: str = "q") -> list[Question]:
    """Questions about one video, with different right answers."""
    return [ask(f"{prefix}{i}", video, "ABC"[i % 3]) for i in range(count)]


class History(Callback):
    """What a training run did, step by step; losses without rounding."""

    def __init__(self) -> None:
        self.ids: list[tuple[str, ...]] = []
        self.losses: list[float] = []
        self.steps: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ids.append(tuple(sample.question.id for sample in batch))
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.steps.append(trainer.global_step)


def run_prediction(
    folder: Path,
    policy: Policy,
    asked: list[Question],
    levels: Sequence[int] | None = (4, 8, 16),
    num_samples: int | None = 3,
    trainer: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    s2d: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Predict into a folder."""
    module = make_module(policy, **options)
    callbacks: list[Callback] = [PredictionWriter(str(folder))]
    if levels is not None:
        callbacks.insert(0, SparseToDense(list(levels), num_samples, **(s2d or {})))
    runner = make_trainer(folder, callbacks, **(trainer or {}))
    runner.predict(
        module, datamodule=make_data(predict=asked, **(data or {})), return_predictions=False
    )


def predict(
    folder: Path, policy: Policy, asked: list[Question], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Predict in one process; what the run wrote: lines and metrics."""
    run_prediction(folder, policy, asked, **options)
    return read_predictions(folder), json.loads((folder / "metrics.json").read_text())


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl, each of which must be whole."""
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def curves(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged at each step, as the newest checkpoint of its folder holds it."""
    path = newest([folder / "checkpoints"])
    assert path is not None
    return torch.load(path / REST if path.is_dir() else path, weights_only=True)[POINTS]


def by_id(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Lines by question, each of which must come once."""
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def scripted(script: dict[str, dict[int, str]] | None = None, **options: Any) -> ScriptedPolicy:
    """A policy that answers by a script."""
    return ScriptedPolicy(script, **options)
