"""What each of the two processes of `benchmarks.sharding` does."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks.common import random_sample
from benchmarks.memory import allocator_peak
from benchmarks.step_vrts import SameQuestions, Variety
from vrts.models.engines.engine import Request, Result
from vrts.models.engines.native import NativeEngine
from vrts.models.grpo.objectives import GRPO
from vrts.models.module import VideoQAModule
from vrts.models.sharding import Sharder, Sharding
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate

RANKS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A way to train."""

    L: int
    """Tokens of each completion."""
    sharding: Sharding | None = None
    """None trains with DDP, where each process holds all weights."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, the same on both processes."""

    model: str
    """Folder."""
    cases: tuple[Case, ...]
    num_questions: int
    """Of a step, on each process; micro-batches are of one."""
    G: int
    num_frames: int
    side: int
    """Height and width of a frame in pixels."""
    rounds: int
    """How often every case has its turn."""
    steps: int
    """Optimizer steps that count in each turn; one more comes before them."""


def run_rank(rank: int, folder: str, port: int, plan: Plan) -> None:
    """Measure everything on one process and write it to ``FOLDER/RANK.json``."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "sharding",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "GROUP_RANK": "0",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {"load": loading(plan.model)}
    steps: list[list[dict[str, float]]] = [[] for _ in plan.cases]
    for _ in range(plan.rounds):
        for case, of_case in zip(plan.cases, steps, strict=True):
            of_case += train(plan, case, plan.steps + 1)[1:]
    # The profiler slows decoding down, so memory is measured by itself.
    peaks = [allocator_peak(partial(train, plan, case, 2)) for case in plan.cases]
    found["cases"] = [
        {"steps": of_case, "peak bytes": peak} for of_case, peak in zip(steps, peaks, strict=True)
    ]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def make_policy(model: str) -> TransformersPolicy:
    """The policy, not loaded yet."""
    return TransformersPolicy(model, PromptTemplate(preamble=""), dtype="float32")


def train(plan: Plan, case: Case, num_steps: int) -> list[dict[str, float]]:
    """Train a new model; what each step took."""
    engine = WatchedEngine()
    module = VideoQAModule(
        make_policy(plan.model),
        engine,
        rewards=[Variety()],
        objective=GRPO(beta=0.0),
        num_generations=plan.G,
        max_new_tokens=case.L,
        sharding=case.sharding,
    )
    B = plan.num_questions
    seeds = range(dist.get_rank() * B, (dist.get_rank() + 1) * B)
    samples = [random_sample(plan.num_frames, plan.side, plan.side, seed) for seed in seeds]
    with counted_gathers() as engine.gathers:
        clock = Clock(engine)
        trainer = Trainer(
            accelerator="cpu",
            devices=RANKS,
            strategy="ddp" if case.sharding is None else FullySharded(timeout_s=120),
            max_steps=num_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[clock],
        )
        trainer.fit(module, datamodule=SameQuestions(samples, num_steps))
    gc.collect()
    return clock.steps


class WatchedEngine(NativeEngine):
    """Notes the all-gathers that happen while it samples; there should be none."""

    def __init__(self) -> None:
        super().__init__()
        self.gathers: list[int] = []
        """Sizes in bytes of all so far."""
        self.num_sampling = 0
        """How many of them came while it sampled."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """See `Engine.generate`."""
        before = len(self.gathers)
        found = super().generate(requests)
        self.num_sampling += len(self.gathers) - before
        return found


class Clock(Callback):
    """Notes what each step took.

    Args:
        engine: of the module.
    """

    def __init__(self, engine: WatchedEngine) -> None:
        self.steps: list[dict[str, float]] = []
        self._engine = engine

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin together."""
        trainer.strategy.barrier()
        self._engine.num_sampling = 0
        self._before, self._start_s = len(self._engine.gathers), time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The optimizer has made its step."""
        batch_s = time.perf_counter() - self._start_s
        rollout_s: float = pl_module.work.rollout_s  # type: ignore[union-attr, assignment]
        gathered = self._engine.gathers[self._before :]
        self.steps.append(
            {
                "all-gathers": len(gathered),
                "all-gathers in sampling": self._engine.num_sampling,
                "gathered bytes": sum(gathered),
                "rollout s": rollout_s,
                "update s": batch_s - rollout_s,
                "parameter bytes": held_bytes(pl_module),
            }
        )


@contextmanager
def counted_gathers() -> Iterator[list[int]]:
    """Context that notes how many bytes each all-gather of FSDP gives."""
    # the name of torch before 2.14 is the second one
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather = getattr(dist, name)
    sizes: list[int] = []

    def counting(output_tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(output_tensor.nbytes)
        return gather(output_tensor, *args, **kwargs)

    with patch.object(dist, name, counting):
        yield sizes


def held_bytes(module: torch.nn.Module) -> int:
    """Bytes of parameters that this process holds between steps."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    return sum(p.nbytes for p in local)


def loading(model: str) -> dict[str, int]:
    """Bytes of a model, of what this process holds of it, and the most that loading takes.

    The last one is how far the process's anonymous memory grows, whoever allocates it. The file of
    the weights is mapped, and no part of that.
    """
    policy = make_policy(model)

    def load() -> None:
        policy.load_empty()
        Sharder(init_device_mesh("cpu", (RANKS,)), Sharding(), None)(policy)

    make_policy(model).load_empty()  # imports and what else comes once
    resident = resident_peak(load)
    whole = sum(p.numel() * p.element_size() for p in policy.parameters())
    return {"model": whole, "held": held_bytes(policy), "resident": resident}


def resident_peak(run: Callable[[], Any]) -> int:
    """How far this process's anonymous memory grows during a call, in bytes, by looking often."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again without growing
    before, most, over = _anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            most[0] = max(most[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return max(most[0], _anonymous_bytes()) - before


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
