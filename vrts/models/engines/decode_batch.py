"""The rows in flight of the native engine, and the memory of them and their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from vrts.models.attention.kv_cache import KVCache, capacity_of
from vrts.models.attention.shared_prefix import States
from vrts.models.engines.completion_groups import CompletionGroup, Row
from vrts.models.engines.graphs import StepGraphs
from vrts.models.engines.network import Network
from vrts.models.engines.rows import DecodeRows
from vrts.models.engines.sampling import has_penalty, has_truncation

GRAPH_COLUMNS = 128
"""The rows' number of own tokens is rounded up to a multiple of it, so that a CUDA graph serves as
many steps."""
GRAPH_ROWS = 8
"""The number of rows is rounded up likewise."""
WORTH_DROPPING = 0.75
"""With CUDA graphs, rows that have ended stay until no more than this share of the rows is left:
fewer rows are another graph."""
MAX_PREFILL_TOKENS = 2**15
"""Prompt tokens that are prefilled at once, unless one prompt has more."""
ROW_SHARE = 0.5
"""Share of the KV cache for the rows' own tokens; prompts have the rest."""


def bytes_per_token(network: Network) -> int:
    """Bytes of one token's keys and values."""
    layers, kv_heads, dim = network.kv_shape
    return layers * 2 * kv_heads * dim * network.dtype.itemsize


def state_bytes(network: Network) -> int:
    """Bytes of a row's recurrent states; 0 without recurrent layers."""
    return sum(own.nbytes for own in network.row_states)


