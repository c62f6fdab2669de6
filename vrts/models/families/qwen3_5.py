"""Qwen3.5: Qwen3-VL's prompts, read by a decoder most of whose layers are gated delta nets.

A gated delta net (Yang et al., 2024, arXiv 2412.06464) keeps no keys and values. It sums up all
tokens so far in one matrix per head, and keeps the last inputs of a short convolution. Both are
states in the sense of `Layout.recur`, so that a prompt is forwarded once here too, exactly.
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
    """See `Family`. Dense models; there are no features for deeper layers."""

    title: ClassVar[str] = "Qwen3.5"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5",)
    fuses_norms: ClassVar[bool] = False
    """They multiply by 1 + weight."""
    rotates_halves: ClassVar[bool] = False
    """A quarter of a head is rotated."""

    def prepare(self, model: Any) -> None:
        """See `Family.prepare`. Parameters keep their names, for adapters and checkpoints."""
        for layer in self.language(model).layers:
            net = getattr(layer, "linear_attn", None)
            if net is not None and not isinstance(net, SharedDeltaNet):
                kind = type(net)
                functions = {"functions": vars(sys.modules[kind.__module__])}
                net.__class__ = type(kind.__name__, (SharedDeltaNet, kind), functions)

    def vision_inputs(self, vision: Vision, ids: torch.Tensor) -> dict[str, Any]:
        """See `Family.vision_inputs`: nothing."""
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
        """See `Family.recurrence_work`: each token reads every matrix twice and updates it once.

        Kernels compute tokens in chunks, with other products; those are not counted.
        """
        heads, dim, value_dim = _heads(self.config.text_config)
        return 6.0 * self._num_delta_nets * heads * dim * value_dim * num_tokens


def _heads(text: Any) -> tuple[int, int, int]:
    """Value heads of a gated delta net, and the size of a head's keys and of its values."""
    return text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim


class SharedDeltaNet(nn.Module):
    """Mixed into transformers' gated delta net, see `Qwen3_5.prepare`.

    Projections, norm and gate do not mix tokens. The convolution and the recurrence do, and the
    layout gives them what comes before each token. Both are transformers' own functions, which are
    the kernels of causal-conv1d and flash-linear-attention where these are installed.
    """

    functions: ClassVar[dict[str, Any]]
    """Globals of transformers' module."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, layout: Layout | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """The forward of the layer's own class, for tokens that share prompts.

        Args:
            hidden_states: ``[rows, tokens, D]``.
            args: for the layer's own class.
            layout: which tokens follow which; None runs the layer's own class.
            kwargs: like `args`.

        Returns:
            ``[rows, tokens, D]``.
        """
        if layout is None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        own: Any = self
        # in the order of `vrts.models.engines.lora.SAME_INPUT`
        qkv, z, b, a = (getattr(own, f"in_proj_{x}")(hidden_states) for x in ("qkv", "z", "b", "a"))
        # [rows, tokens, heads]: the logarithm of the share that is kept, negative
        decay = -own.A_log.float().exp() * F.softplus(a.float() + own.dt_bias)
        inputs = (qkv, decay, b.sigmoid())
        # One token a row is a step of decoding. Not so in a packed row, even where completions have
        # one token each: the recurrent function's kernel has no backward.
        rule = "recurrent" if hidden_states.shape[1] == 1 else "chunk"
        run = partial(self._run, self.functions[f"torch_{rule}_gated_delta_rule"])
        out = layout.recur(own.layer_idx, run, inputs)  # [rows, tokens, heads, dim]
        normed = own.norm(out.flatten(0, 2), z.reshape(-1, out.shape[-1]))
        return own.out_proj(normed.view(z.shape))  # type: ignore[no-any-return]

    def _run(
        self, rule: Any, inputs: Sequence[torch.Tensor], states: States | None
    ) -> tuple[torch.Tensor, States]:
        """Convolution and recurrence of some rows, a `Recurrence`.

        Args:
            rule: transformers' function for the recurrence.
            inputs: queries, keys and values side by side, ``[rows, tokens, channels]``; the decay
                and the share of each token that is stored, both ``[rows, tokens, heads]``.
            states: the ``k - 1`` inputs of the convolution before the first token, ``[rows,
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
        # each of these serves several value heads; the functions of transformers before 5.20 leave
        # it to their caller
        query, key = (
            x.reshape(rows, num_tokens, -1, own.head_k_dim).repeat_interleave(
                own.num_v_heads // own.num_k_heads, 2
            )
            for x in (query, key)
        )
        # in float32, as the kernels: autocast would round products of the plain functions
        with torch.autocast(qkv.device.type, enabled=False):
            out, matrices = rule(
                query,
                key,
                value.reshape(rows, num_tokens, -1, own.head_v_dim),
                g=decay,
                beta=beta,
                initial_state=matrices,
                output_final_state=True,
                use_qk_l2norm_in_kernel=True,
            )
        # a copy, so that the window can be freed
        return out, (window[..., -before:].contiguous(), matrices)
