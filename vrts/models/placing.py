"""Loading a policy's weights: whole, or on each process the part that it keeps."""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from vrts.models.checkpoints import keep_trained_only
from vrts.models.policy import Policy
from vrts.models.reference import Reference
from vrts.models.sharding import Sharder, Sharding
from vrts.types import InputError

_log = logging.getLogger(__name__)


def data_parallel(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """The dimension that weights are sharded over.

    Args:
        mesh: Lightning's, of a strategy that shards; None of another one.

    Raises:
        InputError: the strategy is to divide layers too.
    """
    if mesh is None:
        return None
    if mesh["tensor_parallel"].size() > 1:
        raise InputError(
            "trainer.strategy: tensor_parallel_size must be 1, the model is sharded by data "
            "parallel processes; use FullySharded, or set data_parallel_size to all of them"
        )
    return mesh["data_parallel"]


def load(policy: Policy, mesh: DeviceMesh | None, options: Sharding) -> None:
    """Load the weights once; where they will be sharded, their shapes only.

    Args:
        policy: to load.
        mesh: that weights are sharded over; None leaves them whole.
        options: of sharding; a warning tells where they have no effect.
    """
    if mesh is not None:
        policy.load_empty()
        return
    if options != Sharding():
        _log.warning(
            "model.sharding has no effect: trainer.strategy does not shard; put --config "
            "configs/fsdp.yaml behind the others"
        )
    policy.load()


def shard(
    module: nn.Module,
    policy: Policy,
    reference: Reference | None,
    mesh: DeviceMesh,
    options: Sharding,
    precision: str,
) -> None:
    """Leave each process its part of the weights, and its checkpoints what is trained.

    Args:
        module: that has the policy, and is saved.
        policy: as `load` left it.
        reference: with weights of its own, attached; None without one.
        mesh: one-dimensional.
        options: how weights are kept.
        precision: of Lightning's Trainer.
    """
    sharder = Sharder(mesh, options, torch.bfloat16 if precision == "bf16-mixed" else None)
    sharder(policy)
    if reference is not None:
        reference.shard(sharder)
    keep_trained_only(module)
