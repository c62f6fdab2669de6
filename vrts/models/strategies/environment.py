"""What the Trainer's options need of this machine, checked before the long work."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.connector import _convert_precision_to_unified_args
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.distributed import DistNetworkError, DistStoreError

from vrts.types import InputError

MIN_DRIVER = {"12": 525, "13": 580}
"""NVIDIA drivers that torch's builds need, by the major version of their CUDA."""

DEVICES = (Path("/dev/nvidia0"), Path("/dev/dxg"))
"""One of them exists where the machine has a GPU: on Linux, and on Linux in Windows."""

DRIVER = Path("/proc/driver/nvidia/version")


def check_precision(requested: str | int | None, trainer: Trainer) -> None:
    """Refuse a precision that Lightning replaced by another, or that the GPU only emulates.

    Args:
        requested: ``trainer.precision``; None for the default.
        trainer: made with it.

    Raises:
        InputError: the machine cannot compute in it, or only slowly.
    """
    got = str(trainer.precision)
    if requested is not None and got != _convert_precision_to_unified_args(requested):  # type: ignore[arg-type]
        raise InputError(
            f"trainer.precision: {requested} is not possible on this device, only {got} would be; "
            "set --trainer.precision 32-true or bf16-mixed"
        )
    device = trainer.strategy.root_device
    if got.startswith("16") and device.type == "cpu":
        raise InputError(
            f"trainer.precision: {got} is not possible on a CPU, where float16 is slow and "
            "overflows; set --trainer.precision 32-true or bf16-mixed"
        )
    if not got.startswith("bf16") or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"trainer.precision: {got} is not possible on {name}, which does not support bfloat16 "
            "(compute capability 8.0 and newer do); set --trainer.precision 32-true"
        )


def why_no_cuda() -> str | None:
    """Why torch cannot use a GPU that this machine has, and the remedy; None where it has none.

    Where CUDA is requested and torch finds none, Lightning reports only that there is none.
    """
    if torch.cuda.is_available() or not any(path.exists() for path in DEVICES):
        return None
    build = torch.version.cuda
    if build is None:
        return f"this machine has a GPU, but torch {torch.__version__} is a build without CUDA"
    text = DRIVER.read_text(encoding="utf-8") if DRIVER.is_file() else ""
    found = re.search(r"\s(\d{3,})\.\d+", text)
    needed = MIN_DRIVER.get(build.partition(".")[0])
    if found and needed and int(found[1]) < needed:
        return (
            f"this machine has a GPU, but torch {torch.__version__} (CUDA {build}) needs an NVIDIA "
            f"driver of {needed} or later, and this one is {found[0].strip()}; update the driver, "
            "or install the cu126 build of torch, which runs on drivers from 525 on"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        return f"this machine has a GPU, but torch {torch.__version__} cannot use it: {reason}"
    return None


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that shard in other ways, or train in copies of this process.

    Raises:
        InputError: the strategy is FSDP1 or DeepSpeed, which vrts cannot sample with, or forks or
            spawns: what such copies learn stays in them.
    """
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise InputError(
            f"trainer.strategy: vrts shards with FSDP2 and not with "
            f"{type(trainer.strategy).__name__}; put --config configs/fsdp.yaml after the others"
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            "trainer.strategy: spawned and forked processes (ddp_spawn, ddp_fork, ddp_notebook) "
            "are not supported; set --trainer.strategy ddp, which starts them as commands"
        )


def end_others(trainer: Trainer) -> None:
    """End the processes that a failed run has started, which would wait for it until a timeout.

    Those of torchrun or srun are ended by these. The other direction is Lightning's: a process that
    ends with an error ends the one that started it.
    """
    launcher: Any = trainer.strategy.launcher
    if getattr(launcher, "procs", None):
        launcher.kill(signal.SIGKILL)  # nothing less ends a process inside a collective


def explain(error: DistNetworkError | DistStoreError) -> InputError:
    """Make a message with the remedy, where processes did not find each other."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = os.environ.get("MASTER_PORT", "?")
    if "EADDRINUSE" in str(error):
        return InputError(
            f"MASTER_PORT: port {port} is in use on this machine; set MASTER_PORT (torchrun: "
            "--master_port) to another one on all nodes, or unset it on one node"
        )
    reason = str(error).partition("\n")[0]
    return InputError(
        f"MASTER_ADDR: the processes did not meet at {address}, port {port} ({reason}); check that "
        "all nodes were started, with the same MASTER_ADDR, MASTER_PORT and --trainer.num_nodes, "
        "and can reach that address"
    )
