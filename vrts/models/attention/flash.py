"""Flash attention of completions that share a prompt, exact and without a mask.

A completion token attends to its full prompt and causally to its own completion. Each of the two
is an attention that flash kernels support; the results are merged by their log-sum-exp. No
``[tokens, P + tokens]`` mask or score matrix exists, and no completion computes scores with
another's keys.

Backward needs no gradient of the log-sum-exp: given the *merged* output and log-sum-exp, the
backward kernel of each part recomputes exactly its share of the one softmax. Ring attention (Liu
et al., 2023, arXiv 2310.01889) splits keys over devices in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_aten = torch.ops.aten


def has_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch has a flash kernel for these tensors ``[rows, heads, tokens, dim]``.

    On CUDA that is half precision only, and head dims that are multiples of 8: torch's own SDPA
    pads others, the operators that are called here refuse them.
    """
    if query.device.type == "cpu":
        return True
    if not query.is_cuda or query.shape[-1] % 8:
        return False
    grouped = query.shape[1] != key.shape[1]
    params = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, grouped)
    return bool(torch.backends.cuda.can_use_flash_attention(params))


def attend_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to all keys, without gradient.

    For few queries and many keys, as in decoding: scores are stored, since a flash kernel would
    use no more of a GPU's processors than there are heads.

    Args:
        query: ``[rows, heads, tokens, dim]``.
        key: ``[rows, heads, keys, dim]``.
        value: like `key`.
        scaling: factor of the scores.
        bias: float32 ``[rows, 1, 1, keys]``, added to the scores; None adds nothing.

    Returns:
        Output like `query`, and the float32 log-sum-exp of the scores ``[rows, heads, tokens]``.
    """
    if query.device.type == "cpu":
        mask = None if bias is None else bias.to(query.dtype)
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scaling
        )
        return out, lse
    scores = product_float32(query, key.mT)
    scores = scores.mul_(scaling) if bias is None else torch.add(bias, scores, alpha=scaling)
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


def product_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batched product ``[..., n, k] @ [..., k, m]`` that is not rounded to 16 bits."""
    if a.dtype == torch.float64:
        return a @ b
    if a.is_cuda and a.dtype != torch.float32:
        batch = a.shape[:-2]
        out = torch.bmm(a.flatten(0, -3), b.flatten(0, -3), out_dtype=torch.float32)
        return out.view(*batch, *out.shape[1:])
    return a.float() @ b.float()


