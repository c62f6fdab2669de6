"""vrts's own engine: continuous batching on one device, with the prompt of a group shared.

A budget of rows is decoded together. A row that ends makes place for the next completion, of the
same prompt or of another one, so nothing waits for the slowest of a batch. Prompts are prefilled
when the first of their rows gets a place, and leave when the last one has ended.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from vrts.models.attention.kv_cache import capacity_of
from vrts.models.engines.completion_groups import CompletionGroup, Row, StopSearch
from vrts.models.engines.decode_batch import DecodeBatch, bytes_per_token, state_bytes
from vrts.models.engines.engine import Engine, Request, Result
from vrts.models.engines.network import Network
from vrts.models.engines.weights import Replica
from vrts.models.policy import Policy, Prompt
from vrts.types import InputError, Sample

_log = logging.getLogger(__name__)

LOOK_EVERY = 8
"""Decoding steps from one look at the rows to the next on CUDA, where a look waits for the device.
On a CPU there is one after each."""


@dataclass(slots=True)
class EngineCount:
    """What was decoded."""

    steps: int = 0
    rows: int = 0  # rows in flight, summed over steps
    full_steps: int = 0  # steps while other rows waited for a place
    full_rows: int = 0  # rows in flight, summed over those
    prefilled_tokens: int = 0


class NativeEngine(Engine):
    """Samples with the policy's own code.

    It shares the policy's weights where they are unsharded on this device in the compute dtype, and
    else holds a copy in that dtype.

    Args:
        max_rows: completions that are decoded together.
        max_kv_gb: 10^9 bytes that the KV cache may take; null for 0.6 of the memory that is free
            when it is made (0.25 on a CPU).
        merge_lora: sample from weights with the adapter added. Saves its products, takes the memory
            of the adapted matrices, and rounds (logged once).
        offload: keep the copy of the weights on the host during the update.
        cuda_graphs: on CUDA, record decoding steps as CUDA graphs and replay them; false launches
            kernels one by one, several times slower.
    """

    def __init__(
        self,
        max_rows: PositiveInt = 64,
        max_kv_gb: PositiveFloat | None = None,
        merge_lora: bool = False,
        offload: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        self.max_rows = int(max_rows)
        self.max_kv_gb = None if max_kv_gb is None else float(max_kv_gb)
        self.merge_lora = merge_lora
        self.offload = offload
        self.cuda_graphs = cuda_graphs
        self.count = EngineCount()
        self._replica: Replica | None = None
        self._net: Network | None = None
        self._device = torch.device("cpu")
        self._is_offloaded = False  # whether the copy of the weights is on the host
        self._has_reported_rounding = False
        self._look_every = 1
        self._uses_graphs = False
        self._end_ids: frozenset[int] = frozenset()
        self._waiting: deque[Row] = deque()  # completions without a place yet, in order
        self._groups: list[CompletionGroup] = []  # requests that have not come out
        self._done: list[Result] = []
        self._batch: DecodeBatch | None = None
        self._kv_bytes = 0

    # ---- weights

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """See `Engine.attach`."""
        if self._replica is not None:
            return
        network = policy.network()
        self._device = device
        self._look_every = LOOK_EVERY if device.type == "cuda" else 1
        self._uses_graphs = self.cuda_graphs and device.type == "cuda"
        self._replica = Replica(policy, network.model, device, dtype, will_shard, self.merge_lora)
        self._net = network.with_model(self._replica.model)
        self._end_ids = frozenset(network.end_ids.tolist())
        self._stops = StopSearch(network.tokenizer)

    def sync(self, policy: Policy) -> None:
        """See `Engine.sync`."""
        with self._computing():
            assert self._replica is not None
            self._replica.refresh(policy)
        # none at first: an adapter's update starts at zero
        if not self._has_reported_rounding and (rounding := self._replica.merge_rounding()):
            self._has_reported_rounding = True
            _log.info("merging the adapter rounds %.3g of its update away", rounding)

    @property
    def _network(self) -> Network:
        assert self._net is not None, "attach() was not called"
        return self._net

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Context of all passes: the weights are on the device, in the compute dtype."""
        assert self._replica is not None, "attach() was not called"
        if self._is_offloaded:
            self._replica.move(self._device)
            self._is_offloaded = False
        # Validation runs in inference mode, whose tensors may not be written to in training.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self._device.type, enabled=False),
        ):
            yield

    # ---- requests

    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """See `Engine.encode`."""
        with self._computing():
            return self._network.encode(samples, known)

    def has_room(self) -> bool:
        """See `Engine.has_room`."""
        return not self._waiting and self._num_rows < self.max_rows

    @property
    def _num_rows(self) -> int:
        """Rows in flight."""
        return 0 if self._batch is None else self._batch.num_rows

    @property
    def num_pending(self) -> int:
        """See `Engine.num_pending`."""
        return len(self._groups) + len(self._done)

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        if self._batch is None and not self._groups:
            self._kv_bytes = self._budget()
        num_tokens = capacity_of(request.prompt.num_tokens) + request.max_new_tokens
        with self._computing():
            num_bytes = num_tokens * bytes_per_token(self._network)
            num_bytes += 2 * state_bytes(self._network)  # the prompt's, and a row's
        if num_bytes > self._kv_bytes:
            raise InputError(
                f"{request.prompt.num_tokens} prompt tokens and {request.max_new_tokens} new ones "
                f"need {num_bytes / 1e9:.3g} GB of KV cache, more than the "
                f"{self._kv_bytes / 1e9:.3g} GB of it; raise model.engine.init_args.max_kv_gb, or "
                "give fewer or smaller frames"
            )
        group = CompletionGroup(request)
        self._groups.append(group)
        self._waiting += group.rows

    def _budget(self) -> int:
        """Bytes that the KV cache may take."""
        if self.max_kv_gb is not None:
            return int(self.max_kv_gb * 1e9)
        if self._device.type != "cuda":
            return int(0.25 * psutil.virtual_memory().available)
        device = self._device
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(0.6 * (free + cached))

    def cancel(self) -> None:
        """See `Engine.cancel`."""
        self._waiting.clear()
        self._groups, self._done = [], []
        self._batch = None

    def release(self) -> None:
        """See `Engine.release`."""
        if self._groups:
            return
        self._batch = None
        if self.offload and self._replica is not None:
            self._replica.move(torch.device("cpu"))
            self._is_offloaded = True

    # ---- decoding

    def step(self) -> list[Result]:
        """See `Engine.step`. A few decoding steps, and one look at all rows."""
        with self._computing():
            self._admit()
            batch = self._batch
            if batch is not None and batch.num_rows:
                batch.arrange()
                for _ in range(self._look_every):
                    batch.advance()
                self._count_steps(batch.num_rows)
                self._look(batch)
        done, self._done = self._done, []
        return done

    def _count_steps(self, num_rows: int) -> None:
        steps = self._look_every
        self.count.steps += steps
        self.count.rows += steps * num_rows
        if self._waiting:
            self.count.full_steps += steps
            self.count.full_rows += steps * num_rows

    def _admit(self) -> None:
        """Give places to waiting rows, as long as there are places and their prompts fit."""
        while self._waiting:
            is_new = self._batch is None
            batch = self._batch or self._make_batch()
            rows, new = batch.choose(self._waiting)
            if rows:
                for _ in rows:
                    self._waiting.popleft()
                batch.begin(rows, new)
                self.count.prefilled_tokens += sum(group.num_tokens for group in new)
                self._look(batch)
            elif batch.num_rows:
                return
            else:
                assert not is_new, "no room for a request that add() accepted"
                self._batch = None  # the first of the waiting rows needs larger buffers

    def _make_batch(self) -> DecodeBatch:
        """Buffers for the rows that wait."""
        waiting = list({id(row.group): row.group for row in self._waiting}.values())
        options = (self.max_rows, self._kv_bytes, self._look_every, self._uses_graphs)
        self._batch = DecodeBatch(self._network, waiting, *options)
        return self._batch

    def _look(self, batch: DecodeBatch) -> None:
        """Take what was drawn, end completions and requests; waits for the device."""
        tokenizer, ended = self._network.tokenizer, []
        for row, is_over in batch.read():
            is_stopped = self._stops.cut(row)
            if is_stopped or is_over:
                row.finish(tokenizer, is_stopped or row.ids[-1] in self._end_ids)
                ended.append(row)
        batch.leave(ended)
        for group in {id(row.group): row.group for row in ended}.values():
            self._settle(batch, group)

    def _settle(self, batch: DecodeBatch, group: CompletionGroup) -> None:
        """Cancel what a request no longer needs; where nothing is left of it, it is done."""
        cancelled = group.settle(self._network.tokenizer)
        if cancelled is None:
            return
        if cancelled:
            batch.leave(cancelled)
            self._waiting = deque(row for row in self._waiting if row.completion is None)
        batch.drop_prompt(group)
        self._groups.remove(group)
        self._done.append(group.result())
