"""From questions and clips to what Qwen2.5-VL reads: tokens, patches, positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from vrts.models.attention.shared_prefix import PackedLayout
from vrts.models.families.positions import VideoGrid, prompt_positions
from vrts.models.policy import Prompt
from vrts.prompts import PromptTemplate
from vrts.types import Completion, InputError, Sample


@dataclass(frozen=True, slots=True)
class Patcher:
    """Turns frames into what the vision tower reads, on the device where they are.

    The result is bit for bit that of transformers' processors, which work on the host: four times
    the bytes would then go to the device, and it would wait for them.
    """

    mean: torch.Tensor
    """float32 ``[C, 1]``, of pixels from 0 to 255."""
    std: torch.Tensor
    """float32 ``[C, 1]``."""
    patch_size: int
    merge_size: int
    """Patches that become one token, along each side."""
    temporal_patch_size: int
    """Frames of a patch."""

    @classmethod
    def of(cls, processor: Any) -> Self:
        """What one of transformers' image or video processors does to frames of the right size.

        Raises:
            InputError: it does not normalise pixels.
        """
        if not (processor.do_rescale and processor.do_normalize):
            raise InputError(
                f"model.policy.path: {type(processor).__name__} has do_rescale or do_normalize "
                "false; vrts normalises frames as Qwen's weights expect: set both to true in the "
                "model's processor files"
            )
        # In float32 throughout, in transformers' order, whatever Lightning's bf16-true makes the
        # default.
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")
            * (1.0 / processor.rescale_factor)
            for values in (processor.image_mean, processor.image_std)
        )
        return cls(
            mean[:, None],
            std[:, None],
            processor.patch_size,
            processor.merge_size,
            processor.temporal_patch_size,
        )

    def fill(self, frames: torch.Tensor) -> torch.Tensor:
        """Repeat the last of ``[T, C, H, W]`` frames until they fill complete patches."""
        missing = -len(frames) % self.temporal_patch_size
        return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if missing else frames

    def grid(self, frames: torch.Tensor) -> tuple[int, int, int]:
        """Temporal, vertical and horizontal patches of filled frames ``[T, C, H, W]``."""
        T, _, H, W = frames.shape
        return T // self.temporal_patch_size, H // self.patch_size, W // self.patch_size

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalised patches.

        Args:
            frames: uint8 ``[T, C, H, W]``, filled.

        Returns:
            float32 ``[patches, C * temporal_patch_size * patch_size ** 2]``, in the order of time,
            and within it token by token.
        """
        t, h, w = self.grid(frames)
        C, side, merge = frames.shape[1], self.patch_size, self.merge_size
        cut = frames.reshape(
            t, self.temporal_patch_size, C, h // merge, merge, side, w // merge, merge, side
        )
        # [t, h / merge, w / merge, merge, merge, C, temporal, side, side], still in bytes
        cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, C, -1)
        mean, std = self.mean.to(frames.device), self.std.to(frames.device)
        return cut.to(torch.float32).sub_(mean).div_(std).flatten(1)


PatchKey = tuple[str, tuple[int, ...], int, int]
"""What the features of a temporal patch depend on: the video, which frames, and their height and
width."""