class CompletionRows:
    """Converts completion tokens from packed to one row a completion, and back.

    Args:
        lengths: tokens of each completion; empty ones get no row.
        device: of the tokens.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        kept = [n for n in lengths if n > 0]
        self._shape = (len(kept), max(kept))
        self._slots: torch.Tensor | None = None
        """int64 ``[tokens]``, where each token is among ``rows * longest``; None where no padding
        is needed."""
        if min(kept) < max(kept):
            places = torch.arange(max(kept), device="cpu")
            valid = places < torch.tensor(kept, device="cpu")[:, None]
            self._slots = valid.flatten().nonzero()[:, 0].to(device)

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """``[1, heads, tokens, ...]`` to ``[rows, heads, longest, ...]``, padded with zeros."""
        heads = packed[0]  # [heads, tokens, ...]
        if self._slots is not None:
            rows, longest = self._shape
            grid = heads.new_zeros(heads.shape[0], rows * longest, *heads.shape[2:])
            heads = grid.index_copy_(1, self._slots, heads)
        return heads.view(heads.shape[0], *self._shape, *heads.shape[2:]).transpose(0, 1)

    def pack(self, spread: torch.Tensor) -> torch.Tensor:
        """The inverse of `spread`."""
        heads = spread.transpose(0, 1).flatten(1, 2)  # [heads, rows * longest, ...]
        return (heads if self._slots is None else heads[:, self._slots])[None]


class SharedPrefixFlash(torch.autograd.Function):
    """Attention of one question's completion tokens, as the module describes."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        prompt_key: torch.Tensor,
        prompt_value: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rows: CompletionRows,
        scaling: float,
    ) -> torch.Tensor:
        """Attend to the prompt and to the own completion, and merge.

        Args:
            ctx: for backward.
            query: ``[1, heads, tokens, dim]`` of all completions, one after the other.
            prompt_key: ``[1, kv_heads, P, dim]``.
            prompt_value: like `prompt_key`.
            key: ``[1, kv_heads, tokens, dim]`` of the completions.
            value: like `key`.
            rows: which tokens are whose.
            scaling: factor of the scores.

        Returns:
            ``[1, heads, tokens, dim]``.
        """
        # All completions' queries to the prompt in one call, without a mask: it comes before them.
        on_prompt, prompt_lse, prompt_state = _forward(
            query, prompt_key, prompt_value, False, scaling
        )  # [1, heads, tokens, dim], [1, heads, tokens]
        # Own keys: one causal row a completion. Its queries never reach the padding after it.
        q, k, v = (rows.spread(x) for x in (query, key, value))  # [rows, heads, longest, dim]
        on_own, own_lse, own_state = _forward(q, k, v, True, scaling)
        own_lse = rows.pack(own_lse)  # [1, heads, tokens]
        # softmax over both = each part's softmax, weighted by its share exp(lse_part - lse)
        lse = torch.logaddexp(prompt_lse, own_lse)
        out = on_prompt * (prompt_lse - lse).exp()[..., None]
        out = (out + rows.pack(on_own) * (own_lse - lse).exp()[..., None]).to(query.dtype)
        ctx.save_for_backward(query, prompt_key, prompt_value, key, value, out, lse)
        # the kernels' random state, of dropout that is off: a few bytes each
        ctx.states = prompt_state, own_state
        ctx.rows, ctx.scaling = rows, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, keys and values."""
        query, prompt_key, prompt_value, key, value, out, lse = ctx.saved_tensors
        prompt_state, own_state = ctx.states
        grad, spread = grads[0].contiguous(), ctx.rows.spread  # [1, heads, tokens, dim]
        # A kernel recomputes p = exp(q k - lse) and ds = p (grad v - sum(grad * out)). With the
        # merged lse and out, both are those of the softmax over prompt and completion together, so
        # each part's kernel gives exactly the gradients through its own keys.
        grad_query, grad_prompt_key, grad_prompt_value = _backward(
            grad, query, prompt_key, prompt_value, out, lse, prompt_state, False, ctx.scaling
        )
        # Padding has zero grad and query, so it adds nothing to the gradients of keys and values.
        g, q, k, v, o, s = (spread(x) for x in (grad, query, key, value, out, lse))
        own_grads = _backward(g, q, k, v, o, s, own_state, True, ctx.scaling)
        own_query, grad_key, grad_value = (ctx.rows.pack(x) for x in own_grads)
        grad_query = grad_query + own_query  # the query is in both parts' scores
        return grad_query, grad_prompt_key, grad_prompt_value, grad_key, grad_value, None, None


_State = tuple[Any, ...]


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, _State]:
    """Output, log-sum-exp ``[rows, heads, tokens]``, and what the backward kernel needs again."""
    if not query.is_cuda:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scaling
        )
        return out, lse, ()
    out, lse, *state, _ = _aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scaling
    )
    return out, lse, tuple(state)


def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    state: _State,
    causal: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value."""
    lse = lse.contiguous()
    if not query.is_cuda:
        grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scaling
        )
    else:
        cum_q, cum_k, max_q, max_k, seed, offset = state
        grads = _aten._scaled_dot_product_flash_attention_backward(
            grad, query, key, value, out, lse,
            cum_q, cum_k, max_q, max_k, 0.0, causal, seed, offset, scale=scaling,
        )  # fmt: skip
    grad_query, grad_key, grad_value = grads
    return grad_query, grad_key, grad_value
