"""A stand-in for CUDA graphs on the CPU: records operators, and replays them on the same memory.

As a real graph it knows nothing of Python: a number or a tensor that the step would have chosen
again is the recorded one, and what is not written into the same memory is lost.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::is_nonzero", "aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::bincount",
    "aten::item",
}  # fmt: skip
"""Operators that wait for the device, or whose shape depends on values: no graph can hold them."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name in WAITS:
            raise AssertionError(f"{name} cannot be part of a CUDA graph")
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        indices = args[1] if name.startswith("aten::index") and isinstance(args[1], list) else []
        if any(x is not None and x.dtype == torch.bool for x in indices):
            raise AssertionError(f"{name} by a mask cannot be part of a CUDA graph")
        out = func(*args, **kwargs)
        memory = {x.untyped_storage().data_ptr() for x in inputs}
        fresh = [
            x
            for x in tree_leaves(out)
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in memory
        ]
        self.calls.append((func, args, kwargs, fresh))
        return out


class RecordedGraph:
    """`torch.cuda.CUDAGraph` without CUDA."""

    made: ClassVar[list[RecordedGraph]] = []

    def __init__(self) -> None:
        self.calls: list = []
        self.num_replays = 0
        RecordedGraph.made.append(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        if self.num_replays == 1:
            return  # recording has run it, which on CUDA it does not
        for func, args, kwargs, fresh in self.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            if fresh:
                for old, new in zip(fresh, again, strict=True):
                    old.copy_(new)


@contextmanager
def record(graph: RecordedGraph, pool: object, capture_error_mode: str):
    """`torch.cuda.graph` without CUDA."""
    assert (pool, capture_error_mode) == ("pool", "thread_local")
    with _Recorder() as recorder:
        yield
    graph.calls = recorder.calls


def use_recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Let `StepGraphs` record on the CPU; the list of the graphs that get made."""
    made: ClassVar[list[RecordedGraph]] = []
    monkeypatch.setattr(RecordedGraph, "made", made)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return made
