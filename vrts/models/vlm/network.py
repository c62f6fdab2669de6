"""Forward passes of a model of any family: vision features, packed rows, and newest tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch

from vrts.models.attention.shared_prefix import Layout, PackedLayout, States
from vrts.models.engines.network import Network
from vrts.models.families.family import Family, Vision
from vrts.models.families.prompt import PatchKey, VideoPrompt
from vrts.models.policy import Prompt
from vrts.models.vlm.logprobs import suppress
from vrts.models.vlm.packing import Packed
from vrts.models.vlm.texts import CompletionTokenizer
from vrts.prompts import PromptTemplate
from vrts.types import Sample

MAX_PATCHES = 2**15
"""Patches that the vision tower is given at once, unless one video has more: 4 videos of 32 frames
at the training resolution, which take a 7B 2 GB. More would only take more memory."""


class TransformersNetwork(Network):
    """See `Network`.

    Args:
        model: the transformers model, whose language model runs `attention.SHARED_PREFIX`. Adapter
            layers may be put in place later.
        family: of the model.
        template: how a question is put to the model.
        end_ids: int64, each of which ends a completion.
    """

    def __init__(
        self, model: Any, family: Family, template: PromptTemplate, end_ids: torch.Tensor
    ) -> None:
        self.model = model
        self.family = family
        self.end_ids = end_ids
        self.tokenizer = CompletionTokenizer(family.processor.tokenizer)
        self.vocab_size = model.lm_head.weight.shape[0]
        self.suppressed_ids = torch.tensor(family.suppressed_ids(), device="cpu")
        """int64, of vision inputs; never sampled, since the next forward would break."""
        self._template = template

    def with_model(self, model: Any) -> TransformersNetwork:
        """See `Network.with_model`."""
        return TransformersNetwork(model, self.family, self._template, self.end_ids)

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """See `Network.kv_shape`."""
        text = self.model.config.text_config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return self.family.num_attention_layers, text.num_key_value_heads, head_dim

    @property
    def row_states(self) -> States:
        """See `Network.row_states`."""
        return self.family.row_states(self.dtype)

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
        prompts = [self.family.encode(sample, self._template) for sample in samples]
        found: list[torch.Tensor] = []
        for batch in _by_size(prompts):
            found += self._features_of(batch, cache)
        return [replace(p, features=f) for p, f in zip(prompts, found, strict=True)]

    def _features_of(
        self, prompts: Sequence[VideoPrompt], known: Mapping[PatchKey, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Features ``[vision tokens, F]`` of each video, of which only unknown patches are encoded.

        The tower's attention stays within a temporal patch, so the others change none of them.

        Args:
            prompts: some of them.
            known: features ``[tokens of a temporal patch, F]``, on the host.
        """
        patches, grids = [], []
        for prompt in prompts:
            missing = [i for i, key in enumerate(prompt.patch_keys) if key not in known]
            if missing:
                patches.append(prompt.patches(self.device, missing))
                grids.append((len(missing), *prompt.grid[1:]))
        merge = prompts[0].patcher.merge_size ** 2  # patches of a token
        new = iter(self.family.features(self.model, torch.cat(patches), grids).cpu().split(
            [h * w // merge for t, h, w in grids for _ in range(t)]
        )) if patches else iter(())  # fmt: skip
        return [
            torch.cat([known[key] if key in known else next(new) for key in prompt.patch_keys])
            for prompt in prompts
        ]

    # ---- language

    def hidden(self, packed: Packed, features: torch.Tensor) -> torch.Tensor:
        """Last hidden states ``[S, D]`` of a packed row.

        Args:
            packed: prompts and their completions.
            features: ``[vision tokens, F]`` of all its prompts, in order.
        """
        return self._row(
            packed.input_ids, packed.positions, packed.layout, packed.vision_places, features
        )

    def _row(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        layout: PackedLayout,
        vision_places: torch.Tensor,
        features: torch.Tensor,
    ) -> torch.Tensor:
        vision = Vision(vision_places, features)
        return self.family.hidden(self.model, ids[None], positions[:, None], layout, vision)[0]

    def prefill(self, prompts: Sequence[Prompt]) -> tuple[PackedLayout, torch.Tensor]:
        """See `Network.prefill`."""
        own = cast(Sequence[VideoPrompt], prompts)
        device = self.device
        lengths = [p.num_tokens for p in own]
        layout = PackedLayout(lengths, [[] for _ in lengths], device, keep_prompt_kv=True)
        ends = list(accumulate(lengths))
        places = [p.vision_places + end - n for p, end, n in zip(own, ends, lengths, strict=True)]
        hidden = self._row(
            torch.cat([p.input_ids for p in own]).to(device),
            torch.cat([p.positions for p in own], 1).to(device),
            layout,
            torch.cat(places).to(device),
            torch.cat([p.features for p in own]).to(device),
        )
        last = torch.tensor(ends, device=device) - 1
        return layout, self._logits(hidden[last])

    def first_position(self, prompt: Prompt) -> int:
        """See `Network.first_position`."""
        assert isinstance(prompt, VideoPrompt)
        return prompt.next_position

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, layout: Layout) -> torch.Tensor:
        """See `Network.decode`."""
        axes = positions.expand(self.family.position_axes, -1)[..., None]  # [A, R, 1]
        hidden = self.family.hidden(self.model, tokens[:, None], axes, layout)
        return self._logits(hidden[:, 0])

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
