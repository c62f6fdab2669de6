"""Parameters and operations of Qwen2.5-VL models, from their shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import QWEN_7B, Shape
from vrts.models.families.flops import (
    Matrices,
    attention_flops,
    frame_pairs,
    visible_pairs,
    window_pairs,
)
from vrts.models.policy import Workload

Grid = tuple[int, int, int]
"""Temporal, vertical and horizontal patches of a video."""

QWEN_72B = Shape(8192, 80, 64, 8, 29568, 1280, 32, 152064)
"""Qwen2.5-VL-72B-Instruct."""
PATCH_VALUES = 3 * 2 * 14 * 14
"""Of one patch: colours, frames of a pair, pixels."""
MERGE = 4
"""Patches of a token."""
WINDOW = 8
"""Patches along the side of an attention window."""
FULL_ATTENTION_BLOCKS = 4
"""Of the vision tower; the others see a window."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model's parts, counted in parameters."""

    name: str
    shape: Shape
    vision_ffn: int = 3420
    num_full_blocks: int = FULL_ATTENTION_BLOCKS

    @property
    def kv_size(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.shape.hidden_size // self.shape.num_heads * self.shape.num_kv_heads

    @property
    def attention_inputs(self) -> int:
        """Of a layer's query, key and value matrices."""
        d = self.shape.hidden_size
        return d * d + 2 * d * self.kv_size

    @property
    def layer_matrices(self) -> int:
        """Of a decoder layer, without biases and norms."""
        d = self.shape.hidden_size
        return self.attention_inputs + d * d + 3 * d * self.shape.intermediate_size

    @property
    def layer(self) -> int:
        """Of a decoder layer."""
        d = self.shape.hidden_size
        return self.layer_matrices + d + 2 * self.kv_size + 2 * d

    @property
    def head(self) -> int:
        """Of the head, and as many of the embeddings."""
        assert self.shape.vocab_size is not None
        return self.shape.hidden_size * self.shape.vocab_size

    @property
    def language(self) -> int:
        """Of the language model: layers, last norm, embeddings and head."""
        return self.shape.num_layers * self.layer + self.shape.hidden_size + 2 * self.head

    @property
    def block_matrices(self) -> int:
        """Of a vision block, without biases and norms."""
        v = self.shape.vision_hidden_size
        return 4 * v * v + 3 * v * self.vision_ffn

    @property
    def merger_matrices(self) -> int:
        """Of the layers that make a token of its patches."""
        wide = MERGE * self.shape.vision_hidden_size
        return wide * wide + wide * self.shape.hidden_size

    @property
    def vision(self) -> int:
        """Of the vision tower."""
        v, d = self.shape.vision_hidden_size, self.shape.hidden_size
        block = self.block_matrices + 4 * v + 2 * self.vision_ffn + v + 2 * v
        merger = self.merger_matrices + MERGE * v + d + v
        return self.shape.vision_depth * block + merger + PATCH_VALUES * v

    def adapter_layer(self, rank: int) -> int:
        """Of a LoRA adapter of all matrices of a decoder layer."""
        d, f = self.shape.hidden_size, self.shape.intermediate_size
        return rank * (2 * (d + d) + 2 * (d + self.kv_size) + 3 * (d + f))

    def adapter(self, rank: int) -> int:
        """Of a LoRA adapter of the language model."""
        return self.shape.num_layers * self.adapter_layer(rank)

    def kv_bytes(self, num_tokens: float) -> float:
        """Keys and values in bfloat16."""
        return 2.0 * 2 * self.shape.num_layers * self.kv_size * num_tokens


MODELS = (Model("7B", QWEN_7B), Model("72B", QWEN_72B))


def workload(
    model: Model, rank: int | None, grid: Grid, num_prompt_tokens: int, lengths: Sequence[int]
) -> Workload:
    """Operations of one question; `vrts.models.vlm.flops` counts the same from a loaded model.

    Args:
        model: whose vision tower is frozen.
        rank: of the LoRA adapter; None trains all of the language model.
        grid: of the video.
        num_prompt_tokens: P, the video's among them.
        lengths: of the completions, in tokens.
    """
    shape = model.shape
    layers = _layers(model, rank)
    head = Matrices(model.head, 0 if rank else model.head)
    forwarded = [n - 1 for n in lengths]
    num_tokens, num_completion_tokens = num_prompt_tokens + sum(forwarded), sum(lengths)
    width = shape.num_layers * shape.hidden_size
    attention = attention_flops(width, visible_pairs(num_prompt_tokens, forwarded))
    return Workload(
        num_prompt_tokens,
        num_completion_tokens,
        vision_flops=vision_flops(model, grid),
        forward_flops=layers.forward(num_tokens) + head.forward(num_completion_tokens) + attention,
        backward_flops=layers.backward(num_tokens)
        + head.backward(num_completion_tokens)
        + 2 * attention,
        trains_vision=False,
    )


def _layers(model: Model, rank: int | None) -> Matrices:
    total = model.shape.num_layers * model.layer_matrices
    if rank is None:
        return Matrices(total, total)
    adapter = model.adapter(rank)
    # backward ends at what the first layer's query, key and value matrices read
    first = model.attention_inputs + 3 * rank * model.shape.hidden_size
    return Matrices(total + adapter, adapter, first)


def vision_flops(model: Model, grid: Grid) -> float:
    """Operations of one forward of the vision tower."""
    shape = model.shape
    v = shape.vision_hidden_size
    matrices = shape.vision_depth * model.block_matrices + PATCH_VALUES * v
    matrices += model.merger_matrices // MERGE
    num_windowed = shape.vision_depth - model.num_full_blocks
    pairs = model.num_full_blocks * frame_pairs(grid) + num_windowed * window_pairs(grid, WINDOW)
    return 2.0 * matrices * num_patches(grid) + attention_flops(v, pairs)


def prefill_flops(model: Model, num_prompt_tokens: int) -> float:
    """Operations of one forward of a prompt, without the head."""
    width = model.shape.num_layers * model.shape.hidden_size
    matrices = model.shape.num_layers * model.layer_matrices
    pairs = visible_pairs(num_prompt_tokens, [])
    return 2.0 * matrices * num_prompt_tokens + attention_flops(width, pairs)


def num_patches(grid: Grid) -> int:
    """Patches of a video."""
    return grid[0] * grid[1] * grid[2]


def num_video_tokens(grid: Grid) -> int:
    """Tokens that a video becomes."""
    return num_patches(grid) // MERGE
