"""The speed of training: rates and memory of every rank for the logger."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, cast

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts.data.stream import SampleStream
from vrts.models.grpo.rollouts import StepWork
from vrts.models.module import VideoQAModule

_log = logging.getLogger(__name__)

RANKS_SHOWN = 16
"""With more ranks the values of single ones are left out."""


class ThroughputLog(Callback):
    """Logs the speed of training under ``throughput/``; see docs/launch.md for remedies.

    Over the optimizer steps since the last log: seconds of steps, rollout, update, waiting for data
    and waiting for the slowest rank (``waiting_s``, see `split_waiting`); ``data_share`` and
    ``rollout_share`` of the time; sampled tokens a second of rollout; tokens of prompts and
    completions a second of update; questions and frames a second; peak memory (allocated and
    reserved on a GPU, else resident) in 10^9 bytes. ``mfu_`` is the share of the device's peak that
    the model's own operations are (`Workload`), in the update with the reference's scoring
    and in the complete step. On several ranks each is the mean, next to the worst rank's value
    (``/min`` or ``/max``) and, of up to 16, that of every rank (``/rank0``).

    The slowest rank slows down all others. To show which one it is, data and rollout are timed
    before the collective at which ranks wait for each other. With sharded weights that are gathered
    for each token, ranks decode in step and their rollouts take equally long.

    It synchronises with the device once a batch, and ranks exchange a few numbers once a log.
    Lightning's ``Throughput`` refuses a step without questions.

    Args:
        every_n_steps: optimizer steps from one log to the next.
        peak_tflops: 10^12 operations a second that the device can do in the Trainer's precision;
            null takes `PEAK_TFLOPS`, and leaves MFU out for a device that is not in it.
    """

    def __init__(
        self, every_n_steps: PositiveInt = 1, peak_tflops: PositiveFloat | None = None
    ) -> None:
        self.every_n_steps = int(every_n_steps)
        self.peak_tflops = peak_tflops and float(peak_tflops)
        self.clock: Callable[[], float] = time.perf_counter

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        self._peak_flops = self._peak(trainer)
        self._interval = Interval()
        self._logged_step = trainer.global_step
        self._waited_s = 0.0
        if not isinstance(trainer.train_dataloader, SampleStream):
            _log.warning("ThroughputLog cannot measure the time spent waiting for data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note when the batch has arrived."""
        stream = trainer.train_dataloader
        waited_s = stream.waited_s if isinstance(stream, SampleStream) else 0.0
        self._data_s, self._waited_s = waited_s - self._waited_s, waited_s
        self._start_s = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the batch, and log every n-th step."""
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels of this batch count here, not in the next one
        module = cast(VideoQAModule, pl_module)
        self._interval.add(module.work, self._data_s, self.clock() - self._start_s)
        # all ranks make the same steps, even without a usable video: the gathering below is safe
        if trainer.global_step < self._logged_step + self.every_n_steps:
            return
        self._logged_step = trainer.global_step
        self._interval.memory_gb, self._interval.reserved_gb = memory_gb(device)
        row = torch.tensor(astuple(self._interval), dtype=torch.float64, device=pl_module.device)
        rows = pl_module.all_gather(row)
        assert isinstance(rows, torch.Tensor)  # [ranks, fields], or [fields] of one rank
        ranks = [Interval(*values) for values in rows.view(-1, len(row)).tolist()]
        self._interval = Interval()
        found = [rates(rank, self._peak_flops) for rank in split_waiting(ranks)]
        for name, value in over_ranks(found).items():
            pl_module.log(f"throughput/{name}", value, batch_size=1)

    def _peak(self, trainer: Trainer) -> float | None:
        """Operations a second that the device can do; None leaves MFU out."""
        if self.peak_tflops is not None:
            return self.peak_tflops * 1e12
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(device)
        peak = peak_flops(name, str(trainer.precision))
        if peak is None:
            rank_zero_info(
                f"ThroughputLog leaves MFU out: the peak of {name} in {trainer.precision} is not "
                "known; give its peak_tflops (10^12 operations a second, dense, by the data sheet)"
            )
        return peak


@dataclass(slots=True)
class Interval:
    """Sums over the batches of some optimizer steps on one process."""

    step_s: float = 0.0
    """The sum of the four below; without validation and saving."""
    data_s: float = 0.0
    """Waiting for batches to be decoded."""
    rollout_s: float = 0.0
    """Encoding, sampling, rewarding."""
    waiting_s: float = 0.0
    """Waiting for the slowest rank after the rollout; 0 before `split_waiting`."""
    update_s: float = 0.0
    """Reference, log-probs, backward and optimizer step."""
    questions: float = 0.0
    frames: float = 0.0
    completion_tokens: float = 0.0
    """Sampled."""
    update_tokens: float = 0.0
    """Of prompts (once for G completions) and completions."""
    update_flops: float = 0.0
    step_flops: float = 0.0
    memory_gb: float = 0.0
    """Peak so far: allocated on the GPU, or resident on a CPU."""
    reserved_gb: float = 0.0
    """Peak that torch reserved on the GPU; 0 on a CPU."""

    def add(self, work: StepWork, data_s: float, batch_s: float) -> None:
        """Add a batch, which was waited for and then trained on for these times."""
        self.step_s += data_s + batch_s
        self.data_s += data_s
        self.rollout_s += work.rollout_s
        self.update_s += batch_s - work.rollout_s
        self.questions += work.num_questions
        self.frames += work.num_frames
        self.completion_tokens += work.sampled.num_tokens
        self.update_tokens += sum(
            part.num_prompt_tokens + part.num_completion_tokens for part in work.update
        )
        self.update_flops += work.update_flops
        self.step_flops += work.update_flops + work.sampled.flops


def split_waiting(ranks: Sequence[Interval]) -> list[Interval]:
    """Subtract from each rank's update the time spent waiting for the slowest rank.

    A rank that has finished its rollout waits in the first collective of the update, where clocks
    cannot separate waiting from computing. How long follows from the slowest rank's time until
    then. Over several batches of the same steps this is a lower bound.
    """
    slowest_s = max(r.data_s + r.rollout_s for r in ranks)
    waits = [min(slowest_s - r.data_s - r.rollout_s, r.update_s) for r in ranks]
    return [
        replace(r, waiting_s=wait, update_s=r.update_s - wait)
        for r, wait in zip(ranks, waits, strict=True)
    ]


def rates(interval: Interval, peak_flops: float | None) -> dict[str, float]:
    """What is logged of one rank's interval; NaN where nothing was done.

    Without the peak of the device, in operations a second, MFU is left out.
    """
    i = interval
    seconds = ("step_s", "data_s", "rollout_s", "waiting_s", "update_s")
    found = {name: getattr(i, name) for name in seconds} | {
        "data_share": _ratio(i.data_s, i.step_s),
        "rollout_share": _ratio(i.rollout_s, i.step_s),
        "rollout_tokens_per_s": _ratio(i.completion_tokens, i.rollout_s),
        "frames_per_s": _ratio(i.frames, i.step_s),
        "questions_per_s": _ratio(i.questions, i.step_s),
        "memory_gb": i.memory_gb,
    }
    if i.update_tokens:  # unknown for some policies; 0 if nothing was trained on
        found["update_tokens_per_s"] = _ratio(i.update_tokens, i.update_s)
    if i.reserved_gb:
        found["reserved_gb"] = i.reserved_gb
    if peak_flops is not None and i.update_flops:
        found["mfu_update"] = _ratio(i.update_flops, i.update_s) / peak_flops
        found["mfu_step"] = _ratio(i.step_flops, i.step_s) / peak_flops
    return found


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else math.nan


def over_ranks(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over ranks of their rates that are not NaN, the worst and, of few ranks, each value."""
    logged: dict[str, float] = {}
    for name in dict.fromkeys(name for rank in found for name in rank):
        values = {
            r: v for r, rank in enumerate(found) if math.isfinite(v := rank.get(name, math.nan))
        }
        if not values:
            continue
        logged[name] = sum(values.values()) / len(values)
        if len(found) == 1:
            continue
        worst = "min" if name.endswith("_per_s") or name.startswith("mfu") else "max"
        logged[f"{name}/{worst}"] = (max if worst == "max" else min)(values.values())
        if len(found) <= RANKS_SHOWN:
            logged |= {f"{name}/rank{r}": value for r, value in values.items()}
    return logged


