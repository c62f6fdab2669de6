"""The state in which a model samples: nothing is prepared for a backward, casts are done once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Context in which no layer is checkpointed.

    Checkpointing saves the state of the random generators before every layer, also where there is
    no gradient; that copies from the device and cannot be part of a CUDA graph.

    Args:
        model: whose layers have transformers' flag `gradient_checkpointing`.
    """
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True  # type: ignore[assignment]


@contextmanager
def cast_linears(model: nn.Module, device_type: str) -> Iterator[None]:
    """Context in which linear layers have their weights in autocast's dtype; else does nothing.

    Under autocast each use of a float32 matrix reads it, writes a copy in the lower precision and
    reads that: several times the memory traffic that bounds decoding. Here the same copies are
    made once. The parameters themselves are not touched: optimizers, hooks and checkpoints keep
    theirs.

    Args:
        model: not sharded; FSDP casts by its own policy.
        device_type: whose autocast counts.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    originals: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for linear in model.modules():
            if not isinstance(linear, nn.Linear):
                continue
            for name, parameter in list(linear.named_parameters(recurse=False)):
                if parameter.dtype == torch.float32:
                    originals.append((linear, name, parameter))
                    setattr(linear, name, nn.Parameter(parameter.detach().to(dtype), False))
        yield
    finally:
        for linear, name, parameter in originals:
            setattr(linear, name, parameter)


@contextmanager
def without_cast_cache(device_type: str) -> Iterator[None]:
    """Context in which autocast keeps no copies of weights.

    A copy made while a graph is recorded lies in the graph's memory, which the next one reuses.

    Args:
        device_type: whose autocast, if it is on, goes on without its cache.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, dtype=dtype, cache_enabled=False):
        yield
