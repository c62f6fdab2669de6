"""Passes of Qwen's language model over packed prompts and over the newest tokens."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import torch

from vrts.models.attention import Layout, PackedLayout
from vrts.models.decode_layout import DecodeLayout
from vrts.models.head import ban
from vrts.models.qwen_prompts import QwenPrompts


class QwenLanguage:
    """The language model of Qwen2.5-VL or Qwen2-VL, with its embeddings and head.

    Args:
        model: the transformers model, whose language model runs `attention.SHARED_PREFIX`. Adapter
            layers may be put in place later.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def hidden(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        vision_places: torch.Tensor,
        features: torch.Tensor,
        layout: PackedLayout,
    ) -> torch.Tensor:
        """Last hidden states ``[S, D]`` of a packed row.

        Args:
            ids: int64 ``[S]``.
            positions: int64 ``[3, S]``, M-RoPE.
            vision_places: int64 ``[vision tokens]``, where in the row these are.
            features: ``[vision tokens, D]``, that stand in their places.
            layout: which tokens see which.
        """
        embeds = self._model.model.language_model.embed_tokens(ids)
        # by place: masked_scatter would count along an int64 copy of the mask, [S, D]
        embeds = embeds.index_copy(0, vision_places, features.to(embeds.dtype))
        return self._forward(embeds[None], positions[:, None], layout)[0]

    def prefill(
        self, prompts: QwenPrompts, banned: torch.Tensor, device: torch.device
    ) -> tuple[PackedLayout, torch.Tensor]:
        """Forward B prompts once.

        Args:
            prompts: encoded.
            banned: ids that must not be drawn, on the device.
            device: of the model.

        Returns:
            Their keys and values, and float32 logits ``[B, V]`` of what follows.
        """
        lengths = [len(p.input_ids) for p in prompts.encoded]
        layout = PackedLayout(lengths, [[] for _ in lengths], device, keep_prompt_kv=True)
        ids = torch.cat([p.input_ids for p in prompts.encoded]).to(device)
        positions = torch.cat([p.positions for p in prompts.encoded], 1).to(device)
        ends = list(accumulate(lengths))
        starts = [0, *ends[:-1]]
        places = torch.cat(
            [p.vision_places + start for p, start in zip(prompts.encoded, starts, strict=True)]
        ).to(device)
        hidden = self.hidden(ids, positions, places, prompts.features, layout)
        last = torch.tensor(ends, device=device) - 1
        return layout, self._logits(hidden[last], banned)

    def decode(
        self,
        banned: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: DecodeLayout,
    ) -> torch.Tensor:
        """See `decoder.Forward`; `banned` ids are on the device already."""
        embeds = self._model.model.language_model.embed_tokens(tokens[:, None])
        hidden = self._forward(embeds, positions.expand(3, -1)[..., None], cache)
        return self._logits(hidden[:, 0], banned)

    def _forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """Last hidden states ``[rows, tokens, D]``."""
        out = self._model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            # The layout masks; a mapping keeps transformers from building masks of its own.
            attention_mask={"full_attention": None, "sliding_attention": None},
            use_cache=False,
            layout=layout,
        )
        return cast(torch.Tensor, out.last_hidden_state)

    def _logits(self, hidden: torch.Tensor, banned: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[R, V]`` of hidden states ``[R, D]``."""
        return ban(self._model.lm_head(hidden).float(), banned)