@dataclass(frozen=True, slots=True)
class VideoPrompt(Prompt):
    """One question and its clip as model inputs, on the CPU."""

    input_ids: torch.Tensor
    """int64 ``[P]``, one ``<|video_pad|>`` for each video token, or ``<|image_pad|>``."""
    vision_places: torch.Tensor
    """int64 ``[vision tokens]``, where in the prompt these are."""
    positions: torch.Tensor
    """int64 ``[3, P]``, M-RoPE."""
    next_position: int
    """Position of the first completion token."""
    frames: torch.Tensor
    """uint8 ``[T, C, H, W]``, an image repeated to fill a patch."""
    patcher: Patcher
    """Of the frames."""
    grid: tuple[int, int, int]
    """Temporal, vertical and horizontal patches."""
    patch_keys: tuple[PatchKey, ...]
    """One for each temporal patch, in order."""
    features: torch.Tensor
    """``[vision tokens, D]``, without gradient; valid while the vision tower stays as it is."""

    @property
    def num_tokens(self) -> int:
        """P."""
        return len(self.input_ids)

    def features_by_patch(self) -> dict[PatchKey, torch.Tensor]:
        """Features ``[tokens of a temporal patch, D]``."""
        return dict(zip(self.patch_keys, self.features.chunk(self.grid[0]), strict=True))

    def patches(
        self, device: torch.device, temporal_patches: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Normalised pixels, made on a device that the frames are sent to as bytes.

        Args:
            device: where to make them.
            temporal_patches: which of the grid's to take; None takes all.

        Returns:
            float32 ``[patches, C * temporal_patch_size * patch_size ** 2]``.
        """
        frames = self.frames
        if temporal_patches is not None:
            frames = frames.unflatten(0, (self.grid[0], -1))[list(temporal_patches)].flatten(0, 1)
        return self.patcher(frames.to(device, non_blocking=True))


class PromptEncoder:
    """Encodes one sample at a time with a model's own processor."""

    def __init__(self, processor: Any, config: Any, template: PromptTemplate) -> None:
        """Take what is needed from a loaded processor and model configuration.

        Raises:
            InputError: the processor does not normalise pixels.
        """
        self._processor = processor
        self._template = template
        self._vision_ids = torch.tensor(
            [config.image_token_id, config.video_token_id], device="cpu"
        )
        self._of_images = Patcher.of(processor.image_processor)
        self._of_videos = Patcher.of(processor.video_processor)
        # Qwen2-VL has no such value and counts temporal patches.
        self._tokens_per_second = getattr(config.vision_config, "tokens_per_second", None)

    @property
    def patches_per_token(self) -> int:
        """Patches of a frame pair that become one token."""
        return self._of_videos.merge_size**2

    def __call__(self, sample: Sample) -> VideoPrompt:
        """Encode a sample that has a clip, but for its features, which stay empty."""
        assert sample.clip is not None
        patcher = self._patcher(sample)
        frames = patcher.fill(sample.clip.frames)
        grid = patcher.grid(frames)
        num_vision_tokens = grid[0] * grid[1] * grid[2] // patcher.merge_size**2
        ids = self._tokens(sample, num_vision_tokens)
        video_grid = VideoGrid(
            *grid,
            seconds_per_grid=patcher.temporal_patch_size / sample.clip.sampled_fps,
            tokens_per_second=self._tokens_per_second,
        )
        is_vision = torch.isin(ids, self._vision_ids)
        positions, next_position = prompt_positions(is_vision, [video_grid], patcher.merge_size)
        places = is_vision.nonzero()[:, 0]
        return VideoPrompt(
            sample.question,
            ids,
            places,
            positions,
            next_position,
            frames,
            patcher,
            grid,
            _patch_keys(sample, patcher),
            features=torch.empty(0, device="cpu"),
        )

    def length(self, sample: Sample) -> tuple[int, int]:
        """Count the tokens of a prompt and the video tokens among them, without encoding it."""
        assert sample.clip is not None
        patcher = self._patcher(sample)
        T, _, H, W = sample.clip.frames.shape
        side = patcher.patch_size * patcher.merge_size
        # An image is repeated to fill one temporal patch.
        num_patches = -(-T // patcher.temporal_patch_size)
        num_video_tokens = num_patches * (H // side) * (W // side)
        return len(self._tokens(sample, num_video_tokens)), num_video_tokens

    def _patcher(self, sample: Sample) -> Patcher:
        assert sample.clip is not None
        return self._of_images if sample.clip.is_image else self._of_videos

    def _tokens(self, sample: Sample, num_vision_tokens: int) -> torch.Tensor:
        """Token ids of the chat prompt, its one video or image token repeated."""
        assert sample.clip is not None
        text = self._plain(self._template.render(sample.question))
        kind = "image" if sample.clip.is_image else "video"
        content = [{"type": kind}, {"type": "text", "text": text}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor(
            self._processor.tokenizer(chat, add_special_tokens=False)["input_ids"], device="cpu"
        )
        repeats = torch.where(torch.isin(ids, self._vision_ids), num_vision_tokens, 1)
        return ids.repeat_interleave(repeats)

    def _plain(self, text: str) -> str:
        """Break up special tokens that a question happens to spell, so that they stay text."""
        for token in self._processor.tokenizer.all_special_tokens:
            text = text.replace(token, token[:1] + " " + token[1:])
        return text


def _patch_keys(sample: Sample, patcher: Patcher) -> tuple[PatchKey, ...]:
    """Name the temporal patches of a clip, in order."""
    assert sample.clip is not None
    indices, size = sample.clip.frame_indices, patcher.temporal_patch_size
    _, _, H, W = sample.clip.frames.shape
    return tuple(
        (sample.question.video, indices[i : i + size], H, W) for i in range(0, len(indices), size)
    )


def vision_token_ids(config: Any) -> torch.Tensor:
    """Ids that stand for vision inputs; sampling one would break the next forward pass."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return torch.tensor([getattr(config, name) for name in names], device="cpu")


def end_token_ids(generation_config: Any, tokenizer: Any) -> torch.Tensor:
    """All ids that end a completion: those of the generation config and the tokenizer's own."""
    ids = generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return torch.tensor(sorted({*ids, tokenizer.eos_token_id} - {None}), device="cpu")


@dataclass(frozen=True, slots=True)
class Packed:
    """A row of ``S`` tokens: question after question, a prompt and its completions."""

    input_ids: torch.Tensor
    """int64 ``[S]``."""
    positions: torch.Tensor
    """int64 ``[3, S]``, M-RoPE."""
    vision_places: torch.Tensor
    """int64 ``[vision tokens]``, where in the row these are."""
    predictors: torch.Tensor
    """int64 ``[completion tokens]``, for each the place in the row that predicts it."""
    targets: torch.Tensor
    """int64 ``[completion tokens]``."""
    layout: PackedLayout


def pack(
    prompts: Sequence[VideoPrompt],
    completions: Sequence[Sequence[Completion]],
    device: torch.device,
) -> Packed:
    """Put each prompt once, with its completions behind it; no padding.

    Args:
        prompts: B of them.
        completions: of each, none of them without a token.
        device: of the result.
    """
    ids, positions, places, predictors, targets = [], [], [], [], []
    forwarded: list[list[int]] = []
    start = 0
    for prompt, group in zip(prompts, completions, strict=True):
        ids.append(prompt.input_ids)
        positions.append(prompt.positions)
        places.append(prompt.vision_places + start)
        last = start + prompt.num_tokens - 1
        start = last + 1
        # The last token of a completion predicts nothing, so it is not forwarded.
        forwarded.append([c.num_tokens - 1 for c in group])
        for completion, length in zip(group, forwarded[-1], strict=True):
            assert completion.token_ids is not None
            steps = torch.arange(length, device="cpu")
            ids.append(completion.token_ids[:length])
            targets.append(completion.token_ids)
            positions.append((prompt.next_position + steps).expand(3, -1))
            predictors.append(torch.cat([steps.new_tensor([last]), start + steps]))
            start += length
    layout = PackedLayout([p.num_tokens for p in prompts], forwarded, device)
    return Packed(
        torch.cat(ids).to(device),
        torch.cat(positions, 1).to(device),
        torch.cat(places).to(device),
        torch.cat(predictors).to(device),
        torch.cat(targets).to(device),
        layout,
    )
