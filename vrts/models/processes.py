"""The processes of one run: what keeps them from meeting, and that none is left waiting."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning import Trainer
from torch.distributed import DistNetworkError, DistStoreError

from vrts.types import InputError


def end_others(trainer: Trainer) -> None:
    """End the processes that this one has started, which would wait for it until a timeout.

    Those that torchrun or srun has started end by them. In the other direction Lightning watches:
    a process that ends with an error ends the one that started it.

    Args:
        trainer: of a run that failed in this process.
    """
    launcher: Any = trainer.strategy.launcher
    if getattr(launcher, "procs", None):
        launcher.kill(signal.SIGKILL)  # they may be inside of a collective, which ends for no less


def explain(error: DistNetworkError | DistStoreError) -> InputError:
    """Say what to do where processes did not find each other."""
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
