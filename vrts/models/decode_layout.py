"""Attention of decoding: buffers that stay where they are, so that a CUDA graph can replay a step.

See `vrts.models.attention` for the layouts' purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from vrts.models.attention import PackedLayout


class DecodeLayout:
    """Keys and values for decoding: one copy of each prompt, one completion a row.

    Within a segment of steps every step reads the same memory, in the same shapes: completion keys
    from the first column to the segment's last, of which those not yet written are masked.

    Args:
        prefill: layout of a finished prefill of B prompts; its keys and values move here.
        num_samples: G, rows a question.
        max_new_tokens: tokens to make room for.
    """

    def __init__(self, prefill: PackedLayout, num_samples: int, max_new_tokens: int) -> None:
        lengths = torch.tensor(list(prefill.prompt_lengths), device=prefill.device)
        columns = torch.arange(max(prefill.prompt_lengths), device=prefill.device)
        self._padding = columns >= lengths[:, None]  # [B, P]
        self._prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in list(prefill.prompt_kv):
            keys, values = zip(*prefill.prompt_kv.pop(layer), strict=True)
            # [B, kv_heads, P, dim], zeros on the right of shorter prompts
            self._prefix[layer] = (_pad(keys, len(columns)), _pad(values, len(columns)))
            kv_heads, _, dim = keys[0].shape
            shape = (len(keys), kv_heads, num_samples, max_new_tokens, dim)
            self._own[layer] = (keys[0].new_zeros(shape), keys[0].new_zeros(shape))
        self.step = torch.zeros(1, dtype=torch.int64, device=prefill.device)
        """int64 ``[1]``, tokens that each row holds already. A forward appends one; whoever calls
        it counts on, in place."""
        self._masked = self._padding

    def begin_segment(self, num_columns: int) -> None:
        """Prepare for steps of one shape.

        Args:
            num_columns: tokens that rows hold after the segment's last step, at most.
        """
        unwritten = torch.arange(num_columns, device=self.step.device) >= self.step
        own = unwritten.expand(len(self._padding), -1)
        self._masked = torch.cat([self._padding, own], dim=1)

    def begin_step(self) -> None:
        """Unmask the column that this step writes, once for all layers."""
        self._masked.index_fill_(1, self.step + self._padding.shape[1], False)

    def keep(self, questions: torch.Tensor, samples: torch.Tensor) -> None:
        """Go on with some of the rows, in buffers of a new shape; a segment has to begin then.

        Args:
            questions: int64 ``[B']``, which of the questions, ascending.
            samples: int64 ``[B', G']``, which samples of each.
        """
        if len(questions) < len(self._padding):
            self._padding = self._padding[questions]
            self._prefix = {n: (k[questions], v[questions]) for n, (k, v) in self._prefix.items()}
        index = (questions[:, None], slice(None), samples)
        # the indexed dimensions come first: [B', G', kv_heads, ...]
        self._own = {
            n: (k[index].transpose(1, 2).contiguous(), v[index].transpose(1, 2).contiguous())
            for n, (k, v) in self._own.items()
        }

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention of one new token in each of N rows; see `Layout.attend`."""
        prefix_keys, prefix_values = self._prefix[layer]
        own_keys, own_values = self._own[layer]
        B, kv_heads, G, _, dim = own_keys.shape
        P, heads = prefix_keys.shape[2], query.shape[1]
        columns = self._masked.shape[1] - P
        for own, new in ((own_keys, key), (own_values, value)):
            own.index_copy_(3, self.step, new.reshape(B, G, kv_heads, 1, dim).transpose(1, 2))

        # [B, kv_heads, G, heads of a kv head, dim]
        q = query.reshape(B, G, kv_heads, -1, dim).transpose(1, 2)
        # The G rows of a question read its prompt's keys in one product.
        shared = q.reshape(B * kv_heads, -1, dim)
        single = shared.reshape(B * kv_heads * G, -1, dim)
        on_prefix = _scaled(shared, prefix_keys.flatten(0, 1).mT, scaling)
        on_own = _scaled(single, own_keys.flatten(0, 2)[:, :columns].mT, scaling)
        scores = torch.cat([on_prefix.view(*q.shape[:4], P), on_own.view(*q.shape[:4], -1)], -1)
        scores = scores.masked_fill_(self._masked[:, None, None, None], float("-inf"))
        weights = scores.softmax(-1).to(value.dtype)
        on_prefix = weights.view(B * kv_heads, -1, P + columns)[:, :, :P]
        on_own = weights.view(B * kv_heads * G, -1, P + columns)[:, :, P:]
        out = torch.baddbmm(
            torch.bmm(on_prefix, prefix_values.flatten(0, 1)).view(single.shape),
            on_own,
            own_values.flatten(0, 2)[:, :columns],
        )
        out = out.view(B, kv_heads, G, -1, dim).transpose(1, 2)
        return out.reshape(B * G, 1, heads, dim)


def _scaled(a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Batched ``scaling * a @ b``, scaled before it is rounded and in one kernel."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scaling)


def _pad(tensors: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Stack ``[heads, P_b, dim]`` tensors, zero-padded to `length` tokens."""
    return torch.stack([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in tensors])
