"""Sharding of policies over processes with FSDP2.

A sharded policy's own methods are what FSDP takes for its forward: they gather the weights that
stand outside of vision blocks and decoder layers (embeddings, norms, head), each of which gathers
its own. So parts of the model may be called on their own within them.

Gathering is work of all processes together. They take part equally often: in a rollout by the
number of tokens that the longest one needs (`_InStep`), else by doing as much on a `stand_in`
where a process has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, cast

import torch
import torch.distributed as dist
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

from vrts.models.policy import Policy
from vrts.types import Clip, Question, Sample


@dataclass(frozen=True, slots=True)
class Sharding:
    """How weights are kept where the strategy shards them (Lightning's ModelParallelStrategy)."""

    resident_rollout: bool = True
    """Gather a layer once a rollout and keep it until the update, which takes the memory of all
    weights in the precision that is computed in; false gathers every layer for every token."""
    reshard_after_forward: bool = True
    """Gather a layer again in backward; false keeps it from the update's forward on."""
    cpu_offload: bool = False
    """Keep shards, gradients and optimizer states in the host's memory. On CUDA processes need a
    backend for it too: ``process_group_backend: cpu:gloo,cuda:nccl`` of the strategy."""


@dataclass(frozen=True, slots=True)
class Sharder:
    """Shards policies over the processes of a mesh."""

    mesh: DeviceMesh
    """One-dimensional."""
    options: Sharding
    compute_dtype: torch.dtype | None
    """What weights are gathered in; None takes their own. Gradients are summed in float32."""

    def __call__(self, policy: Policy) -> None:
        """Shard a loaded policy, in place: its methods are called as before.

        Raises:
            InputError: the policy does not say what its layers are.
        """
        vision, language = policy.layers()
        layers = [*vision, *language]
        precision = MixedPrecisionPolicy(
            param_dtype=self.compute_dtype,
            reduce_dtype=torch.float32,
            # would take layouts apart and put copies together
            cast_forward_inputs=False,
        )
        offload = OffloadPolicy()
        if self.options.cpu_offload:
            offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        common: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": precision,
            "offload_policy": offload,
        }
        for layer in layers:
            fully_shard(layer, **common)
        # The head recomputes its chunks in backward, some processes more of them than others.
        fully_shard(policy, reshard_after_forward=False, **common)
        policy.fill(torch.device("cpu" if self.options.cpu_offload else self.mesh.device_type))
        for name in ("encode", "rollout", "score"):
            register_fsdp_forward_method(policy, name)
        sharded = cast(list[FSDPModule], layers)
        residency = _Residency(policy, sharded, self.options)
        for name in ("encode", "rollout", "score"):
            setattr(policy, name, residency.around(getattr(policy, name), name == "score"))
        if not self.options.resident_rollout:
            in_step = _InStep(cast(list[FSDPModule], list(language)), self.mesh)
            policy.rollout = in_step.around(policy.rollout)  # type: ignore[method-assign]

    def frozen(self) -> Sharder:
        """The same for a reference, which is asked once and then not needed."""
        return replace(self, options=replace(self.options, resident_rollout=False))


class _Residency:
    """Decides for each call of a policy's methods how long gathered weights stay."""

    def __init__(self, policy: Policy, layers: Sequence[FSDPModule], options: Sharding) -> None:
        self._policy = policy
        self._layers = layers
        self._options = options

    def around(self, method: Callable[..., Any], may_train: bool) -> Callable[..., Any]:
        """A method that sets how long weights stay before it does its work."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            trains = may_train and torch.is_grad_enabled()
            # What a rollout left is given back layer by layer as the update's forward goes on.
            stay = not (self._options.reshard_after_forward if trains else self._gives_back)
            for layer in self._layers:
                layer.set_reshard_after_forward(not stay, recurse=False)
            result = method(*args, **kwargs)
            if not trains:
                self._forget_order()
                if self._gives_back:
                    cast(FSDPModule, self._policy).reshard()
            return result

        return call

    def _forget_order(self) -> None:
        """Drop what FSDP notes for a backward that does not come: an entry a layer and token."""
        for module in (cast(FSDPModule, self._policy), *self._layers):
            state = module._get_fsdp_state()
            state._comm_ctx.post_forward_order.clear()
            for group in getattr(state, "_fsdp_param_groups", [state._fsdp_param_group]):
                group._post_forward_indices.clear()

    @property
    def _gives_back(self) -> bool:
        """Whether weights go after each use outside of the update."""
        return not self._options.resident_rollout


class _InStep:
    """Keeps processes together that decode different numbers of tokens with gathered layers.

    Before every pass of the language model a process tells the others that it goes on. One that
    has finished gathers along, pass by pass, until all have.
    """

    def __init__(self, layers: Sequence[FSDPModule], mesh: DeviceMesh) -> None:
        self._layers = layers
        self._mesh = mesh

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A rollout that ends when those of all processes have."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._announced():
                result = method(*args, **kwargs)
            while bool(self._count(going_on=False) > 0):
                for layer in self._layers:
                    layer.unshard()
                    layer.reshard()
            return result

        return call

    @contextmanager
    def _announced(self) -> Iterator[None]:
        """Context in which every pass begins with telling the others."""
        first = cast(nn.Module, self._layers[0])

        def tell(*_: Any) -> None:
            self._count(going_on=True)

        hook = first.register_forward_pre_hook(tell, prepend=True)
        try:
            yield
        finally:
            hook.remove()

    def _count(self, going_on: bool) -> torch.Tensor:
        """How many processes go on; reading it waits for them."""
        return count_processes(going_on, self._mesh)


def count_processes(flag: bool, mesh: DeviceMesh) -> torch.Tensor:
    """On how many processes of a mesh something is so; all of them have to ask.

    Returns:
        One number, on the mesh's device.
    """
    count = torch.tensor(int(flag), device=mesh.device_type)
    dist.all_reduce(count, group=mesh.get_group())
    return count


def stand_in(question: Question | None = None) -> Sample:
    """A sample for a process that has none: two small black frames and as good as no text.

    Args:
        question: one of the batch, where rewards will be asked about it.
    """
    frames = torch.zeros(2, 3, 56, 56, dtype=torch.uint8)
    clip = Clip(frames, (0, 1), fps=1.0, num_source_frames=2)
    asked = replace(question, text="") if question else Question("", "", "")
    return Sample(asked, clip)


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Whole weights of a module on the CPU of the first process; nothing on the others.

    Every process has to call it. Tensors that share memory do so in the result.
    """
    first = dist.get_rank() == 0
    whole: dict[int, torch.Tensor | None] = {}
    state: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in whole:
            tensor = unsharded(value.detach())
            whole[id(value)] = tensor.cpu() if first else None
        if (kept := whole[id(value)]) is not None:
            state[name] = kept
    return state


def unsharded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its shards, which every process has to ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as another one is.

    Args:
        tensor: the same on all processes.
        own: decides.
    """
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
