"""Keys and values of decoding: one copy of each prompt, and the own tokens of each row.

R rows decode one token each. Rows of one prompt attend to it in one call: their queries are
gathered into a grid ``[prompts, rows of a prompt]``. The log-sum-exp of that attention is then one
more score next to those of the row's own tokens, and its output one more value, so the result is
the one softmax over all of them.

Layers that keep states instead (see `Layout.recur`) have some for each row, which begin as those
after its prompt.

Buffers never move while rows and prompts come and go, so that a CUDA graph can replay a step. Used
rows and prompts are always at the front: what leaves is replaced by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vrts.models.attention.flash import attend_with_lse, product_float32
from vrts.models.attention.shared_prefix import PackedLayout, Recurrence, States

CLASSES_AN_OCTAVE = 4
"""Prompts of similar length share a pool and are padded to its capacity, by at most a quarter."""


def capacity_of(num_tokens: int) -> int:
    """Tokens of a slot in the pool of prompts of such a length."""
    step = max((1 << (num_tokens.bit_length() - 1)) // CLASSES_AN_OCTAVE, 16)
    return -(-num_tokens // step) * step


class PromptPool:
    """Keys and values of prompts of similar length."""

    def __init__(
        self,
        kv_shape: tuple[int, int, int],
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        layers, kv_heads, dim = kv_shape
        self.capacity = capacity
        self.lengths: list[int] = []  # P of each prompt; used slots come first
        self.kv = torch.zeros(layers, 2, 0, kv_heads, capacity, dim, dtype=dtype, device=device)
        self.bias = torch.zeros(0, 1, 1, capacity, dtype=torch.float32, device=device)
        """0 for tokens of the prompt, else minus infinity."""
        self.cells = torch.zeros(0, kv_heads, 0, dtype=torch.int64, device=device)
        """``[prompts, kv_heads, rows of a prompt]``: which of the ``R * kv_heads`` queries belong
        to each, padded with any row's. One look-up gathers and transposes them."""

    @property
    def num_slots(self) -> int:
        """Prompts that there is room for."""
        return self.kv.shape[2]

    def grow(self, num_slots: int, rows_a_prompt: int) -> None:
        """Make room for more prompts; buffers move."""
        layers, _, old, kv_heads, capacity, dim = self.kv.shape
        kv = self.kv.new_zeros(layers, 2, num_slots, kv_heads, capacity, dim)
        kv[:, :, :old] = self.kv
        self.kv = kv
        bias = self.bias.new_full((num_slots, 1, 1, capacity), float("-inf"))
        bias[:old] = self.bias
        self.bias = bias
        most = max(rows_a_prompt, self.cells.shape[2])
        self.cells = self.cells.new_zeros(num_slots, kv_heads, most)

    def add(self, kv: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Keep a prompt, ``[kv_heads, P, dim]`` keys and values of each layer; returns its slot."""
        slot, P = len(self.lengths), kv[0][0].shape[1]
        for layer, (key, value) in enumerate(kv):
            self.kv[layer, 0, slot, :, :P] = key
            self.kv[layer, 1, slot, :, :P] = value
        self.bias[slot, ..., :P] = 0.0
        self.bias[slot, ..., P:] = float("-inf")
        self.lengths.append(P)
        return slot

    def remove(self, slot: int) -> int:
        """Drop a prompt; the last one moves to its slot. Returns the slot the last one had."""
        last = len(self.lengths) - 1
        if slot != last:
            self.kv[:, :, slot] = self.kv[:, :, last]
            self.bias[slot] = self.bias[last]
            self.lengths[slot] = self.lengths[last]
        self.lengths.pop()
        return last

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        shape: tuple[int, int],
        scaling: float,
        fixed_shapes: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of rows to their prompts.

        Args:
            layer: of the decoder.
            query: ``[R, kv_heads, h, dim]``, h heads for each kv head.
            shape: Q prompts in use, and G rows of each.
            scaling: factor of the scores.
            fixed_shapes: read the same memory whatever the prompts' lengths are.

        Returns:
            ``[Q * kv_heads * G, h, dim]``, and the log-sum-exp without the last dimension.
        """
        Q, G = shape
        _, kv_heads, h, dim = query.shape
        longest = self.capacity if fixed_shapes else max(self.lengths)
        keys, values = self.kv[layer, :, :Q, :, :longest]
        is_padded = fixed_shapes or min(self.lengths) < longest
        bias = self.bias[:Q, ..., :longest] if is_padded else None
        # [Q, kv_heads, G, h, dim] -> [Q, kv_heads, G * h, dim]: a prompt's keys are read once
        q = query.flatten(0, 1)[self.cells[:Q, :, :G]].view(Q, kv_heads, G * h, dim)
        out, lse = attend_with_lse(q, keys, values, scaling, bias)
        return out.reshape(-1, h, dim), lse.reshape(-1, h)


class KVCache:
    """What R rows attend to. A `Layout` of decoding.

    Args:
        kv_shape: layers, kv heads, and the size of a head.
        num_rows: R, at most.
        max_new_tokens: own tokens of a row, at most.
        dtype: of keys and values.
        device: of keys and values.
        fixed_shapes: steps with equal `shapes` read the same memory, for CUDA graphs.
        row_states: what recurrent layers keep of a row, see `Network.row_states`.
    """

    def __init__(
        self,
        kv_shape: tuple[int, int, int],
        num_rows: int,
        max_new_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        fixed_shapes: bool,
        row_states: States = (),
    ) -> None:
        layers, kv_heads, dim = kv_shape
        self.pools: dict[int, PromptPool] = {}  # by capacity
        self._kv_shape, self._dtype, self._device = kv_shape, dtype, device
        self._fixed_shapes = fixed_shapes
        self._own = torch.zeros(
            layers, 2, num_rows, kv_heads, max_new_tokens, dim, dtype=dtype, device=device
        )
        self._states = [
            own.new_zeros(len(own), num_rows, *own.shape[1:], device=device) for own in row_states
        ]
        """``[layers, rows, ...]``."""
        self._index: dict[int, int] = {}
        """Of each decoder layer, among those with keys and values or among those with states."""
        self._places = torch.zeros(num_rows, kv_heads, dtype=torch.int64, device=device)
        """Each row's cells among those of all pools, one after the other."""
        self._all_rows = torch.arange(num_rows, device=device)
        self._columns = torch.arange(max_new_tokens, device=device)
        self._shapes: tuple[tuple[int, tuple[int, int]], ...] = ()
        self._held = self._all_rows[:0]
        self._bias = torch.zeros(0, 0, dtype=torch.float32, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        tensors = [self._own, *self._states, *(pool.kv for pool in self.pools.values())]
        return sum(t.numel() * t.element_size() for t in tensors)

    def pool(self, num_tokens: int) -> PromptPool:
        """The pool for prompts of such a length; a new one where there is none yet."""
        capacity = capacity_of(num_tokens)
        if capacity not in self.pools:
            self.pools[capacity] = PromptPool(self._kv_shape, capacity, self._dtype, self._device)
        return self.pools[capacity]

    def drop_empty_pools(self) -> bool:
        """Free the memory of pools without prompts; returns whether there were any."""
        empty = [c for c, pool in self.pools.items() if pool.num_slots and not pool.lengths]
        for capacity in empty:
            del self.pools[capacity]
        return bool(empty)

    def add(self, prefill: PackedLayout) -> list[tuple[PromptPool, int]]:
        """Keep the prompts of a prefill, for which there is room; returns each pool and slot."""
        for kept in (prefill.prompt_kv, prefill.prompt_states):
            self._index.update({layer: i for i, layer in enumerate(sorted(kept))})
        layers = [prefill.prompt_kv.pop(layer) for layer in sorted(prefill.prompt_kv)]
        placed = []
        for kv in zip(*layers, strict=True):
            pool = self.pool(kv[0][0].shape[1])
            placed.append((pool, pool.add(kv)))
        return placed

    def enter(self, row: int, states: States) -> None:
        """Begin a row with the states after its prompt, ``[layers, ...]`` each."""
        for buffer, own in zip(self._states, states, strict=True):
            buffer[:, row] = own

    def move_rows(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Copy all that is a row's own over that of others; int64 indices, all different."""
        self._own[:, :, to] = self._own[:, :, source]
        for buffer in self._states:
            for of_layer in buffer:  # one by one: states are large
                of_layer[to] = of_layer[source]

    def arrange(self, members: dict[int, list[list[int]]], rows_a_prompt: int | None) -> None:
        """Set which rows complete which prompts.

        Args:
            members: by capacity of the pool, the rows of each of its prompts.
            rows_a_prompt: columns of each grid; None takes as few as possible.
        """
        shapes = []
        places: dict[int, list[int]] = {}
        start = 0
        for capacity, prompts in sorted(members.items()):
            G = rows_a_prompt or max(1, *(len(rows) for rows in prompts))
            heads = range(self._kv_shape[1])
            # Into the grid: cell [q, k, g] takes the query of row prompts[q][g] and kv head k.
            padded = [[*rows, *([0] * (G - len(rows)))] for rows in prompts]
            queries = [[[row * len(heads) + k for row in rows] for k in heads] for rows in padded]
            cells = self.pools[capacity].cells
            cells[: len(prompts), :, :G] = torch.tensor(queries, device="cpu").to(cells.device)
            # And back: where in the pools' concatenated outputs a row finds its kv heads'.
            for q, rows in enumerate(prompts):
                for g, row in enumerate(rows):
                    places[row] = [start + (q * len(heads) + k) * G + g for k in heads]
            shapes.append((capacity, (len(prompts), G)))
            start += len(prompts) * len(heads) * G
        index = torch.tensor(list(places), device="cpu").to(self._device)
        # rows without a prompt have ended, and may read any
        self._places.zero_()
        self._places[index] = torch.tensor(list(places.values()), device="cpu").to(self._device)
        self._shapes = tuple(shapes)

    @property
    def shapes(self) -> tuple[tuple[int, tuple[int, int]], ...]:
        """Shapes of the pools' grids; steps with equal ones launch the same kernels."""
        return self._shapes

    def begin_step(self, held: torch.Tensor, num_columns: int) -> None:
        """Prepare for a step, once for all layers; nothing here waits for the device.

        Args:
            held: int64 ``[R]``, own tokens in the cache of each of the first R rows. A forward adds
                one.
            num_columns: own tokens that any row has after the step, at most.
        """
        self._held = held
        masked = self._columns[:num_columns] > held[:, None]  # [R, columns]
        self._bias = torch.zeros_like(masked, dtype=torch.float32)  # [R, columns]
        self._bias.masked_fill_(masked, float("-inf"))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention of one new token in each of R rows; see `Layout.attend`."""
        R, kv_heads, _, dim = key.shape
        columns = self._bias.shape[1]
        rows = self._all_rows[:R]
        layer = self._index[layer]
        own_keys, own_values = self._own[layer]  # [rows, kv_heads, max_new_tokens, dim] each
        own_keys[rows, :, self._held] = key[:, :, 0]
        own_values[rows, :, self._held] = value[:, :, 0]

        # The prompts: each pool's output and log-sum-exp, put back from its grid to the rows.
        q = query.view(R, kv_heads, -1, dim)  # [R, kv_heads, h, dim], h heads for each kv head
        parts = [
            self.pools[capacity].attend(layer, q, shape, scaling, self._fixed_shapes)
            for capacity, shape in self._shapes
        ]
        outs, lses = zip(*parts, strict=True)
        places = self._places[:R]  # [R, kv_heads]
        on_prompt = (torch.cat(outs) if len(outs) > 1 else outs[0])[places]  # [R, kv_heads, h, dim]
        lse = (torch.cat(lses) if len(lses) > 1 else lses[0])[places]  # [R, kv_heads, h]

        # The own tokens, with the prompt as one more: its log-sum-exp is its score.
        keys, values = own_keys[:R, :, :columns], own_values[:R, :, :columns]
        scores = product_float32(q, keys.mT)  # [R, kv_heads, h, columns]
        scores = torch.add(self._bias[:, None, None], scores, alpha=scaling)
        weights = torch.cat([scores, lse[..., None]], -1).softmax(-1).to(value.dtype)
        out = weights[..., :columns] @ values
        out = torch.addcmul(out, weights[..., columns:], on_prompt)  # [R, kv_heads, h, dim]
        return out.reshape(R, 1, -1, dim)

    def recur(self, layer: int, run: Recurrence, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Recurrence of one new token in each of R rows; see `Layout.recur`."""
        R = len(inputs[0])
        states = tuple(buffer[self._index[layer], :R] for buffer in self._states)
        out, new = run(inputs, states)
        for old, after in zip(states, new, strict=True):
            old.copy_(after)
        return out
