"""The engine of vrts itself: continuous batching on one device, with the prompt of a group shared.

A budget of rows is decoded together. A row that ends makes place for the next completion, of the
same prompt or of another one, so nothing waits for the slowest of a batch. Prompts are prefilled
when the first of their rows gets a place, and leave when the last one has ended.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import psutil
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from vrts.models.engine import Engine, Request, Result
from vrts.models.graphs import StepGraphs
from vrts.models.kv_cache import KVCache, PromptPool, capacity_of
from vrts.models.network import Network
from vrts.models.policy import Policy, Prompt
from vrts.models.replica import Replica
from vrts.models.rows import DecodeRows, NewRow
from vrts.models.sampling import has_penalty, has_truncation
from vrts.models.stopping import StopTexts
from vrts.types import Completion, InputError, Sample

_log = logging.getLogger(__name__)

LOOK_EVERY = 8
"""Decoding steps from one look at the rows to the next on CUDA, where a look waits for the device.
On a CPU there is one after each."""
GRAPH_COLUMNS = 128
"""Own tokens that rows have are rounded up to a multiple of it, so that a CUDA graph serves as many
steps."""
GRAPH_ROWS = 8
"""Likewise for rows."""
WORTH_DROPPING = 0.75
"""With CUDA graphs, rows that have ended are decoded on in vain until no more than this share of
the rows is left: fewer rows are another graph."""
MAX_PREFILL_TOKENS = 2**15
"""Prompt tokens that are prefilled at once, unless one prompt has more."""
ROW_SHARE = 0.5
"""Of the KV cache that the rows' own tokens may take; prompts have the rest."""


@dataclass(slots=True, eq=False)
class _Row:
    """A completion that is decoded or waits for its place."""

    group: _Group
    index: int
    """Among the group's G."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    completion: Completion | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """A request with its completions."""

    request: Request
    rows: list[_Row] = field(default_factory=list)
    pool: PromptPool | None = None
    """Of its prompt, once it is prefilled."""
    slot: int = -1
    logits: torch.Tensor | None = None
    """``[V]``, of each completion's first token, until all have begun."""


@dataclass(slots=True)
class EngineCount:
    """What was decoded."""

    steps: int = 0
    rows: int = 0
    """Rows in flight, summed over steps."""
    full_steps: int = 0
    """Steps at which more rows were waiting than had a place."""
    full_rows: int = 0
    """Rows in flight, summed over those."""
    prefilled_tokens: int = 0


