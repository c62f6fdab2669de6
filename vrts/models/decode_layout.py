"""Attention of decoding: buffers that stay where they are, so that a CUDA graph can replay a step.

See `vrts.models.attention` for the layouts' purpose.
"""

from __future__ import annotations

import torch

from vrts.models.attention import PackedLayout
from vrts.models.flash import attend_with_lse

KeyValue = tuple[torch.Tensor, torch.Tensor]


class DecodeLayout:
    """Keys and values for decoding: one copy of each prompt, one completion a row.

    The rows of a question attend to their prompt in one call, whose log-sum-exp then stands among
    the scores of their own tokens as one more, and its output among their values.

    Within a segment of steps every step reads the same memory, in the same shapes: completion keys
    from the first column to the segment's last, of which those not yet written are masked.

    Args:
        prefill: layout of a finished prefill of B prompts; its keys and values move here.
        num_samples: G, rows a question.
        max_new_tokens: tokens to make room for.
    """

    def __init__(self, prefill: PackedLayout, num_samples: int, max_new_tokens: int) -> None:
        self._prompts: dict[int, list[KeyValue]] = {}
        """Of each layer and question, ``[1, kv_heads, P, dim]``."""
        self._own: dict[int, KeyValue] = {}
        """Of each layer, ``[B, kv_heads, G, max_new_tokens, dim]``."""
        for layer in list(prefill.prompt_kv):
            kept = prefill.prompt_kv.pop(layer)
            self._prompts[layer] = [(k[None].contiguous(), v[None].contiguous()) for k, v in kept]
            key = kept[0][0]
            shape = (len(kept), key.shape[0], num_samples, max_new_tokens, key.shape[2])
            self._own[layer] = (key.new_zeros(shape), key.new_zeros(shape))
        self.step = torch.zeros(1, dtype=torch.int64, device=prefill.device)
        """int64 ``[1]``, tokens that each row holds already. A forward appends one; whoever calls
        it counts on, in place."""
        self._masked = self.step > 0

    def begin_segment(self, num_columns: int) -> None:
        """Prepare for steps of one shape.

        Args:
            num_columns: tokens that rows hold after the segment's last step, at most.
        """
        # the last one is the prompt's
        columns = torch.arange(num_columns + 1, device=self.step.device)
        self._masked = (columns >= self.step) & (columns < num_columns)

    def begin_step(self) -> None:
        """Unmask the column that this step writes, once for all layers."""
        self._masked.index_fill_(0, self.step, False)

    def keep(self, questions: torch.Tensor, samples: torch.Tensor) -> None:
        """Go on with some of the rows, in buffers of a new shape; a segment has to begin then.

        Args:
            questions: int64 ``[B']``, which of the questions, ascending.
            samples: int64 ``[B', G']``, which samples of each.
        """
        staying = questions.tolist()
        self._prompts = {n: [kept[b] for b in staying] for n, kept in self._prompts.items()}
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
        own_keys, own_values = self._own[layer]
        B, kv_heads, G, _, dim = own_keys.shape
        columns = len(self._masked) - 1
        for own, new in ((own_keys, key), (own_values, value)):
            own.index_copy_(3, self.step, new.reshape(B, G, kv_heads, 1, dim).transpose(1, 2))

        # [B, kv_heads, G * heads of a kv head, dim]: the keys of a prompt are read once
        q = query.reshape(B, G, kv_heads, -1, dim).transpose(1, 2).reshape(B, kv_heads, -1, dim)
        prompts = zip(q.split(1), self._prompts[layer], strict=True)
        parts = [attend_with_lse(x, k, v, scaling) for x, (k, v) in prompts]
        on_prompt, lse = (torch.cat(x) if B > 1 else x[0] for x in zip(*parts, strict=True))

        single = q.reshape(B * kv_heads * G, -1, dim)
        keys, values = (x.flatten(0, 2)[:, :columns] for x in (own_keys, own_values))
        # scaled in the product's own kernel, before it is rounded
        scores = torch.baddbmm(q.new_empty(1, 1, 1), single, keys.mT, beta=0, alpha=scaling)
        scores = torch.cat([scores, lse.reshape(*single.shape[:2], 1)], dim=-1)
        weights = scores.masked_fill_(self._masked, float("-inf")).softmax(-1).to(value.dtype)
        of_prompt = weights[:, :, columns:] * on_prompt.reshape(single.shape)
        out = torch.baddbmm(of_prompt, weights[:, :, :columns], values)
        out = out.view(B, kv_heads, G, -1, dim).transpose(1, 2)
        return out.reshape(B * G, 1, -1, dim)
