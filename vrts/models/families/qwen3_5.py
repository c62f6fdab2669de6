"""Qwen3.5: Qwen3-VL's prompts, read by a decoder most of whose layers are gated delta nets.

A gated delta net (Yang et al., 2024, arXiv 2412.06464) keeps no keys and values. What it knows of
the tokens before is one matrix a head, whatever their number, and the last inputs of a short
convolution. Both are states of `Layout.recur`, so a prompt is forwarded once here too, exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vrts.models.attention.shared_prefix import Layout, States
from vrts.models.families.family import Vision
from vrts.models.families.qwen3_vl import Qwen3VL

LINEAR = "linear_attention"
"""Gated delta nets among a configuration's ``layer_types``."""


class Qwen3_5(Qwen3VL):  # noqa: N801 its name
    """See `Family`. Dense models. No decoder layer takes features besides the first."""

    title: ClassVar[str] = "Qwen3.5"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5",)
    fuses_norms: ClassVar[bool] = False
    """They multiply by one more than their weight."""
    rotates_halves: ClassVar[bool] = False
    """A quarter of a head is rotated."""

    def prepare(self, model: Any) -> None:
        """See `Family.prepare`. Names of parameters stay, and what is found by them."""
        for layer in self.language(model).layers:
            net = getattr(layer, "linear_attn", None)
            if net is not None and not isinstance(net, SharedDeltaNet):
                kind = type(net)
                functions = {"functions": vars(sys.modules[kind.__module__])}
                net.__class__ = type(kind.__name__, (SharedDeltaNet, kind), functions)

    def vision_inputs(self, vision: Vision, ids: torch.Tensor) -> dict[str, Any]:
        """See `Family.vision_inputs`: none."""
        return {}

    # ---- counts

    @property
    def _num_delta_nets(self) -> int:
        return sum(kind == LINEAR for kind in self.config.text_config.layer_types)

    @property
    def num_attention_layers(self) -> int:
        """See `Family.num_attention_layers`."""
        return super().num_attention_layers - self._num_delta_nets

    def row_states(self, dtype: torch.dtype) -> States:
        """See `Family.row_states`: inputs of the convolution, and a matrix for each value head."""
        text, N = self.config.text_config, self._num_delta_nets
        heads, dim, value_dim = _heads(text)
        channels = 2 * text.linear_num_key_heads * dim + heads * value_dim
        conv = torch.empty(N, channels, text.linear_conv_kernel_dim - 1, dtype=dtype, device="meta")
        exact = torch.promote_types(dtype, torch.float32)
        return conv, torch.empty(N, heads, dim, value_dim, dtype=exact, device="meta")

    def recurrence_work(self, num_tokens: int) -> float:
        """See `Family.recurrence_work`: a token reads each matrix twice, and is added to it once.

        By token, as attention's pairs are counted: kernels compute chunks of tokens, otherwise.
        """
        heads, dim, value_dim = _heads(self.config.text_config)
        return 6.0 * self._num_delta_nets * heads * dim * value_dim * num_tokens


def _heads(text: Any) -> tuple[int, int, int]:
    """Value heads of a gated delta net, and the size of a head's keys and of its values."""
    return text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim


class SharedDeltaNet(nn.Module):
    """Mixed into transformers' gated delta net, see `Qwen3_5.prepare`.

    Projections, norm and gate take the tokens as they lie; only the convolution and the recurrence
    are told by the layout what comes before a token. They call what transformers' module has: its
    plain functions, or the kernels of flash-linear-attention and causal-conv1d where installed.
    """

    functions: ClassVar[dict[str, Any]]
    """Globals of transformers' module."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, layout: Layout | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """What the layer's own class computes, of tokens that share prompts.

        Args:
            hidden_states: ``[rows, tokens, D]``.
            args: of the layer's own class.
            layout: what lies before each token; None runs the layer's own class.
            kwargs: like `args`.

        Returns:
            ``[rows, tokens, D]``.
        """
        if layout is None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        own: Any = self
        # in the order of `vrts.models.engines.lora.SAME_INPUT`
        qkv, z, b, a = (getattr(own, f"in_proj_{x}")(hidden_states) for x in ("qkv", "z", "b", "a"))
        # of each value head: the logarithm of what it keeps, and how much of a token it takes
        decay = -own.A_log.float().exp() * F.softplus(a.float() + own.dt_bias)
        inputs = (qkv, decay, b.sigmoid())
        # A token a row is a step of decoding. A packed row has more, also where completions have
        # one each: kernels of the other function have no backward.
        rule = "recurrent" if hidden_states.shape[1] == 1 else "chunk"
        run = partial(self._run, self.functions[f"torch_{rule}_gated_delta_rule"])
        out = layout.recur(own.layer_idx, run, inputs)  # [rows, tokens, heads, dim]
        normed = own.norm(out.flatten(0, 2), z.reshape(-1, out.shape[-1]))
        return own.out_proj(normed.view(z.shape))  # type: ignore[no-any-return]

    def _run(
        self, rule: Any, inputs: Sequence[torch.Tensor], states: States | None
    ) -> tuple[torch.Tensor, States]:
        """Convolution and recurrence of rows; see `Recurrence`.

        Args:
            rule: computes the recurrence.
            inputs: queries, keys and values before the convolution, ``[rows, tokens, channels]``,
                and `decay` and ``beta`` ``[rows, tokens, heads]``.
            states: the last ``k - 1`` inputs of the convolution before the tokens, ``[rows,
                channels, k - 1]``, and the matrices ``[rows, heads, dim, value dim]``.
        """
        own: Any = self
        qkv, decay, beta = inputs
        rows, num_tokens, channels = qkv.shape
        before = own.conv_kernel_size - 1
        tail, matrices = states or (qkv.new_zeros(rows, channels, before), None)
        window = torch.cat([tail, qkv.mT], -1)
        mixed = self.functions["causal_conv1d_fn"](
            window, own.conv1d.weight.squeeze(1), own.conv1d.bias, activation=own.activation
        )[..., before:].mT
        query, key, value = mixed.split([own.key_dim, own.key_dim, own.value_dim], -1)
        # as the kernels do: autocast would round products of the plain functions to 16 bits
        with torch.autocast(qkv.device.type, enabled=False):
            out, matrices = rule(
                query.reshape(rows, num_tokens, -1, own.head_k_dim),
                key.reshape(rows, num_tokens, -1, own.head_k_dim),
                value.reshape(rows, num_tokens, -1, own.head_v_dim),
                g=decay,
                beta=beta,
                initial_state=matrices,
                output_final_state=True,
                use_qk_l2norm_in_kernel=True,
            )
        # a copy, which does not keep the window
        return out, (window[..., -before:].contiguous(), matrices)