class NativeEngine(Engine):
    """See `Engine`; samples with the policy's own code.

    It shares the policy's weights where they lie whole on this device in the dtype that is computed
    in, and else holds a copy in that dtype.

    Args:
        max_rows: completions that are decoded together.
        max_kv_gb: 10^9 bytes that the KV cache may take; 0.6 of the memory that is free when it is
            made, where null (0.25 on a CPU).
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
        self._waiting: deque[_Row] = deque()
        """Completions without a place yet, in order."""
        self._places: list[_Row | None] = []
        """The rows in front of the buffers; None where one has ended."""
        self._groups: list[_Group] = []
        """Requests that have not come out."""
        self._done: list[Result] = []
        self._stops: dict[tuple[str, ...], StopTexts] = {}
        self._cache: KVCache | None = None
        self._kv_bytes = 0
        self._rows: DecodeRows
        self._graphs: StepGraphs

    # ---- weights

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """See `Engine.attach`."""
        if self._replica is not None:
            return
        network = policy.network()
        self._device = device
        self._replica = Replica(policy, network.model, device, dtype, will_shard, self.merge_lora)
        self._net = network.with_model(self._replica.model)

    def sync(self, policy: Policy) -> None:
        """See `Engine.sync`."""
        assert self._replica is not None, "attach() was not called"
        if self.offload:
            self._replica.move(self._device)
        self._replica.refresh(policy)
        rounding = self._replica.merge_rounding()
        if rounding is not None:
            _log.info("merging the adapter for sampling rounds %.3g of its update away", rounding)

    @property
    def _network(self) -> Network:
        assert self._net is not None, "attach() was not called"
        return self._net

    def _computing(self) -> AbstractContextManager[object]:
        """Context of all passes: the copy has the dtype that is computed in, nothing is cast."""
        return torch.autocast(self._device.type, enabled=False)

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
        return sum(row is not None for row in self._places)

    @property
    def num_pending(self) -> int:
        """See `Engine.num_pending`."""
        return len(self._groups) + len(self._done)

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        if self._cache is None:
            self._kv_bytes = self._budget()
        tokens = capacity_of(request.prompt.num_tokens) + request.max_new_tokens
        if tokens * self._token_bytes > self._kv_bytes:
            raise InputError(
                f"question {request.prompt.question.id}: its {request.prompt.num_tokens} prompt "
                f"tokens and {request.max_new_tokens} new ones need "
                f"{tokens * self._token_bytes / 1e9:.2f} GB of KV cache, more than the "
                f"{self._kv_bytes / 1e9:.2f} GB of it; raise model.engine.init_args.max_kv_gb, or "
                "ask on fewer or smaller frames"
            )
        group = _Group(request)
        group.rows = [_Row(group, i) for i in range(len(request.sampling))]
        self._groups.append(group)
        self._waiting += group.rows

    def cancel(self) -> None:
        """See `Engine.cancel`."""
        self._waiting.clear()
        self._places, self._groups, self._done = [], [], []
        self._cache = None

    def release(self) -> None:
        """See `Engine.release`."""
        if self._groups:
            return
        self._cache = None
        if self.offload and self._replica is not None:
            self._replica.move(torch.device("cpu"))

    # ---- decoding

    @torch.no_grad()
    def step(self) -> list[Result]:
        """See `Engine.step`. One look at all rows, and the steps before it."""
        with self._computing():
            self._admit()
            if any(self._places):
                self._arrange()
                for _ in range(LOOK_EVERY if self._device.type == "cuda" else 1):
                    self._advance()
                self._look()
        done, self._done = self._done, []
        return done

    def _advance(self) -> None:
        """Forward one token of each row and draw the next; nothing here waits for the device."""
        num_rows, columns, cache = len(self._places), self._columns, self._cache
        assert cache is not None

        def step() -> None:
            tokens, positions, held = self._rows.next_inputs(num_rows)
            cache.begin_step(held, columns)
            self._rows.advance(self._network.decode(tokens, positions, cache))

        sampler = self._rows.sampler
        key = (num_rows, columns, cache.shapes, sampler.truncates, sampler.penalises)
        self._graphs.run(key, step)
        self.count.steps += 1
        self.count.rows += self._num_rows
        if self._waiting:
            self.count.full_steps += 1
            self.count.full_rows += self._num_rows
        if not self._graphs.enabled:
            self._columns += 1

    def _admit(self) -> None:
        """Give places to waiting rows, as long as there are any and their prompts fit."""
        while self._waiting:
            if self._cache is None:
                self._allocate(self._waiting[0].group)
            free = self._free_places()
            rows: list[_Row] = []
            new: list[_Group] = []
            while self._waiting and len(rows) < len(free):
                group = self._waiting[0].group
                if group.pool is None and group not in new:
                    if not self._make_room(group, new):
                        break
                    new.append(group)
                rows.append(self._waiting.popleft())
            if rows:
                self._begin(free[: len(rows)], rows, new)
            elif not self._num_rows:
                self._cache = None  # to be made anew for the first that waits, which `add` let in
            else:
                return

    def _begin(self, places: Sequence[int], rows: Sequence[_Row], new: Sequence[_Group]) -> None:
        """Draw rows' first tokens.

        Args:
            places: of the rows.
            rows: to begin.
            new: groups among theirs whose prompts are not prefilled yet.
        """
        assert self._cache is not None
        if new:
            prefill, logits = self._network.prefill([g.request.prompt for g in new])
            for group, (pool, slot), own in zip(new, self._cache.add(prefill), logits, strict=True):
                group.pool, group.slot, group.logits = pool, slot, own
                self.count.prefilled_tokens += group.request.prompt.num_tokens
        self._places += [None] * (max(places) + 1 - len(self._places))
        for place, row in zip(places, rows, strict=True):
            self._places[place] = row
        self._note_sampling()
        self._rows.enter(
            places,
            [
                NewRow(
                    row.group.request.sampling[row.index],
                    row.group.request.seeds[row.index],
                    row.group.request.max_new_tokens,
                    self._network.first_position(row.group.request.prompt),
                )
                for row in rows
            ],
            torch.stack([row.group.logits for row in rows if row.group.logits is not None]),
        )
        for row in rows:
            if row.index == len(row.group.rows) - 1:
                row.group.logits = None  # all have begun, in their order
        self._is_stale = True
        self._look()

    def _free_places(self) -> list[int]:
        """Places that rows may take, those within the rows in flight first."""
        free = [i for i, row in enumerate(self._places) if row is None]
        return [*free, *range(len(self._places), self._num_places)]

    def _arrange(self) -> None:
        """Close up places that have ended, and say which rows read which prompts."""
        assert self._cache is not None
        alive = self._num_rows
        graphs = self._graphs.enabled
        if not graphs or alive <= WORTH_DROPPING * len(self._places):
            self._close_up()
        if graphs:
            size = min(-(-len(self._places) // GRAPH_ROWS) * GRAPH_ROWS, self._num_places)
            self._places += [None] * (size - len(self._places))
        longest = max(len(row.ids) for row in self._places if row is not None)
        columns = (
            longest if not graphs else -(-(longest + LOOK_EVERY) // GRAPH_COLUMNS) * (GRAPH_COLUMNS)
        )
        self._columns = min(columns, self._max_new_tokens)
        if not self._is_stale:
            return
        self._is_stale = False
        members: dict[int, list[list[int]]] = {
            capacity: [[] for _ in pool.lengths]
            for capacity, pool in self._cache.pools.items()
            if pool.lengths
        }
        for place, row in enumerate(self._places):
            if row is not None:
                assert row.group.pool is not None
                members[row.group.pool.capacity][row.group.slot].append(place)
        self._cache.arrange(members, self._most_rows if graphs else None)

    def _close_up(self) -> None:
        """Move the last rows to places that have ended."""
        assert self._cache is not None
        to, source = [], []
        while None in self._places:
            last = self._places.pop()
            if last is not None:
                place = self._places.index(None)
                self._places[place] = last
                to.append(place)
                source.append(len(self._places))
        if to:
            at, come = (torch.tensor(x, device="cpu").to(self._device) for x in (to, source))
            self._rows.move(at, come)
            self._cache.move_rows(at, come)
            self._is_stale = True

    def _look(self) -> None:
        """Take what was drawn, end completions and requests; waits for the device."""
        lengths, ended, ids, logprobs = self._rows.read(len(self._places))
        finished: list[_Row] = []
        cut: list[int] = []
        for place, row in enumerate(self._places):
            if row is None:
                continue
            seen, new = len(row.ids), lengths[place] - len(row.ids)
            row.ids += ids[place][:new]
            row.logprobs += logprobs[place, :new].tolist()
            stop = self._stop_texts(row).end(row.ids, seen)
            if stop is not None:
                del row.ids[stop:], row.logprobs[stop:]
                cut.append(place)
            if stop is not None or ended[place]:
                is_end = stop is not None or row.ids[-1] in self._end_ids
                self._finish(row, place, is_end)
                finished.append(row)
        if cut:
            self._rows.end(cut)
        for group in {id(row.group): row.group for row in finished}.values():
            self._settle(group)

    def _finish(self, row: _Row, place: int | None, is_end: bool, cancelled: bool = False) -> None:
        """End a completion."""
        self._is_stale = True
        if place is not None:
            self._places[place] = None
        row.completion = Completion(
            text=self._network.tokenizer.decode(row.ids, skip_special_tokens=True),
            num_tokens=len(row.ids),
            max_new_tokens=row.group.request.max_new_tokens,
            finished=is_end,
            token_ids=torch.tensor(row.ids, dtype=torch.int64, device="cpu"),
            logprobs=torch.tensor(row.logprobs, dtype=torch.float32, device="cpu"),
            cancelled=cancelled,
        )

    def _settle(self, group: _Group) -> None:
        """Cancel what a request does not need any more, and let it out where nothing is left."""
        left = [row for row in group.rows if row.completion is None]
        should_stop = group.request.should_stop
        if left and should_stop is not None:
            done = [row.completion for row in group.rows]
            texts = [None if c is None else c.text for c in done]
            means = [0.0 if c is None else c.mean_logprob for c in done]
            if should_stop(texts, means):
                places = [p for p, r in enumerate(self._places) if r in left]
                if places:
                    self._rows.end(places)
                for row in left:
                    place = self._places.index(row) if row in self._places else None
                    self._finish(row, place, is_end=False, cancelled=True)
                self._waiting = deque(row for row in self._waiting if row not in left)
                left = []
        if left:
            return
        self._groups.remove(group)
        self._remove_prompt(group)
        completions = tuple(row.completion for row in group.rows if row.completion is not None)
        self._done.append(Result(group.request, completions))

    def _remove_prompt(self, group: _Group) -> None:
        pool, slot = group.pool, group.slot
        assert pool is not None
        last = pool.remove(slot)
        for other in self._groups:
            if other.pool is pool and other.slot == last:
                other.slot = slot
        self._is_stale = True

    def _note_sampling(self) -> None:
        """Tell the sampler what any of its rows needs."""
        used = [r.group.request.sampling[r.index] for r in self._places if r is not None]
        self._rows.sampler.truncates = any(map(has_truncation, used))
        self._rows.sampler.penalises = any(map(has_penalty, used))

    def _stop_texts(self, row: _Row) -> StopTexts:
        """What finds the end of a completion in its text."""
        texts = row.group.request.sampling[row.index].stop
        if texts not in self._stops:
            self._stops[texts] = StopTexts(self._network.tokenizer, texts)
        return self._stops[texts]

    # ---- memory

    @property
    def _token_bytes(self) -> int:
        """Of the keys and values of one token."""
        layers, kv_heads, dim = self._network.kv_shape
        return layers * 2 * kv_heads * dim * self._network.dtype.itemsize

    def _budget(self) -> int:
        """Bytes that the KV cache may take."""
        if self.max_kv_gb is not None:
            return int(self.max_kv_gb * 1e9)
        if self._device.type != "cuda":
            return int(0.25 * psutil.virtual_memory().available)
        free = torch.cuda.mem_get_info(self._device)[0]
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(
            self._device
        )
        return int(0.6 * (free + cached))

    def _allocate(self, first: _Group) -> None:
        """Make the buffers of the rows, as many as the budget allows.

        Args:
            first: waits; there will be room for its prompt.
        """
        network, device = self._network, self._device
        requests = [group.request for group in self._groups]
        self._max_new_tokens = max(r.max_new_tokens for r in requests)
        self._most_rows = max(len(r.sampling) for r in requests)
        beside = self._kv_bytes - capacity_of(first.request.prompt.num_tokens) * self._token_bytes
        row_bytes = self._max_new_tokens * self._token_bytes
        fitting = int(min(ROW_SHARE * self._kv_bytes, beside)) // row_bytes
        self._num_places = max(min(self.max_rows, fitting), 1)
        uses_graphs = self.cuda_graphs and device.type == "cuda"
        self._graphs = StepGraphs(uses_graphs)
        self._cache = KVCache(
            network.kv_shape,
            self._num_places,
            self._max_new_tokens,
            network.dtype,
            device,
            fixed_shapes=uses_graphs,
        )
        self._rows = DecodeRows(
            self._num_places,
            self._max_new_tokens,
            network.vocab_size,
            network.end_ids,
            LOOK_EVERY,
            device,
        )
        self._end_ids = set(network.end_ids.tolist())
        self._places = []
        self._is_stale = True

    def _make_room(self, group: _Group, others: Sequence[_Group]) -> bool:
        """Whether a prompt can be prefilled now.

        Args:
            group: whose prompt it is.
            others: that will be prefilled with it.
        """
        cache, request = self._cache, group.request
        assert cache is not None
        size = request.prompt.num_tokens
        tokens = size + sum(g.request.prompt.num_tokens for g in others)
        if others and tokens > MAX_PREFILL_TOKENS:
            return False
        if request.max_new_tokens > self._max_new_tokens or len(request.sampling) > self._most_rows:
            return False  # buffers are too small, and made anew when they are empty
        pool = cache.pool(size)
        alike = [g for g in others if capacity_of(g.request.prompt.num_tokens) == pool.capacity]
        needed = len(pool.lengths) + len(alike) + 1
        if needed <= pool.num_slots:
            return True
        # as many as are going to be needed, if they fit
        coming = {id(r.group): r.group for r in self._waiting if r.group.pool is None}.values()
        wanted = len(pool.lengths) + sum(
            capacity_of(g.request.prompt.num_tokens) == pool.capacity for g in coming
        )
        most = max(needed, min(wanted + len(alike), self._num_places))
        slot_bytes = pool.capacity * self._token_bytes
        for num_slots in (most, needed):
            # while it grows, the old buffer is there too
            if cache.num_bytes + num_slots * slot_bytes <= self._kv_bytes:
                pool.grow(num_slots, self._most_rows)
                self._graphs.clear()
                return True
        if not others and cache.drop_empty_pools():
            self._graphs.clear()
            return self._make_room(group, others)
        return False
