"""Forward passes of Qwen2.5-VL and Qwen2-VL: vision features, packed rows, and newest tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch
from transformers.models.vlm2_5_vl import modeling_qwen2_5_vl
from transformers.models.vlm2_vl import modeling_qwen2_vl

import vrts.models.vlm.network  # noqa: F401 a decoding step takes fewer kernels
from vrts.models.attention.shared_prefix import Layout, PackedLayout
from vrts.models.engines.network import Network
from vrts.models.policy import Prompt
from vrts.models.vlm.inputs import PatchKey, PromptEncoder, VideoPrompt, vision_token_ids
from vrts.models.vlm.logprobs import suppress
from vrts.types import Sample

MAX_PATCHES = 2**15
"""Patches that the vision tower is given at once, unless one video has more: 4 videos of 32 frames
at the training resolution, which take a 7B 2 GB. More would only take more memory."""


class TransformersNetwork(Network):
    """See `Network`.

    Args:
        model: the transformers model, whose language model runs `attention.SHARED_PREFIX`. Adapter
            layers may be put in place later.
        encoder: makes prompts of samples, without features.
        end_ids: int64, each of which ends a completion.
        tokenizer: of the model.
    """

    def __init__(
        self, model: Any, encoder: PromptEncoder, end_ids: torch.Tensor, tokenizer: Any
    ) -> None:
        self.model = model
        self.end_ids = end_ids
        self.tokenizer = tokenizer
        self.vocab_size = model.lm_head.weight.shape[0]
        self.suppressed_ids = vision_token_ids(model.config)
        """int64, of vision inputs; never sampled, since the next forward would break."""
        self._encoder = encoder

    def with_model(self, model: Any) -> TransformersNetwork:
        """See `Network.with_model`."""
        return TransformersNetwork(model, self._encoder, self.end_ids, self.tokenizer)

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """See `Network.kv_shape`."""
        text = self.model.config.text_config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return text.num_hidden_layers, text.num_key_value_heads, head_dim

    @property
    def device(self) -> torch.device:
        """See `Network.device`."""
        return cast(torch.device, self.model.lm_head.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """See `Network.dtype`."""
        kind = self.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return cast(torch.dtype, self.model.lm_head.weight.dtype)

    # ---- vision

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """See `Engine.encode`. Prompts and their features lie on the host."""
        assert known is None or isinstance(known, VideoPrompt)
        cache = {} if known is None else known.features_by_patch()
        prompts = [self._encoder(sample) for sample in samples]
        found: list[torch.Tensor] = []
        for batch in _by_size(prompts):
            found += self._features_of(batch, cache)
        return [replace(p, features=f) for p, f in zip(prompts, found, strict=True)]

    def _features_of(
        self, prompts: Sequence[VideoPrompt], known: Mapping[PatchKey, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Features ``[vision tokens, D]`` of each video, of which only unknown patches are encoded.

        The tower's attention stays within a temporal patch, so the others change none of them.

        Args:
            prompts: some of them.
            known: features ``[tokens of a temporal patch, D]``, on the host.
        """
        patches, grids = [], []
        for prompt in prompts:
            missing = [i for i, key in enumerate(prompt.patch_keys) if key not in known]
            if missing:
                patches.append(prompt.patches(self.device, missing))
                grids.append((len(missing), *prompt.grid[1:]))
        new = iter(self.features(torch.cat(patches), grids).cpu().split(
            [h * w // self._encoder.patches_per_token for t, h, w in grids for _ in range(t)]
        )) if patches else iter(())  # fmt: skip
        return [
            torch.cat([known[key] if key in known else next(new) for key in prompt.patch_keys])
            for prompt in prompts
        ]

    def features(
        self, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]]
    ) -> torch.Tensor:
        """Features ``[vision tokens, D]`` of several videos; with gradient where there is one.

        Args:
            patches: float32 ``[patches, C * temporal_patch_size * patch_size ** 2]``.
            grids: temporal, vertical and horizontal patches of each video.
        """
        visual = self.model.model.visual
        grid = torch.tensor(list(grids), device=patches.device)
        out = visual(patches.to(visual.patch_embed.proj.weight.dtype), grid_thw=grid)
        return cast(torch.Tensor, out.pooler_output)

    # ---- language

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
        embeds = self.model.model.language_model.embed_tokens(ids)
        # by place: masked_scatter would count along an int64 copy of the mask, [S, D]
        embeds = embeds.index_copy(0, vision_places, features.to(embeds.dtype))
        return self._forward(embeds[None], positions[:, None], layout)[0]

    def prefill(self, prompts: Sequence[Prompt]) -> tuple[PackedLayout, torch.Tensor]:
        """See `Network.prefill`."""
        own = cast(Sequence[VideoPrompt], prompts)
        device = self.device
        lengths = [p.num_tokens for p in own]
        layout = PackedLayout(lengths, [[] for _ in lengths], device, keep_prompt_kv=True)
        ends = list(accumulate(lengths))
        places = [p.vision_places + end - n for p, end, n in zip(own, ends, lengths, strict=True)]
        hidden = self.hidden(
            torch.cat([p.input_ids for p in own]).to(device),
            torch.cat([p.positions for p in own], 1).to(device),
            torch.cat(places).to(device),
            torch.cat([p.features for p in own]).to(device),
            layout,
        )
        last = torch.tensor(ends, device=device) - 1
        return layout, self._logits(hidden[last])

    def first_position(self, prompt: Prompt) -> int:
        """See `Network.first_position`."""
        assert isinstance(prompt, VideoPrompt)
        return prompt.next_position

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, layout: Layout) -> torch.Tensor:
        """See `Network.decode`."""
        embeds = self.model.model.language_model.embed_tokens(tokens[:, None])
        hidden = self._forward(embeds, positions.expand(3, -1)[..., None], layout)
        return self._logits(hidden[:, 0])

    def _forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """Last hidden states ``[rows, tokens, D]``."""
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            # The layout masks; a mapping keeps transformers from building masks of its own.
            attention_mask={"full_attention": None, "sliding_attention": None},
            use_cache=False,
            layout=layout,
        )
        return cast(torch.Tensor, out.last_hidden_state)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[R, V]`` of hidden states ``[R, D]``."""
        # moved once, outside of what a CUDA graph records
        self.suppressed_ids = self.suppressed_ids.to(hidden.device)
        return suppress(self.model.lm_head(hidden).float(), self.suppressed_ids)


def _by_size(prompts: Sequence[VideoPrompt]) -> list[list[VideoPrompt]]:
    """Prompts in order, in groups of no more than `MAX_PATCHES` where they have several."""
    groups: list[list[VideoPrompt]] = []
    room = 0
    for prompt in prompts:
        size = prompt.grid[0] * prompt.grid[1] * prompt.grid[2]
        if size > room:
            groups.append([])
            room = MAX_PATCHES
        groups[-1].append(prompt)
        room -= size
    return groups


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of ``x[i]`` and ``x[i + dim / 2]``; in lower precision rounded less often.

    Args:
        x: ``[..., dim]``.
        cos: of the angles, each of them twice, ``[..., dim]``.
        sin: like `cos`.
    """
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def _fewer_kernels(modeling: Any) -> None:
    """Let the attention layers of a transformers module rotate new tokens by `rotate`."""
    original = modeling.apply_rotary_pos_emb

    def apply_rotary_pos_emb(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        unsqueeze_dim: int = 1,
    ) -> Any:
        # A decoding step. In others policy and reference must round alike, with and without grad.
        if torch.is_grad_enabled() or q.shape[-2] != 1:
            return original(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    vars(modeling)[apply_rotary_pos_emb.__name__] = apply_rotary_pos_emb


for _modeling in (modeling_qwen2_5_vl, modeling_qwen2_vl):
    _fewer_kernels(_modeling)
