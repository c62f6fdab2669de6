"""Steps that are repeated in the same shapes, replayed as a CUDA graph where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

_log = logging.getLogger(__name__)


class Steps:
    """Runs a step again and again, as it is."""

    def __init__(self) -> None:
        self._step: Callable[[], None] | None = None

    def begin(self, step: Callable[[], None]) -> None:
        """Take the step that follows.

        Args:
            step: reads and writes the same tensors in the same shapes each time, and never waits
                for the device.
        """
        self._step = step

    def __call__(self) -> None:
        """Run it once."""
        assert self._step is not None, "begin() was not called"
        self._step()

    def end(self) -> None:
        """Let go of the step, and of the buffers that it holds."""
        self._step = None


class GraphSteps(Steps):
    """Runs a step once as it is, then records it as a CUDA graph and replays that.

    A 7B model's step is some thousand small kernels: launching them one by one takes several
    times as long as the device needs for them. Graphs live no longer than this object, a rollout,
    so that they never outlive the weights and buffers whose addresses they hold.

    Where a step cannot be recorded, a warning gives the reason and all further steps run as they
    are: slower, with the same result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        """Whether a step could not be recorded, so that it is of no use to try again."""
        self._is_warm = False
        # All graphs of a rollout share their memory: no two are ever replayed at the same time.
        # Earlier ones are kept, since a pool ends with its last graph.
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._replays: torch.cuda.CUDAGraph | None = None

    def begin(self, step: Callable[[], None]) -> None:
        """See `Steps.begin`."""
        super().begin(step)
        self._is_warm = False
        self._replays = None

    def __call__(self) -> None:
        """Run the step once."""
        if not self._is_warm or self.failed:
            # Sets up what a capture may not: handles, workspaces, loaded kernels.
            self._is_warm = True
            super().__call__()
            return
        if self._replays is None:
            self._replays = self._record()
        if self._replays is None:
            super().__call__()
        else:
            self._replays.replay()

    def _record(self) -> torch.cuda.CUDAGraph | None:
        """The step as a graph, which has not run yet; None where it cannot be recorded."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads, such as the one that pins batches, may go on with what they do.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                super().__call__()
        except RuntimeError as error:
            # A capture that fails leaves its own stream as the current one.
            torch.cuda.set_stream(stream)
            self.failed = True
            _log.warning(
                "decoding runs without CUDA graphs, several times slower: a step could not be "
                "recorded (%s); set model.policy.init_args.cuda_graphs to false to silence this",
                str(error).partition("\n")[0],
            )
            return None
        self._graphs.append(graph)
        return graph

    def end(self) -> None:
        """See `Steps.end`."""
        super().end()
        self._replays = None
        self._graphs.clear()


def can_capture(model: nn.Module) -> bool:
    """Whether a forward of the model can be replayed.

    It can where all weights lie whole on one CUDA device. Sharded ones are gathered anew into
    memory that FSDP hands out, by communication that a graph of one process must not repeat.

    Args:
        model: whose forward it is.
    """
    weights = list(model.parameters())
    return all(p.is_cuda and not isinstance(p, DTensor) for p in weights) and not is_sharded(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP manages some of the model's weights.

    Args:
        model: looked at module by module, since a gathered weight looks like any other.
    """
    return any(isinstance(m, FSDPModule | FullyShardedDataParallel) for m in model.modules())
