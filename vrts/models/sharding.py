"""Weights and gradients over the ranks of a run: FSDP2, and when gradients are reduced.

A sharded policy's `logprobs` is what FSDP takes for its forward: it gathers the weights that are
outside of vision blocks and decoder layers (embeddings, norms, head), each of which is a group of
its own. Sampling needs no sharded weights: see `vrts.models.engines.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from vrts.models.engines.weights import groups_of, reshard
from vrts.models.policy import Policy
from vrts.types import Clip, InputError, Question, Sample


@dataclass(frozen=True, slots=True)
class Sharding:
    """How weights are kept where the strategy shards them (Lightning's ModelParallelStrategy)."""

    keep_gathered: bool = True
    """Gather each layer once for all micro-batches of an update, which takes the memory of all
    weights in the compute dtype; false gathers it for every forward and backward."""
    sync_every_micro_batch: bool = False
    """Sum gradients over the ranks after each micro-batch, so that no rank holds those of the
    complete model; false does so once a step. Without effect on an adapter's memory."""
    cpu_offload: bool = False
    """Keep shards, gradients and optimizer states in the host's memory. On CUDA processes need a
    backend for it too: ``process_group_backend: cpu:gloo,cuda:nccl`` of the strategy."""


def data_parallel(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """The dimension of Lightning's mesh that weights are sharded over; None where none are.

    Raises:
        InputError: the strategy would shard layers by tensor parallelism too.
    """
    if mesh is None:
        return None
    if mesh["tensor_parallel"].size() > 1:
        raise InputError(
            "trainer.strategy: tensor_parallel_size must be 1, the model is sharded by data "
            "parallel processes; use FullySharded, or set data_parallel_size to all of them"
        )
    return mesh["data_parallel"]


@dataclass(frozen=True, slots=True)
class Sharder:
    """Shards policies over the ranks of a mesh."""

    mesh: DeviceMesh
    """One-dimensional."""
    options: Sharding
    compute_dtype: torch.dtype | None
    """What weights are gathered in; None takes their own. Gradients are summed in float32."""

    def __call__(self, policy: Policy) -> None:
        """Shard a policy that was loaded empty, in place, and read each rank's part of it.

        Raises:
            InputError: the policy cannot be sharded.
        """
        vision, language = policy.layers()
        offload = OffloadPolicy()
        if self.options.cpu_offload:
            offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        common: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=self.compute_dtype,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,  # else layouts would be copied, field by field
            ),
            "offload_policy": offload,
        }
        for layer in [*vision, *language]:
            fully_shard(layer, **common)
        # The head recomputes its chunks in backward, some ranks more of them than others.
        fully_shard(policy, reshard_after_forward=False, **common)
        policy.fill(torch.device("cpu" if self.options.cpu_offload else self.mesh.device_type))
        register_fsdp_forward_method(policy, "logprobs")


@contextmanager
def gathered(module: nn.Module, options: Sharding) -> Iterator[None]:
    """Context in which a sharded module's weights stay gathered; after it none are.

    They must not be: the optimizer's step changes the shards, and FSDP would compute with what it
    gathered before. Does nothing to a module that is not sharded.
    """
    groups = list(groups_of(module))
    if options.keep_gathered:
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.set_reshard_after_backward(False, recurse=False)
            group.unshard()
    try:
        yield
    finally:
        reshard(module)


class GradientSync:
    """When the gradients of a step's micro-batches are reduced over the ranks."""

    def __init__(self, strategy: Strategy, policy: Policy, options: Sharding) -> None:
        self._strategy = strategy
        self._policy = policy
        self._is_sharded = isinstance(policy, FSDPModule)
        # Gathering and reducing are collectives: all ranks have to make as many passes.
        self._in_lockstep = self._is_sharded and (
            options.sync_every_micro_batch or not options.keep_gathered
        )
        self._every = options.sync_every_micro_batch

    def num_passes(self, num_micro_batches: int) -> int:
        """Forwards and backwards this rank has to make; those beyond its own are of dummies.

        Every rank has to call it.
        """
        if self._in_lockstep:
            most = torch.tensor(num_micro_batches, device=self._strategy.root_device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            return max(int(most), 1)
        return max(num_micro_batches, 1) if self._is_sharded else num_micro_batches

    def backward(self, is_last: bool) -> AbstractContextManager[None]:
        """Context of a micro-batch's backward, `is_last` of this rank in this step."""
        if isinstance(self._policy, FSDPModule):
            self._policy.set_requires_gradient_sync(is_last or self._every)
        elif isinstance(self._strategy, DDPStrategy) and not is_last:
            return self._strategy.block_backward_sync()
        return nullcontext()


def dummy_sample() -> Sample:
    """A sample for a rank that has none: two small black frames and no text."""
    frames = torch.zeros(2, 3, 56, 56, dtype=torch.uint8, device="cpu")
    return Sample(Question("", "", ""), Clip(frames, (0, 1), fps=1.0, num_source_frames=2))


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP manages some of the module's weights."""
    return next(groups_of(module), None) is not None


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Complete weights of a module on the CPU of rank 0; nothing on the others.

    Every rank has to call it. Tensors that share memory do so in the result.
    """
    found: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in found:
            tensor = unsharded(value.detach())
            found[id(value)] = tensor.cpu() if dist.get_rank() == 0 else tensor.new_empty(0)
        state[name] = found[id(value)]
    return state if dist.get_rank() == 0 else {}


def unsharded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its shards; a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """A complete tensor, the same on all ranks, sharded as `own` is; a sharded one as it is."""
    if not isinstance(own, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
