"""Decoding steps of the same shapes, replayed as CUDA graphs where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch

_log = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Graphs that are kept; each takes memory, and rows of many prompts have ever new shapes."""


class StepGraphs:
    """Runs a step eagerly the first time, records it the second time, and then replays it.

    A 7B model's step is some thousand small kernels: launching them one by one takes several times
    as long as the device needs for them. Where a step cannot be recorded, a warning gives the
    reason and all further steps run eagerly: slower, with the same result.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        # All graphs share their memory: no two are ever replayed at the same time.
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step once; it must not wait for the device.

        Steps of one key launch the same kernels on the same memory.
        """
        if not self.enabled:
            step()
            return
        is_new = key not in self._graphs
        graph = self._graphs.pop(key, None)
        if is_new:
            # Sets up what a capture may not: handles, workspaces, loaded kernels.
            step()
        else:
            graph = graph or self._record(step)
            run = step if graph is None else graph.replay
            run()
        self._graphs[key] = graph  # put last: the first one is the least recently used
        if len(self._graphs) > MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]

    def clear(self) -> None:
        """Forget all graphs: buffers that they read have moved."""
        self._graphs.clear()

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The step as a graph, which has not run yet; None where it cannot be recorded."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads, such as the one that pins batches, may continue.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            # A capture that fails leaves its own stream as the current one.
            torch.cuda.set_stream(stream)
            self.enabled = False
            _log.warning(
                "decoding runs without CUDA graphs, several times slower: a step could not be "
                "recorded (%s); set model.engine.init_args.cuda_graphs to false to silence this",
                str(error).partition("\n")[0],
            )
            return None
        return graph
