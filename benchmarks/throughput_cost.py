"""What `ThroughputLog` costs: steps of one training run with it and without it, by turns.

``python -m benchmarks.throughput_cost`` takes about two minutes on a CPU. Of one run, every second
step is made with the callback, so that what disturbs the machine disturbs both. A step is taken
from the beginning of one batch to that of the next one, the callback's own work included. Since
that work is far smaller than what steps differ by, it is also timed by itself, in seconds of this
thread's CPU time, which other processes of the machine leave alone.

On a CPU of one process there is neither the wait for the device nor the exchange with other ranks
that the callback makes once a batch and once a step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from benchmarks.common import SMALL, Shape, random_policy, random_sample, report
from benchmarks.step_vrts import SameQuestions, Variety
from vrts.callbacks.monitoring.throughput import ThroughputLog
from vrts.models.grpo.objectives import GRPO
from vrts.models.module import VideoQAModule

PAIRS = 12
"""Steps with the callback, and as many without it; four more come first."""
G, L, NUM_FRAMES, SIDE = 4, 16, 4, 112


class EverySecondStep(Callback):
    """Lets a callback see every second batch, and notes what all of them take.

    Args:
        inner: the callback.
    """

    def __init__(self, inner: ThroughputLog) -> None:
        self._inner = inner
        self._marks: list[tuple[float, float]] = []
        self.inner_s: list[float] = []
        """CPU seconds of the callback, of the batches that it saw."""

    @property
    def steps(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Wall and CPU seconds of steps with the callback, and of those without it."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairs]
        return steps[::2], steps[1::2]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand it on."""
        self._inner.on_train_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A step begins."""
        self._marks.append((time.perf_counter(), time.thread_time()))
        if batch_idx % 2 == 0:
            self.inner_s.append(0.0)
            with self._timed():
                self._inner.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The optimizer has made its step."""
        if batch_idx % 2 == 0:
            with self._timed():
                self._inner.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start_s = time.thread_time()
        yield
        self.inner_s[-1] += time.thread_time() - start_s


def measure(shape: Shape, pairs: int) -> dict[str, float]:
    """Train and compare.

    Args:
        shape: of the model.
        pairs: steps of each kind.
    """
    policy = random_policy(shape, torch.device("cpu"), torch.float32)
    module = VideoQAModule(
        policy,
        rewards=[Variety()],
        objective=GRPO(beta=0.0),
        num_generations=G,
        max_new_tokens=L,
    )
    num_steps = 2 * (pairs + 2) + 1
    turns = EverySecondStep(ThroughputLog(peak_tflops=1.0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=num_steps,
            logger=CSVLogger(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[turns],
        )
        sample = random_sample(NUM_FRAMES, SIDE, SIDE, seed=0)
        trainer.fit(module, datamodule=SameQuestions([sample], num_steps))
    with_it, without = (steps[2 : 2 + pairs] for steps in turns.steps)
    inner_s = statistics.median(turns.inner_s[2 : 2 + pairs])
    step_cpu_s = statistics.median(cpu_s for _, cpu_s in without)
    both = list(zip(with_it, without, strict=True))
    return {
        "step s with": statistics.median(wall_s for wall_s, _ in with_it),
        "step s without": statistics.median(wall_s for wall_s, _ in without),
        "ratio": statistics.median(a[0] / b[0] for a, b in both),
        "ratio of CPU s": statistics.median(a[1] / b[1] for a, b in both),
        "step CPU s": step_cpu_s,
        "callback CPU ms": 1e3 * inner_s,
        "callback, share of a step": inner_s / step_cpu_s,
    }


def main() -> None:
    """Measure with one thread."""
    torch.set_num_threads(1)
    report(
        "throughput_cost",
        [measure(SMALL, PAIRS)],
        shape=SMALL,
        dtype="float32",
        pairs=PAIRS,
        G=G,
        L=L,
        frames=f"{NUM_FRAMES} of {SIDE}x{SIDE}",
    )


if __name__ == "__main__":
    main()
