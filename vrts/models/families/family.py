"""What differs between families of video language models. One class and one file for each.

A family is found from the ``model_type`` of a folder's ``config.json`` (`find_family`). To add one:
derive from `Family`, list it in `FAMILIES` (`known.py`), and give `tests/models/families/tiny.py` a
random model of it, which every test of families then takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import nn

from vrts.models.attention.shared_prefix import Layout, States
from vrts.models.families.flops import Matrices
from vrts.models.families.prompt import Patcher, VideoPrompt, patch_keys
from vrts.prompts import PromptTemplate
from vrts.types import FrameSizes, Sample

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Of the prompt's template and its answers; some checkpoints have special tokens for them."""


@dataclass(frozen=True, slots=True)
class Vision:
    """Vision features and the tokens that they stand for."""

    places: torch.Tensor
    """int64 ``[vision tokens]``, in a packed row."""
    features: torch.Tensor
    """``[vision tokens, F]``."""


class Family(ABC):
    """Prompts and passes of one family.

    Args:
        config: transformers' configuration of the model.
        processor: transformers' processor of the model.
    """

    title: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """In ``config.json``."""
    processors: ClassVar[tuple[str, ...]]
    """Classes of transformers that make its inputs."""
    fuses_norms: ClassVar[bool] = True
    """Whether its RMS norms multiply by their weight, as torch's do."""
    rotates_halves: ClassVar[bool] = True
    """Whether all of a head is rotated, its first half against its second."""
    position_axes: ClassVar[int] = 3
    """A: 3 for M-RoPE, 1 for plain positions."""
    batches_windows: ClassVar[bool] = True
    """Whether its vision tower takes `BATCHED_WINDOWS`; others attend to a whole image anyway."""

    def __init__(self, config: Any, processor: Any) -> None:
        self.config = config
        self.processor = processor

    @classmethod
    @abstractmethod
    def frame_sizes(cls, config: Any) -> FrameSizes:
        """How large its frames are.

        Args:
            config: transformers' configuration of the model; nothing else is loaded yet.
        """

    # ---- parts of the transformers model

    def visual(self, model: Any) -> Any:
        """The vision tower, with all that makes its features."""
        return model.model.visual

    def language(self, model: Any) -> Any:
        """The decoder, with its token embeddings."""
        return model.model.language_model

    def vision_layers(self, model: Any) -> list[nn.Module]:
        """Blocks of the vision tower in order, which FSDP shards one by one."""
        return list(self.visual(model).blocks)

    def patch_projection(self, model: Any) -> nn.Module | None:
        """The convolution whose every input is one patch, which a product can replace."""
        return cast(nn.Module, self.visual(model).patch_embed.proj)

    def prepare(self, model: Any) -> None:  # noqa: B027 most families have nothing to do
        """Let recurrent layers take a layout. Idempotent."""

    # ---- a question as tokens, positions and patches

    @abstractmethod
    def patcher(self, sample: Sample) -> Patcher:
        """What makes patches of the frames of a sample."""

    @abstractmethod
    def expand(self, chat: str, sample: Sample, num_patches: int) -> str:
        """Put a placeholder for each temporal patch where the chat has one for the clip.

        Args:
            chat: rendered by the model's template.
            sample: with a clip.
            num_patches: temporal patches of the clip.
        """

    @abstractmethod
    def positions(
        self, is_vision: torch.Tensor, grid: tuple[int, int, int], sample: Sample
    ) -> tuple[torch.Tensor, int]:
        """Positions of a prompt's tokens, and that of the completion's first one.

        Args:
            is_vision: bool ``[P]``, True for vision tokens.
            grid: temporal, vertical and horizontal patches.
            sample: with a clip.

        Returns:
            int64 ``[A, P]``, and a position.
        """

    def vision_ids(self) -> list[int]:
        """Ids of the placeholders that vision features take the place of."""
        return [self.config.image_token_id, self.config.video_token_id]

    def suppressed_ids(self) -> list[int]:
        """Ids that are never sampled, since the next forward pass would break."""
        names = ("vision_start_token_id", "vision_end_token_id")
        return [*self.vision_ids(), *(getattr(self.config, name) for name in names)]

    def encode(self, sample: Sample, template: PromptTemplate) -> VideoPrompt:
        """Encode a sample that has a clip, but for its features, which stay empty."""
        assert sample.clip is not None
        patcher = self.patcher(sample)
        frames = patcher.fill(sample.clip.frames)
        grid = patcher.grid(frames)
        ids, opening = self._tokens(sample, template, grid[0])
        is_vision = self._is_vision(ids)
        tokens_a_patch = grid[1] * grid[2] // patcher.merge_size**2
        repeats = torch.where(is_vision, tokens_a_patch, 1)
        ids, is_vision = ids.repeat_interleave(repeats), is_vision.repeat_interleave(repeats)
        positions, next_position = self.positions(is_vision, grid, sample)
        return VideoPrompt(
            sample.question,
            ids,
            is_vision.nonzero()[:, 0],
            positions,
            next_position,
            frames,
            patcher,
            grid,
            patch_keys(sample, patcher),
            features=torch.empty(0, device="cpu"),
            opening=opening,
        )

    def is_image(self, prompt: VideoPrompt) -> bool:
        """Whether a prompt's placeholders are those of an image."""
        return bool((prompt.input_ids == self.config.image_token_id).any())

    def model_inputs(self, model: Any, prompt: VideoPrompt) -> dict[str, torch.Tensor]:
        """What the forward of transformers takes of a prompt, for models that vrts does not load.

        Args:
            model: the transformers model, or peft's around it.
            prompt: of `encode`.
        """
        is_image = self.is_image(prompt)
        pixels, grid = ("pixel_values", "image") if is_image else ("pixel_values_videos", "video")
        return {
            "input_ids": prompt.input_ids[None],
            "position_ids": prompt.positions[:, None],
            pixels: prompt.patches(model.device).to(model.dtype),
            f"{grid}_grid_thw": torch.tensor([prompt.grid], device="cpu"),
        }

    def length(self, sample: Sample, template: PromptTemplate) -> tuple[int, int]:
        """Count the tokens of a prompt and the vision tokens among them, without its positions."""
        assert sample.clip is not None
        patcher, frames = self.patcher(sample), sample.clip.frames
        num_patches = -(-len(frames) // patcher.temporal_patch_size)
        ids, _ = self._tokens(sample, template, num_patches)
        _, h, w = patcher.grid(frames)
        num_vision_tokens = num_patches * (h * w // patcher.merge_size**2)
        return len(ids) - num_patches + num_vision_tokens, num_vision_tokens

    def _tokens(
        self, sample: Sample, template: PromptTemplate, num_patches: int
    ) -> tuple[torch.Tensor, str]:
        """Token ids of the chat, one placeholder a temporal patch, and what it begins to answer."""
        assert sample.clip is not None
        text = self._plain(template.render(sample.question))
        kind = "image" if sample.clip.is_image else "video"
        content = [{"type": kind}, {"type": "text", "text": text}]
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        text = text.strip()  # as some templates do
        answer = chat[chat.rfind(text) + len(text) :]
        opening = answer[answer.find(TAGS[0]) :] if TAGS[0] in answer else ""
        expanded = self.expand(chat, sample, num_patches)
        ids = self.processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, device="cpu"), opening

    def _is_vision(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.isin(ids, torch.tensor(self.vision_ids(), device="cpu"))

    def _plain(self, text: str) -> str:
        """Break up special tokens that a text spells, so that they stay text; tags are meant."""
        tokenizer = self.processor.tokenizer
        own = tokenizer.convert_ids_to_tokens(self.suppressed_ids())
        for token in dict.fromkeys([*special_tokens(tokenizer).values(), *own]):
            if token not in TAGS:
                text = text.replace(token, token[:1] + " " + token[1:])
        return text

    # ---- passes

    @abstractmethod
    def features(
        self, model: Any, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]]
    ) -> torch.Tensor:
        """Features ``[vision tokens, F]`` of several videos; with gradient where there is one.

        Args:
            model: the transformers model.
            patches: float32, as the patcher makes them, of one video after the other.
            grids: temporal, vertical and horizontal patches of each video.
        """

    def hidden(
        self,
        model: Any,
        ids: torch.Tensor,
        positions: torch.Tensor,
        layout: Layout,
        vision: Vision | None = None,
    ) -> torch.Tensor:
        """Last hidden states ``[rows, tokens, D]`` of the decoder.

        Args:
            model: the transformers model.
            ids: int64 ``[rows, tokens]``.
            positions: int64 ``[A, rows, tokens]``.
            layout: which tokens see which.
            vision: features of a packed row; None where no token stands for any.
        """
        language = self.language(model)
        embeds = language.get_input_embeddings()(ids)
        extra: dict[str, Any] = {}
        if vision is not None:
            D = embeds.shape[-1]
            own = vision.features[:, :D].to(embeds.dtype)
            # by place: masked_scatter would count along an int64 copy of the mask, [S, D]
            embeds = embeds[0].index_copy(0, vision.places, own)[None]
            extra = self.vision_inputs(replace(vision, features=vision.features[:, D:]), ids)
        out = language(
            inputs_embeds=embeds,
            position_ids=positions if self.position_axes > 1 else positions[0],
            # The layout masks; a mapping keeps transformers from building masks of its own.
            attention_mask=dict.fromkeys(
                ("full_attention", "sliding_attention", "linear_attention")
            ),
            use_cache=False,
            layout=layout,
            **extra,
        )
        return cast(torch.Tensor, out.last_hidden_state)

    def vision_inputs(self, vision: Vision, ids: torch.Tensor) -> dict[str, Any]:
        """What the decoder takes of the clip in addition to its embeddings.

        Args:
            vision: with the features beyond the first D.
            ids: int64 ``[1, S]``.
        """
        return {}

    # ---- counts

    @property
    def num_attention_layers(self) -> int:
        """Decoder layers that keep keys and values."""
        return int(self.config.text_config.num_hidden_layers)

    def row_states(self, dtype: torch.dtype) -> States:
        """See `Network.row_states`.

        Args:
            dtype: of keys and values.
        """
        return ()

    def recurrence_work(self, num_tokens: int) -> float:
        """Operations of a forward other than matrices and attention."""
        return 0.0

    @abstractmethod
    def vision_work(
        self, model: Any, grids: Sequence[tuple[int, int, int]]
    ) -> tuple[Matrices, float]:
        """Matrices of the vision tower that each patch goes through, and operations of attention.

        Args:
            model: the transformers model; its weights may be sharded.
            grids: temporal, vertical and horizontal patches of each video.
        """


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Texts of a tokenizer's special tokens by their ids.

    Those of transformers' ``all_special_tokens``, which its configuration names, and those that
    only ``tokenizer.json`` marks, such as ``<row_1_col_1>`` of SmolVLM2.

    Args:
        tokenizer: of transformers.
    """
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    marked = tokenizer.added_tokens_decoder.items()
    return dict(named) | {id_: token.content for id_, token in marked if token.special}


def count_matrices(module: nn.Module) -> Matrices:
    """Matrices of a part of a model, with those of adapters."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    sizes = [matrix_shape(p).numel() for p in matrices]
    trained = [size for size, p in zip(sizes, matrices, strict=True) if p.requires_grad]
    return Matrices(sum(sizes), sum(trained))


def matrix_shape(parameter: nn.Parameter) -> torch.Size:
    """Of a matrix, also where it is packed in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.shape if state is None else torch.Size(state.shape)


def vision_matrices(blocks: nn.Module, embed: nn.Module, merger: nn.Module, merge: int) -> Matrices:
    """Of a vision tower for each patch; ``merge`` patches share the last ones' elements."""
    inner, first, last = (count_matrices(m) for m in (blocks, embed, merger))
    return Matrices(
        inner.total + first.total + last.total // merge,
        inner.trained + first.trained + last.trained // merge,
        first.total,
    )
