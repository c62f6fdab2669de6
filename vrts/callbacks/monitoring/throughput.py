"""Watching the speed of training: rates and memory of every rank to the logger."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, cast

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts.callbacks.monitoring.rates import NUM_FIELDS, Interval, over_ranks, rates, tell_waiting
from vrts.data.stream import SampleStream
from vrts.models.module import VideoQAModule

_log = logging.getLogger(__name__)


class ThroughputLog(Callback):
    """Logs under ``throughput/`` how fast training is; docs/launch.md tells what to do about it.

    Of the optimizer steps since the last time: seconds of steps, rollout, update, waiting for data
    and waiting for the slowest process (``waiting_s``, see `tell_waiting`);
    ``data_share`` and ``rollout_share`` of the time; sampled tokens a second of rollout; tokens of
    prompts and completions a second of update; questions and frames a second; peak memory
    (allocated and reserved on a GPU, else what the process has resident) in 10^9 bytes. ``mfu_``
    is the share of the device's peak that the model's own operations are (`vrts.models.families.flops`), in
    the update, the reference's scoring included, and in the whole step. On more than one rank,
    each is the mean, with the worst rank's value beside it (``/min`` or ``/max``) and those of
    every rank (``/rank0``).

    All processes are slowed down by the slowest. To tell which one it is, the times of data and
    rollout are taken before the exchange at which they wait for each other. With sharded weights
    that are gathered for each token, ranks decode in step and their rollouts take equally long.

    It waits for the device once a batch, at its end, and exchanges a few numbers once an optimizer
    step; nothing within rollout or update is changed. Validation and saving are in no time here.

    Lightning's ``Throughput`` has no place for a step without questions, which it takes for a
    mistake.

    Args:
        every_n_steps: optimizer steps from one time to the next.
        peak_tflops: 10^12 operations a second that the device can do in the Trainer's precision;
            null takes `peaks.PEAK_TFLOPS`, and leaves MFU out where that has no such device.
        num_ranks_shown: with more ranks than that, no rank has numbers of its own.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 1,
        peak_tflops: PositiveFloat | None = None,
        num_ranks_shown: NonNegativeInt = 16,
    ) -> None:
        self.every_n_steps = int(every_n_steps)
        self.peak_tflops = peak_tflops and float(peak_tflops)
        self.num_ranks_shown = int(num_ranks_shown)
        self.clock: Callable[[], float] = time.perf_counter

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; of a resumed run, from its present step on."""
        self._peak_flops = self._peak(trainer)
        self._interval = Interval()
        self._logged_step = trainer.global_step
        self._waited_s = 0.0
        if not isinstance(trainer.train_dataloader, SampleStream):
            _log.warning("ThroughputLog cannot tell the time that is spent waiting for data")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when the batch has come."""
        stream = trainer.train_dataloader
        waited_s = stream.waited_s if isinstance(stream, SampleStream) else 0.0
        self._data_s, self._waited_s = waited_s - self._waited_s, waited_s
        self._start_s = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and where a step's turn has come, log it."""
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what the batch started belongs to it
        module = cast(VideoQAModule, pl_module)
        self._interval.add(module.work, self._data_s, self.clock() - self._start_s)
        # every rank makes as many steps, whatever becomes of its videos
        if trainer.global_step < self._logged_step + self.every_n_steps:
            return
        self._logged_step = trainer.global_step
        self._interval.memory_gb, self._interval.reserved_gb = memory_gb(device)
        ranks = tell_waiting(_gathered(pl_module, self._interval))
        self._interval = Interval()
        found = over_ranks([rates(r, self._peak_flops) for r in ranks], self.num_ranks_shown)
        for name, value in found.items():
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


def _gathered(module: LightningModule, own: Interval) -> Sequence[Interval]:
    """Intervals of all ranks; each has to ask."""
    row = torch.tensor(astuple(own), dtype=torch.float64, device=module.device)
    rows = module.all_gather(row)
    assert isinstance(rows, torch.Tensor)
    return [Interval(*values) for values in rows.view(-1, NUM_FIELDS).tolist()]


def memory_gb(device: torch.device) -> tuple[float, float]:
    """Peak memory in 10^9 bytes: allocated and reserved on a GPU; resident, and 0, on a CPU."""
    if device.type == "cuda":
        allocated, reserved = (
            torch.cuda.max_memory_allocated(device),
            torch.cuda.max_memory_reserved(device),
        )
        return allocated / 1e9, reserved / 1e9
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
"""10^12 operations a second in bfloat16 with float32 sums, dense: data sheets often print twice as
much, which is with half of the weights zero. The names are the driver's, without the maker's."""


def peak_flops(name: str, precision: str) -> float | None:
    """Operations a second that a GPU can do at most, or None where that is not known.

    Args:
        name: of the device, as torch gives it. A part of a card (MIG) or a laptop's has another.
        precision: the Trainer's. What is not computed in 16 bits is in no table.
    """
    if not precision.startswith(("bf16", "16")):
        return None
    tflops = PEAK_TFLOPS.get(name.removeprefix("NVIDIA "))
    return None if tflops is None else tflops * 1e12
