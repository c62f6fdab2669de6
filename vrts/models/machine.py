"""What this machine can do of what is asked of the Trainer, found out before the long work."""

from __future__ import annotations

import torch
from lightning import Trainer
from lightning.fabric.connector import _convert_precision_to_unified_args
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from vrts.types import InputError


def check_precision(asked: str | int | None, trainer: Trainer) -> None:
    """Refuse a precision that Lightning replaces by another, or that the GPU only emulates.

    Args:
        asked: ``trainer.precision``; None for the default.
        trainer: made with it.

    Raises:
        InputError: the machine cannot compute in it, or only without what training needs.
    """
    got = str(trainer.precision)
    if asked is not None and got != _convert_precision_to_unified_args(asked):  # type: ignore[arg-type]
        raise InputError(
            f"trainer.precision: {asked} is not possible on this device, only {got} would be; set "
            "--trainer.precision 32-true or bf16-mixed"
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
            f"trainer.precision: {got} is not possible on {name}, which computes in no bfloat16 "
            "(compute capability 8.0 and newer do); set --trainer.precision 32-true"
        )


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that shard in other ways, or train in copies of this process.

    Args:
        trainer: is asked for its strategy.

    Raises:
        InputError: the strategy is FSDP1 or DeepSpeed, which vrts does not know how to generate
            with, or forks or spawns: what such copies learn stays in them.
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
