"""Trains on one process, or sharded as one of several over gloo."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.fsdp import FSDPModule

from tests.callbacks.plugins import ask
from tests.callbacks.runs import (
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
    run_prediction,
)
from vrts.models.grpo.objectives import DAPO, GRPO
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.grpo.temporal import TemporalReward
from vrts.models.module import VideoQAModule
from vrts.models.sharding import Sharding, unsharded
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.models.vlm.loading import Lora
from vrts.types import InputError

GATHERED = {"count": 0}
"""All-gathers of weights so far."""


def count_gathers() -> None:
    """Count what FSDP and the engine's copy gather; Lightning gathers by another function."""

    def counting(gather: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            GATHERED["count"] += 1
            return gather(*args, **kwargs)

        return count

    # the first is FSDP's name since torch 2.14
    for name in ("all_gather_single", "all_gather_into_tensor"):
        if hasattr(dist, name):
            setattr(dist, name, counting(getattr(dist, name)))


class Trace(Callback):
    """Losses, gradient norms before clipping, and gathers of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.gathers: list[int] = []
        self.lengths: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._before = GATHERED["count"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.gathers.append(GATHERED["count"] - self._before)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))
        length = trainer.callback_metrics.get("train/completion_length")
        self.lengths.append(float("nan") if length is None else float(length))


def build(model: Path, case: dict[str, Any]) -> VideoQAModule:
    """Module of a case."""
    lora = Lora(rank=4, alpha=8) if case.get("lora") else None
    policy = make_policy(
        model / case.get("folder", ""),
        lora=lora,
        freeze_vision=case.get("freeze_vision", True),
        gradient_checkpointing=case.get("checkpointing", False),
        head_chunk_size=case.get("chunk", 5),
        dtype=case.get("dtype", "float32"),
    )
    beta = case.get("beta", 0.1)
    reference = None
    if beta:
        reference = AdapterOff() if lora else FrozenCopy(**case.get("frozen", {}))
    adam = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)}
    return make_module(
        policy,
        lr=case.get("lr", 0.2),
        **(adam if case.get("adam") else {}),
        objective=DAPO(beta=beta) if case.get("dapo") else GRPO(beta=beta),
        reference=reference,
        sharding=Sharding(**case.get("sharding", {})),
        temporal=TemporalReward() if case.get("temporal") else None,
        num_groups=case.get("num_groups"),
        max_new_tokens=case.get("max_new_tokens", 8),
        updates_per_rollout=case.get("updates", 1),
        micro_batch_size=case.get("micro", 1),
        max_grad_norm=case.get("clip"),
    )


def train(folder: Path, model: Path, videos: dict[str, str], name: str, case: dict[str, Any]):
    """Train on the questions of a case and note what happened."""
    devices = case["devices"]
    torch.manual_seed(0)  # of the adapter
    module = build(model, case)
    asked = questions(videos["long"], case.get("count", 4))
    for index in case.get("damaged", ()):
        asked[index] = ask(f"q{index}", videos["damaged"])
    data = make_data(
        train=asked,
        batch_size=case.get("batch", 4) // devices,
        shuffle=False,
    )
    trace = Trace()
    trainer = make_trainer(
        folder,
        [trace],
        max_epochs=1,
        precision=case.get("precision", "32-true"),
        **strategy(case),
    )
    trainer.fit(module, datamodule=data)
    trained = {n: unsharded(p.detach()) for n, p in module.named_parameters() if p.requires_grad}
    sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
    if reference := getattr(module.reference, "_policy", None):
        sharded += [m for m in reference.modules() if isinstance(m, FSDPModule)]
    found = {key: getattr(trace, key) for key in ("losses", "norms", "gathers", "lengths")}
    found["sharded"] = len(sharded)
    target = f"{name}-{trainer.global_rank}"
    (folder / f"{target}.json").write_text(json.dumps(found))
    torch.save(trained, folder / f"{target}.pt")
    if case.get("export"):
        module.policy.save_pretrained(folder / f"{name}-model")


def resume(folder: Path, model: Path, videos: dict[str, str], name: str, case: dict[str, Any]):
    """Train for 4 steps; then from the checkpoint that was written after 2, as a new run."""
    losses: list[list[float]] = []
    data = {"train": questions(videos["long"], 8), "batch_size": 1, "shuffle": True}
    kept = folder / f"{name}-checkpoints"
    for path in (None, str(kept / "epoch=0-step=2.ckpt")):
        torch.manual_seed(0)
        module = build(model, case)
        trace = Trace()
        keep = ModelCheckpoint(kept, every_n_train_steps=2, save_top_k=-1)
        trainer = make_trainer(
            folder, [trace, *([keep] if path is None else [])], max_epochs=1, **strategy(case)
        )
        trainer.fit(module, datamodule=make_data(**data), ckpt_path=path)
        losses.append(trace.losses + trace.norms)
    saved = FileSystemReader(kept / "epoch=0-step=2.ckpt").read_metadata().state_dict_metadata
    found = {"losses": losses, "saved": sorted(saved)}
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(found))
    refused = ""
    other = build(model, {**case, "lora": not case.get("lora")})
    try:
        make_trainer(folder, max_epochs=1, **strategy(case)).fit(
            other, datamodule=make_data(**data), ckpt_path=path
        )
    except InputError as error:
        refused = str(error)
    found["refused"] = refused
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(found))


def answer(folder: Path, model: Path, videos: dict[str, str], name: str, case: dict[str, Any]):
    """Validate and predict; questions are asked a different number of times on each process."""
    asked = questions(videos["long"], case["count"])
    for index in case.get("damaged", ()):
        asked[index] = ask(f"q{index}", videos["damaged"])
    trainer = make_trainer(folder, **strategy(case))
    module = build(model, case)
    (result,) = trainer.validate(module, datamodule=make_data(val=asked), verbose=False)
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(result))
    options = {"num_samples": 3, "data": {"eval_batch_size": 2}, "trainer": strategy(case)}
    sharding, folder = Sharding(**case.get("sharding", {})), folder / f"{name}-predicted"
    run_prediction(folder, make_policy(model), asked, levels=(4, 8), sharding=sharding, **options)


def strategy(case: dict[str, Any]) -> dict[str, Any]:
    devices = case["devices"]
    several = DDPStrategy(timeout=timedelta(seconds=300)) if case.get("ddp") else None
    sharded = FullySharded(timeout_s=300, save_in_background=case.get("background", False))
    chosen = (several or sharded) if devices > 1 else "auto"
    return {"devices": devices, "strategy": chosen}


def run(folder: Path, model: Path, videos: dict[str, str], cases: dict[str, Any], devices: int):
    count_gathers()
    for name, case in cases.items():
        print(name, flush=True)  # noqa: T201 tells where it hangs
        what = {"resume": resume, "answer": answer}.get(case.get("do", ""), train)
        what(folder, model, videos, name, {**case, "devices": devices})