def memory_gb(device: torch.device) -> tuple[float, float]:
    """Peak memory in 10^9 bytes: allocated and reserved on a GPU; resident, and 0, on a CPU."""
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device)
        return allocated / 1e9, torch.cuda.max_memory_reserved(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 0.0


PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H200 NVL": 835,
    "GH200 480GB": 990,
    "H100 80GB HBM3": 989,  # SXM
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "A100-SXM4-80GB": 312,
    "A100-SXM4-40GB": 312,
    "A100 80GB PCIe": 312,
    "A100-PCIE-40GB": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 149.7,
    "A10": 125,
    "RTX A6000": 154.8,
    "RTX 6000 Ada Generation": 364.2,
    "GeForce RTX 5090": 209.5,
    "GeForce RTX 4090": 165.2,
    "GeForce RTX 3090": 71.2,
}
"""10^12 dense operations a second in bfloat16 with float32 sums: data sheets often print twice as
much, with structured sparsity. The names are the driver's, without "NVIDIA"."""


def peak_flops(name: str, precision: str) -> float | None:
    """Peak operations a second of a GPU of that name in the Trainer's precision, None if unknown.

    A part of a card (MIG) or a laptop's has another name, and only 16 bits are in the table.
    """
    if not precision.startswith(("bf16", "16")):
        return None
    tflops = PEAK_TFLOPS.get(name.removeprefix("NVIDIA "))
    return None if tflops is None else tflops * 1e12
