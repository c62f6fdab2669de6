"""A second set of a model's weights, in the compute dtype, for sampling.

Weights that have that dtype already and are unsharded on this device are shared, not copied. The
rest is copied once, and refreshed after each optimizer step: where weights are sharded (FSDP2) by
one gather of each shard group, or, where only an adapter is trained, by one gather in all. Nothing
communicates between two refreshes, so ranks sample at their own pace.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from vrts.models.engines.lora import MergedLayer, SharedInput, merge_layers, share_products
from vrts.models.quantizing import quantization_states
from vrts.types import InputError


class Replica:
    """A copy of a policy's model, made before the policy is sharded: FSDP cannot be copied.

    Args:
        policy: loaded; its parameters may still be on the meta device.
        part: the model in it, to be copied.
        device: of the copy.
        dtype: of the copy; None keeps each parameter's own.
        will_shard: whether the policy is going to be sharded, so that nothing can be shared.
        merge_lora: see `NativeEngine`.

    Raises:
        InputError: the device has no room for the copy.
    """

    def __init__(
        self,
        policy: nn.Module,
        part: nn.Module,
        device: torch.device,
        dtype: torch.dtype | None,
        will_shard: bool,
        merge_lora: bool = False,
    ) -> None:
        self._path = next(name for name, module in policy.named_modules() if module is part)
        self._is_fresh = False
        parameters = list(part.parameters())  # tied ones once
        # packed 4-bit weights have no other dtype, and are shared with what unpacks them
        copied = [
            p
            for p in parameters
            if will_shard or (p.is_floating_point() and (dtype or p.dtype) != p.dtype)
        ]
        _check_room(sum(p.numel() * (dtype or p.dtype).itemsize for p in copied), device)
        memo: dict[int, Any] = {id(p): p for p in (*parameters, *quantization_states(part))}
        for p in copied:
            new = torch.empty(p.shape, dtype=dtype or p.dtype, device=device)
            memo[id(p)] = nn.Parameter(new, requires_grad=False)
        own = {id(memo[id(p)]) for p in copied}
        self.model: nn.Module = copy.deepcopy(part, memo).eval()
        for module in self.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                # It saves the state of random generators before each layer, which copies from the
                # device and cannot be part of a CUDA graph.
                module.gradient_checkpointing = False  # type: ignore[assignment]
        self._own = {n: p for n, p in self.model.named_parameters() if id(p) in own}
        """Parameters that are not the policy's own; tied ones once."""
        self._merges = merge_lora
        self._products: list[SharedInput] | list[MergedLayer] | None = None

    @torch.no_grad()
    def refresh(self, policy: nn.Module) -> None:
        """Copy the policy's weights, all the first time and then those that are trained.

        Where the policy is sharded by now, every rank has to call this.
        """
        source = policy.get_submodule(self._path)
        named = dict(source.named_parameters())
        names = [n for n in self._own if not self._is_fresh or named[n].requires_grad]
        if any(isinstance(named[n], DTensor) for n in names):
            # One gather holds all of them a second time: fine for an adapter, not for a full model.
            largest = max(p.numel() for p in named.values())
            if self._is_fresh and sum(named[n].numel() for n in names) <= largest:
                _gather_at_once({n: named[n] for n in names}, self._own)
            else:
                _gather_by_group(policy, f"{self._path}.", self._own, set(names))
        else:
            for name in names:
                self._own[name].copy_(named[name])
        if not self._is_fresh:
            self._take_buffers(source)
        if self._products is None:  # not before weights are where they belong
            self._products = (merge_layers if self._merges else share_products)(self.model)
        for product in self._products:
            product.refresh()
        self._is_fresh = True

    def merge_rounding(self) -> float:
        """Share of the adapter's update that rounding removes; 0 where none is merged."""
        layers = [x for x in self._products or () if isinstance(x, MergedLayer)]
        error, update = (sum(float(layer.norms[i]) for layer in layers) for i in (0, 1))
        return (error / update) ** 0.5 if update else 0.0

    def move(self, device: torch.device) -> None:
        """Move what is not shared with the policy."""
        with torch.inference_mode(False):  # else no later refresh could write
            nn.ParameterList(self._own.values()).to(device)  # in place
            for product in self._products or ():
                product.move(device)

    def _take_buffers(self, source: nn.Module) -> None:
        """Buffers that were made before the source had its weights and its place."""
        device = next(self.model.parameters()).device
        for (path, old), new in zip(
            list(self.model.named_buffers()), source.buffers(), strict=True
        ):
            owner, _, name = path.rpartition(".")
            module = self.model.get_submodule(owner)
            # rotary frequencies stay in float32
            module._buffers[name] = new.detach().to(device, old.dtype, copy=True)


