"""Trains on as many gloo processes as the job says, under FSDP1.

``python -m tests.models.flat_runs '<job as JSON>'`` is what Lightning starts again for the second
process. FSDP1 refuses CPUs where its device is not named, which Lightning does for CUDA only.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.callbacks.plugins import ask
from tests.callbacks.runs import make_data, make_trainer, questions
from tests.models.sharded_runs import Trace, build
from vrts.callbacks.export import ExportPretrained
from vrts.models.fsdp1 import FSDP1, whole_weights


class FlatTrace(Trace):
    """As for FSDP2; gradients are parts of flat ones here."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        squares = torch.stack([grad.square().sum() for grad in grads]).sum()
        if isinstance(trainer.strategy, FSDP1):
            dist.all_reduce(squares)
        self.norms.append(float(squares.sqrt()))


def allow_cpu() -> None:
    """Name the CPU as FSDP1's device."""
    construct = FullyShardedDataParallel.__init__

    def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **{**kwargs, "device_id": torch.device("cpu")})

    FullyShardedDataParallel.__init__ = on_cpu
    FSDP1._check_device = lambda self: None


def train(folder: Path, model: Path, videos: dict[str, str], name: str, case: dict[str, Any]):
    """Train on the questions of a case, in two parts where it resumes, and note what happened."""
    asked = questions(videos["long"], case.get("count", 4))
    for index in case.get("damaged", ()):
        asked[index] = ask(f"q{index}", videos["damaged"])
    trace = FlatTrace()
    for part in range(1 + bool(case.get("resume"))):
        torch.manual_seed(0)  # of the adapter
        module = build(model, case)
        data = make_data(train=asked, batch_size=2 // case["devices"], shuffle=False)
        kept = folder / f"{name}-checkpoints"
        last = case.get("resume") and part == 0
        export = ExportPretrained(str(folder / f"{name}-model"), merge=case.get("merge", False))
        callbacks = [trace, ModelCheckpoint(kept, save_last=True) if last else export]
        trainer = make_trainer(
            folder,
            callbacks,
            max_epochs=2,
            max_steps=case["resume"] if last else -1,
            limit_train_batches=case.get("count", 4) // 2,
            accumulate_grad_batches=case.get("accumulate", 1),
            gradient_clip_val=case.get("clip"),
            precision=case.get("precision", "32-true"),
            devices=case["devices"],
            strategy=strategy(case, part),
        )
        path = str(kept / "last.ckpt") if part else None
        trainer.fit(module, datamodule=data, ckpt_path=path)
    found = {key: getattr(trace, key) for key in ("losses", "norms", "lengths")}
    target = f"{name}-{trainer.global_rank}"
    root = trainer.strategy.model
    own = [p.numel() for p in module.parameters()]
    found["share"] = sum(own)
    if isinstance(root, FullyShardedDataParallel):
        with whole_weights(root):
            trained = state(module)
    else:
        trained = state(module)
    (folder / f"{target}.json").write_text(json.dumps(found))
    torch.save(trained, folder / f"{target}.pt")


def strategy(case: dict[str, Any], part: int) -> Any:
    """FSDP1, but where the case or this part of it is not sharded."""
    if case.get("sharded", True) and case.get("parts", (True, True))[part]:
        return FSDP1(timeout_s=300)
    return "ddp" if case["devices"] > 1 else "auto"


def state(module: LightningModule) -> dict[str, torch.Tensor]:
    named = module.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


def run(folder: Path, model: Path, videos: dict[str, str], cases: dict[str, Any], devices: int):
    for name, case in cases.items():
        print(name, flush=True)  # noqa: T201 tells where it hangs
        train(folder, model, videos, name, {**case, "devices": devices})


if __name__ == "__main__":
    allow_cpu()
    job = json.loads(sys.argv[1])
    run(Path(job["folder"]), Path(job["model"]), job["videos"], job["cases"], job["devices"])
