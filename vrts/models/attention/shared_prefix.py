"""Attention that computes a prompt once for all completions that share it.

Two layouts of one language-model forward:

- `PackedLayout`: one row holds, question after question, a prompt and its completions. Prompt
  tokens attend causally to their prompt; completion tokens to the full prompt and causally to
  their own completion. No padding is computed and the prompt is forwarded once, so the gradient
  of all completions flows back through it in one pass.
- `KVCache` (in `kv_cache`): R rows of one new token each, which read one copy of their prompt's
  keys and values.

Both are exact: the result is that of a plain forward of every ``prompt + completion`` on its own.
A layout travels to the attention layers as the keyword argument `layout`, which transformers
passes on untouched (unlike a cache, which gradient checkpointing drops).

Layers that keep a state instead of keys and values (linear attention) share a prompt too: each of
its completions starts from the state after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vrts.models.attention.flash import CompletionRows, SharedPrefixFlash, has_flash

SHARED_PREFIX = "vrts_shared_prefix"
"""Name under which the attention is known to transformers (``attn_implementation``)."""

States = tuple[torch.Tensor, ...]
"""What a recurrent layer keeps of the tokens so far: ``[rows, ...]`` each."""
Recurrence = Callable[[Sequence[torch.Tensor], States | None], tuple[torch.Tensor, States]]
"""Maps inputs ``[rows, tokens, ...]`` and the states before them, None at the start of a prompt, to
an output ``[rows, tokens, ...]`` and the states after them, which are new tensors."""


class Layout(Protocol):
    """How the tokens of one forward attend to each other."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: index of the decoder layer.
            query: ``[rows, heads, tokens, dim]``, rotated.
            key: ``[rows, kv_heads, tokens, dim]``, rotated.
            value: like `key`.
            scaling: factor of the scores.

        Returns:
            ``[rows, tokens, heads, dim]``.
        """
        ...

    def recur(self, layer: int, run: Recurrence, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Recurrence of one layer.

        Args:
            layer: index of the decoder layer.
            run: the recurrence of some rows.
            inputs: ``[rows, tokens, ...]`` each.

        Returns:
            ``[rows, tokens, ...]``.
        """
        ...


@dataclass
class PackedLayout:
    """Where each prompt and its completions are in a packed row of ``S`` tokens."""

    prompt_lengths: Sequence[int]
    """P of each of the B questions."""
    completion_lengths: Sequence[Sequence[int]]
    """Forwarded tokens of each question's completions; an empty list for a prefill."""
    device: torch.device
    prompt_kv: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)
    """Filled by a prefill: for each layer, keys and values ``[heads, P, dim]`` of each prompt."""
    keep_prompt_kv: bool = False
    """Whether to fill `prompt_kv` and `prompt_states`."""
    prompt_states: dict[int, list[States]] = field(default_factory=dict)
    """Filled by a prefill: for each recurrent layer, the states ``[1, ...]`` after each prompt."""

    def __post_init__(self) -> None:
        # once for all layers; None where a prompt has no completion tokens
        self._rows = [
            CompletionRows(lengths, self.device) if sum(lengths) else None
            for lengths in self.completion_lengths
        ]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention of the packed row of S tokens; see `Layout.attend`."""
        outputs: list[torch.Tensor] = []
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        flash = has_flash(query, key, value)
        start = 0
        for length, lengths, rows in zip(
            self.prompt_lengths, self.completion_lengths, self._rows, strict=True
        ):
            sizes = [length, sum(lengths)]
            end = start + sum(sizes)
            (q, q_own), (k, k_own), (v, v_own) = (
                x[:, :, start:end].split(sizes, dim=2) for x in (query, key, value)
            )  # [1, heads, P, dim] and [1, heads, tokens, dim]
            outputs.append(_dense(q, k, v, None, scaling, grouped=flash))
            if self.keep_prompt_kv:
                kept.append((k[0], v[0]))
            if rows is not None and flash:
                outputs.append(SharedPrefixFlash.apply(q_own, k, v, k_own, v_own, rows, scaling))
            elif rows is not None:
                mask = completion_mask(length, lengths, self.device)
                k, v = key[:, :, start:end], value[:, :, start:end]
                outputs.append(_dense(q_own, k, v, mask, scaling, grouped=False))
            start = end
        if self.keep_prompt_kv:
            self.prompt_kv[layer] = kept
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def recur(self, layer: int, run: Recurrence, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Recurrence of the packed row of S tokens; see `Layout.recur`.

        Each completion is a row of its own, padded after its last token, where padding changes
        nothing. All start from the same states, those after their prompt, and their gradients add
        up there.
        """
        outputs: list[torch.Tensor] = []
        kept: list[States] = []
        start = 0
        for length, lengths, rows in zip(
            self.prompt_lengths, self.completion_lengths, self._rows, strict=True
        ):
            middle, end = start + length, start + length + sum(lengths)
            out, states = run([x[:, start:middle] for x in inputs], None)
            outputs.append(out)
            if self.keep_prompt_kv:
                kept.append(states)
            if rows is not None:
                # [1, 1, tokens, ...] -> [G, 1, longest, ...]
                own = [rows.spread(x[:, None, middle:end])[:, 0] for x in inputs]
                out, _ = run(own, tuple(s.expand(len(own[0]), *s.shape[1:]) for s in states))
                outputs.append(rows.pack(out[:, None])[:, 0])
            start = end
        if self.keep_prompt_kv:
            self.prompt_states[layer] = kept
        return torch.cat(outputs, dim=1)

    def take_states(self) -> list[States]:
        """Take the states after each prompt out of the layout, ``[layers, ...]`` each."""
        layers = [self.prompt_states.pop(layer) for layer in sorted(self.prompt_states)]
        return [
            tuple(
                torch.cat(of_layers) for of_layers in zip(*(own[i] for own in layers), strict=True)
            )
            for i in range(len(self.prompt_lengths))
        ]


def completion_mask(
    prompt_length: int, lengths: Sequence[int], device: torch.device
) -> torch.Tensor:
    """Bool ``[tokens, P + tokens]`` of one question's completion tokens: prompt and own ones."""
    owner = torch.repeat_interleave(torch.tensor(list(lengths), device=device))  # [tokens]
    own = (owner[:, None] == owner[None, :]).tril()  # causal, within a completion
    return F.pad(own, (prompt_length, 0), value=True)


def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    *,
    grouped: bool,
) -> torch.Tensor:
    """SDPA; causal where no mask is given.

    `grouped`: the kernel takes fewer heads of keys than of queries. Only flash kernels do; for the
    others torch would fall back to one that stores all scores.
    """
    if not grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of the language model; plain SDPA where no layout is given.

    The signature is that of transformers' attention functions (5.17 to 5.24).

    Returns:
        ``[rows, tokens, heads, dim]``, and None for the attention weights.
    """
    if layout is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    layer = module.layer_idx
    assert isinstance(layer, int)
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # As autocast does for SDPA. Rotated queries and keys would otherwise stay in float32.
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return layout.attend(layer, query, key, value, scaling), None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