class DecodeBatch:
    """Rows that are decoded together: who they are, and their buffers on the device.

    Buffers are sized once, by the groups that wait when it is made. A later group that needs longer
    or more rows than they have is not taken.

    Args:
        network: decodes.
        groups: that wait; there is room for the first one, whatever the others need.
        max_rows: decoded together at most.
        kv_bytes: budget of keys, values and recurrent states.
        look_every: steps from one `read` to the next, at most.
        uses_graphs: record steps as CUDA graphs.
    """

    def __init__(
        self,
        network: Network,
        groups: Sequence[CompletionGroup],
        max_rows: int,
        kv_bytes: int,
        look_every: int,
        uses_graphs: bool,
    ) -> None:
        self._network, self._look_every = network, look_every
        self._token_bytes, a_state = bytes_per_token(network), state_bytes(network)
        kv_bytes -= a_state  # of the prompt whose rows have not all begun
        self._kv_bytes = kv_bytes
        left = kv_bytes - capacity_of(groups[0].num_tokens) * self._token_bytes
        limits = [g.request.max_new_tokens for g in groups]
        self._max_new_tokens = max(n for n in limits if n * self._token_bytes + a_state <= left)
        self._rows_a_prompt = max(len(g.rows) for g in groups)
        row_bytes = self._max_new_tokens * self._token_bytes + a_state
        fitting = int(min(ROW_SHARE * kv_bytes, left)) // row_bytes
        self.num_places = max(min(max_rows, fitting), 1)  # rows that there is room for
        self._device = device = network.device
        self._graphs = StepGraphs(uses_graphs)
        size = (self.num_places, self._max_new_tokens)
        self._cache = KVCache(
            network.kv_shape, *size, network.dtype, device, uses_graphs, network.row_states
        )
        self._rows = DecodeRows(*size, network.vocab_size, network.end_ids, look_every, device)
        self._places: list[Row | None] = []
        """The rows at the front of the buffers; None where one has ended."""
        self._groups: list[CompletionGroup] = []  # those whose prompts are in the cache
        self._states: dict[CompletionGroup, States] = {}
        """After the prompts whose rows have not all begun. Rows begin in order, so between two
        calls there is one at most."""
        self._columns = 0  # own tokens that any row has after the next step, at most
        self._is_stale = True  # whether rows or prompts have changed since they were arranged

    @property
    def num_rows(self) -> int:
        """Rows in flight."""
        return sum(row is not None for row in self._places)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys, values and states, used or not."""
        held = sum(own.nbytes for states in self._states.values() for own in states)
        return self._cache.num_bytes + held

    # ---- who is in it

    def choose(self, waiting: Iterable[Row]) -> tuple[list[Row], list[CompletionGroup]]:
        """The first of the waiting rows, as many as there are places and memory for.

        Also the groups among theirs whose prompts have to be prefilled.
        """
        rows: list[Row] = []
        new: list[CompletionGroup] = []
        waiting = list(waiting)
        for row in waiting[: self.num_places - self.num_rows]:
            if row.group.capacity is None and row.group not in new:
                if not self._make_room(row.group, new, waiting):
                    break
                new.append(row.group)
            rows.append(row)
        return rows, new

    def _make_room(
        self, group: CompletionGroup, others: Sequence[CompletionGroup], waiting: Sequence[Row]
    ) -> bool:
        """Whether a group's prompt can be prefilled now, together with those of others."""
        tokens = group.num_tokens + sum(other.num_tokens for other in others)
        if others and tokens > MAX_PREFILL_TOKENS:
            return False
        if group.request.max_new_tokens > self._max_new_tokens:
            return False  # until the batch is empty, and another one is made
        if len(group.rows) > self._rows_a_prompt:
            return False
        pool = self._cache.pool(group.num_tokens)

        def num_alike(groups: Iterable[CompletionGroup]) -> int:
            return sum(capacity_of(other.num_tokens) == pool.capacity for other in groups)

        needed = len(pool.lengths) + num_alike(others) + 1
        if needed <= pool.num_slots:
            return True
        # as many as are going to be needed, if they fit
        coming = {id(row.group): row.group for row in waiting if row.group.capacity is None}
        wanted = min(len(pool.lengths) + num_alike(coming.values()), self.num_places)
        for num_slots in (max(needed, wanted), needed):
            # while it grows, the old buffer is there too
            grown = num_slots * pool.capacity * self._token_bytes
            if self._cache.num_bytes + grown <= self._kv_bytes:
                pool.grow(num_slots, self._rows_a_prompt)
                self._graphs.clear()
                return True
        if not others and self._cache.drop_empty_pools():
            self._graphs.clear()
            return self._make_room(group, others, waiting)
        return False

    def begin(self, rows: Sequence[Row], new: Sequence[CompletionGroup]) -> None:
        """Prefill prompts and draw rows' first tokens, both from `choose`; `read` has to follow."""
        if new:
            prefill, logits = self._network.prefill([g.request.prompt for g in new])
            for group, (pool, slot), own in zip(new, self._cache.add(prefill), logits, strict=True):
                group.capacity, group.slot, group.logits = pool.capacity, slot, own
            self._states.update(zip(new, prefill.take_states(), strict=True))
            self._groups += new
        free = [i for i, row in enumerate(self._places) if row is None]
        places = [*free, *range(len(self._places), self.num_places)][: len(rows)]
        self._places += [None] * (max(places) + 1 - len(self._places))
        for place, row in zip(places, rows, strict=True):
            self._places[place], row.place = row, place
            self._cache.enter(place, self._states[row.group])
        used = [row.sampling for row in self._places if row is not None]
        self._rows.sampler.truncates = any(map(has_truncation, used))
        self._rows.sampler.penalises = any(map(has_penalty, used))
        first = self._network.first_position
        self._rows.enter(
            places,
            [row.start(first(row.group.request.prompt)) for row in rows],
            torch.stack([row.group.logits for row in rows if row.group.logits is not None]),
        )
        for row in rows:
            if row is row.group.rows[-1]:
                row.group.logits = None  # all have begun, in their order
                del self._states[row.group]
        self._is_stale = True

    def leave(self, rows: Sequence[Row]) -> None:
        """Free the places of rows."""
        places = [row.place for row in rows if row.place is not None]
        if not places:
            return
        self._rows.end(places)
        for place in places:
            self._places[place] = None
        for row in rows:
            row.place = None
        self._is_stale = True

    def drop_prompt(self, group: CompletionGroup) -> None:
        """Forget a group without rows; the last prompt of its pool moves to its slot."""
        assert group.capacity is not None
        last = self._cache.pools[group.capacity].remove(group.slot)
        self._groups.remove(group)
        self._states.pop(group, None)
        for other in self._groups:
            if other.capacity == group.capacity and other.slot == last:
                other.slot = group.slot
        self._is_stale = True

    # ---- decoding

    def arrange(self) -> None:
        """Close the gaps of rows that have ended, and pass on which rows read which prompts."""
        if not self._graphs.enabled or self.num_rows <= WORTH_DROPPING * len(self._places):
            self._close_up()
        columns = max(len(row.ids) for row in self._places if row is not None)
        if self._graphs.enabled:  # rounded up: few shapes, so few graphs
            size = min(-(-len(self._places) // GRAPH_ROWS) * GRAPH_ROWS, self.num_places)
            self._places += [None] * (size - len(self._places))
            columns = -(-(columns + self._look_every) // GRAPH_COLUMNS) * GRAPH_COLUMNS
        self._columns = min(columns, self._max_new_tokens)
        if not self._is_stale:
            return
        self._is_stale = False
        members: dict[int, list[list[int]]] = {
            capacity: [[] for _ in pool.lengths]
            for capacity, pool in self._cache.pools.items()
            if pool.lengths
        }  # of each pool, the rows of each of its prompts
        for place, row in enumerate(self._places):
            if row is not None:
                assert row.group.capacity is not None
                members[row.group.capacity][row.group.slot].append(place)
        self._cache.arrange(members, self._rows_a_prompt if self._graphs.enabled else None)

    def _close_up(self) -> None:
        """Move the last rows to places whose rows have ended."""
        to, source = [], []
        while None in self._places:
            last = self._places.pop()
            if last is not None:
                place = self._places.index(None)
                self._places[place], last.place = last, place
                to.append(place)
                source.append(len(self._places))
        if to:
            moved = [torch.tensor(x, device="cpu").to(self._device) for x in (to, source)]
            self._rows.move(*moved)
            self._cache.move_rows(*moved)
            self._is_stale = True

    def advance(self) -> None:
        """Forward one token of each row and draw the next; nothing here waits for the device."""
        num_rows, columns, cache = len(self._places), self._columns, self._cache

        def step() -> None:
            tokens, positions, held = self._rows.next_inputs(num_rows)
            cache.begin_step(held, columns)
            self._rows.advance(self._network.decode(tokens, positions, cache))

        sampler = self._rows.sampler
        key = (num_rows, columns, cache.shapes, sampler.truncates, sampler.penalises)
        self._graphs.run(key, step)
        if not self._graphs.enabled:
            self._columns += 1

    def read(self) -> list[tuple[Row, bool]]:
        """Append to rows what was drawn for them since the last time; waits for the device.

        Returns:
            Rows in flight, and whether an end token or their limit has ended them.
        """
        lengths, ended, ids, logprobs = self._rows.read(len(self._places))
        found = []
        for place, row in enumerate(self._places):
            if row is not None:
                new = lengths[place] - len(row.ids)
                row.ids += ids[place][:new]
                row.logprobs += logprobs[place, :new].tolist()
                found.append((row, ended[place]))
        return found
