"""The sharded policy on one device: what FSDP2 costs where there is nothing to share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from vrts.models.qwen import QwenPolicy
from vrts.models.sharding import Sharder, Sharding


@contextmanager
def sharded(policy: QwenPolicy, dtype: torch.dtype) -> Iterator[QwenPolicy]:
    """Context in which a policy is sharded over this one process.

    Args:
        policy: loaded; of no use afterwards.
        dtype: that weights are gathered in.
    """
    device = policy.device.type
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=f"file://{Path(folder) / 'store'}",
            rank=0,
            world_size=1,
        )
        try:
            mesh = init_device_mesh(device, (1,))
            Sharder(mesh, Sharding(), dtype)(policy)
            yield policy
        finally:
            dist.destroy_process_group()