def _check_room(num_bytes: int, device: torch.device) -> None:
    """Raise InputError where the device has no room for a copy."""
    if device.type != "cuda" or not num_bytes:
        return
    free, total = torch.cuda.mem_get_info(device)
    if num_bytes > free:
        raise InputError(
            f"model.engine: sampling needs a copy of all weights of {num_bytes / 1e9:.1f} GB on "
            f"each device, which has {free / 1e9:.1f} of {total / 1e9:.1f} GB free; take a device "
            "with more memory, a smaller model, or LoRA on bfloat16 weights"
        )


def _gather_by_group(
    policy: nn.Module, prefix: str, target: Mapping[str, nn.Parameter], names: set[str]
) -> None:
    """Copy sharded parameters, one FSDP group after the other.

    `names` and those of `target` are within the part of the policy that has the prefix.
    """
    reshard(policy)  # else a gathered copy from before the optimizer's step would be read
    missing = set(names)
    for path, module in reversed(list(policy.named_modules())):
        if not isinstance(module, FSDPModule):
            continue
        module.unshard()
        # inner groups come first, and are sharded again by now
        for full, parameter in cast(nn.Module, module).named_parameters(prefix=path):
            name = full.removeprefix(prefix)
            if name in missing and not isinstance(parameter, DTensor):
                target[name].copy_(parameter)
                missing.discard(name)
        module.reshard()
    assert not missing, missing


def _gather_at_once(source: Mapping[str, nn.Parameter], target: Mapping[str, nn.Parameter]) -> None:
    """Copy the small sharded parameters of an adapter by one all-gather."""
    shards = {n: cast(DTensor, p) for n, p in source.items()}
    mesh = next(iter(shards.values())).device_mesh
    assert all(s.placements in ((Shard(0),), (Replicate(),)) for s in shards.values())
    ranks, device = mesh.size(), target[next(iter(shards))].device
    # FSDP gives every rank ceil(rows / ranks) rows, the last ones fewer: padded here.
    rows = {n: -(-s.shape[0] // ranks) for n, s in shards.items()}
    padded = []
    for name, shard in shards.items():
        local = shard.to_local().to(device, target[name].dtype)
        own = local.new_zeros(rows[name], *shard.shape[1:])
        own[: len(local)] = local
        padded.append(own.flatten())
    flat = torch.cat(padded)
    every = flat.new_empty(ranks * len(flat))
    dist.all_gather_into_tensor(every, flat, group=mesh.get_group())
    start = 0
    for name, shard in shards.items():
        size = rows[name] * shard.shape[1:].numel()
        part = every.view(ranks, -1)[:, start : start + size]  # [ranks, rows * columns]
        full = part.reshape(ranks * rows[name], *shard.shape[1:])[: shard.shape[0]]
        target[name].copy_(full)
        start += size


def groups_of(module: nn.Module) -> Iterator[FSDPModule]:
    """All modules that FSDP manages as a group."""
    return (m for m in module.modules() if isinstance(m, FSDPModule))


def reshard(module: nn.Module) -> None:
    """Free all gathered weights; does nothing where none are."""
    for group in groups_of(module):
        group.reshard()
