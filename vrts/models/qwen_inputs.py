"""From questions and clips to what Qwen2.5-VL reads: tokens, patches, positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vrts.models.positions import VideoGrid, prompt_positions
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Sample


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One question and its clip as model inputs, on the CPU."""

    input_ids: torch.Tensor
    """int64 ``[P]``, one ``<|video_pad|>`` for each video token, or ``<|image_pad|>``."""
    positions: torch.Tensor
    """int64 ``[3, P]``, M-RoPE."""
    next_position: int
    """Position of the first completion token."""
    patches: torch.Tensor
    """float32 ``[patches, C * 2 * 14 * 14]``, normalised pixels."""
    grid: tuple[int, int, int]
    """Temporal, vertical and horizontal patches."""


class PromptEncoder:
    """Encodes one sample at a time with a model's own processor."""

    def __init__(self, processor: Any, config: Any, template: PromptTemplate) -> None:
        """Take what is needed from a loaded processor and model configuration."""
        self._processor = processor
        self._template = template
        self.vision_ids = torch.tensor([config.image_token_id, config.video_token_id])
        """Ids that stand for vision tokens in a prompt."""
        self._patch_size: int = config.vision_config.patch_size
        self._merge_size: int = config.vision_config.spatial_merge_size
        self._temporal_patch_size: int = config.vision_config.temporal_patch_size
        # Qwen2-VL has no such value and counts temporal patches.
        self._tokens_per_second = getattr(config.vision_config, "tokens_per_second", None)

    def __call__(self, sample: Sample) -> EncodedPrompt:
        """Encode a sample that has a clip."""
        assert sample.clip is not None
        patches, grid = self.patchify(sample.clip)
        num_video_tokens = grid[0] * grid[1] * grid[2] // self._merge_size**2
        ids = self._tokens(sample, num_video_tokens)
        video_grid = VideoGrid(
            *grid,
            seconds_per_grid=self._temporal_patch_size / sample.clip.sampled_fps,
            tokens_per_second=self._tokens_per_second,
        )
        positions, next_position = prompt_positions(
            torch.isin(ids, self.vision_ids), [video_grid], self._merge_size
        )
        return EncodedPrompt(ids, positions, next_position, patches, grid)

    def length(self, sample: Sample) -> tuple[int, int]:
        """Count the tokens of a prompt and the video tokens among them, without encoding it."""
        assert sample.clip is not None
        T, _, H, W = sample.clip.frames.shape
        side = self._patch_size * self._merge_size
        # A picture is repeated to fill one temporal patch.
        num_patches = -(-T // self._temporal_patch_size)
        num_video_tokens = num_patches * (H // side) * (W // side)
        return len(self._tokens(sample, num_video_tokens)), num_video_tokens

    def patchify(self, clip: Clip) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Normalise frames and cut them into patches; they have their size already."""
        with _float32_by_default():
            if clip.is_image:
                out = self._processor.image_processor(
                    images=[clip.frames[0]],
                    do_resize=False,
                    input_data_format="channels_first",
                    return_tensors="pt",
                )
                t, h, w = out["image_grid_thw"][0].tolist()
                return out["pixel_values"], (t, h, w)
            out = self._processor.video_processor(
                videos=[clip.frames],
                do_resize=False,
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                return_tensors="pt",
            )
        t, h, w = out["video_grid_thw"][0].tolist()
        return out["pixel_values_videos"], (t, h, w)

    def _tokens(self, sample: Sample, num_vision_tokens: int) -> torch.Tensor:
        """Token ids of the chat prompt, its one video or image token repeated."""
        assert sample.clip is not None
        text = self._plain(self._template.render(sample.question))
        kind = "image" if sample.clip.is_image else "video"
        content = [{"type": kind}, {"type": "text", "text": text}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor(self._processor.tokenizer(chat, add_special_tokens=False)["input_ids"])
        repeats = torch.where(torch.isin(ids, self.vision_ids), num_vision_tokens, 1)
        return ids.repeat_interleave(repeats)

    def _plain(self, text: str) -> str:
        """Break up special tokens that a question happens to spell, so that they stay text."""
        for token in self._processor.tokenizer.all_special_tokens:
            text = text.replace(token, token[:1] + " " + token[1:])
        return text


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """For transformers, which would normalise pixels in 8 bits under Lightning's ``bf16-true``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def vision_token_ids(config: Any) -> torch.Tensor:
    """Ids that stand for vision inputs; sampling one would break the next forward pass."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return torch.tensor([getattr(config, name) for name in names])


def end_token_ids(generation_config: Any, tokenizer: Any) -> torch.Tensor:
    """All ids that end a completion: those of the generation config and the tokenizer's own."""
    ids = generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return torch.tensor(sorted({*ids, tokenizer.eos_token_id} - {None}))
