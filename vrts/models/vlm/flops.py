"""What a rollout and an update of Qwen2.5-VL take, counted from the model and its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vrts.models.flops import (
    Matrices,
    Workload,
    attention_flops,
    frame_pairs,
    visible_pairs,
    window_pairs,
)
from vrts.models.vlm.inputs import VideoPrompt


def count_workload(
    model: Any, prompts: Sequence[VideoPrompt], lengths: Sequence[Sequence[int]]
) -> Workload:
    """Count tokens and operations.

    Args:
        model: the transformers model, adapter layers in place; its weights may be sharded.
        prompts: B of them.
        lengths: of each one's completions, in tokens.
    """
    text = model.config.text_config
    forwarded = [[n - 1 for n in own] for own in lengths]  # the last token predicts nothing
    num_prompt_tokens = sum(len(p.input_ids) for p in prompts)
    num_completion_tokens = sum(map(sum, lengths))
    num_tokens = num_prompt_tokens + sum(map(sum, forwarded))
    pairs = sum(visible_pairs(len(p.input_ids), n) for p, n in zip(prompts, forwarded, strict=True))
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_hidden_layers * text.num_attention_heads * head_dim
    attention = attention_flops(width, pairs)
    layers, head = _layers(model), _count(model.lm_head)
    vision, vision_attention = _vision(model.model.visual, [p.grid for p in prompts])
    trains_vision = any(p.requires_grad for p in model.model.visual.parameters())
    num_patches = sum(t * h * w for t, h, w in (p.grid for p in prompts))
    backward = layers.backward(num_tokens) + head.backward(num_completion_tokens) + 2 * attention
    if trains_vision:
        backward += vision.backward(num_patches) + 2 * vision_attention
    return Workload(
        num_prompt_tokens,
        num_completion_tokens,
        vision_flops=vision.forward(num_patches) + vision_attention,
        forward_flops=layers.forward(num_tokens) + head.forward(num_completion_tokens) + attention,
        backward_flops=backward,
        trains_vision=trains_vision,
    )


def _count(module: nn.Module) -> Matrices:
    """Matrices of a part of the model, with those of adapters."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    sizes = [_shape(p).numel() for p in matrices]
    trained = [size for size, p in zip(sizes, matrices, strict=True) if p.requires_grad]
    return Matrices(sum(sizes), sum(trained))


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of a matrix, also where it is packed in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.shape if state is None else torch.Size(state.shape)


def _layers(model: Any) -> Matrices:
    """Matrices of the decoder layers."""
    language = model.model.language_model
    every = _count(language.layers)
    trained_before = (*language.embed_tokens.parameters(), *model.model.visual.parameters())
    if any(p.requires_grad for p in trained_before):
        return every
    # under an adapter backward ends in the first layer, whose input depends on nothing trained
    first = language.layers[0]
    own = [module.parameters() for name, module in first.self_attn.named_modules() if name in _QKV]
    # the second matrix of an adapter reads the first one's result, which is trained
    shapes = [_shape(p) for part in own for p in part if p.ndim == 2]
    read = [shape for shape in shapes if shape[1] == first.hidden_size]
    return Matrices(every.total, every.trained, sum(shape.numel() for shape in read))


_QKV = ("q_proj", "k_proj", "v_proj")


def _vision(visual: Any, grids: Sequence[tuple[int, int, int]]) -> tuple[Matrices, float]:
    """Matrices of the vision tower for each patch, and operations of its attention.

    Patches are merged to a token before the last matrices, whose elements are shared out to them.
    """
    config = visual.config
    merge = config.spatial_merge_size
    blocks, merger, embed = (_count(m) for m in (visual.blocks, visual.merger, visual.patch_embed))
    matrices = Matrices(
        blocks.total + embed.total + merger.total // merge**2,
        blocks.trained + embed.trained + merger.trained // merge**2,
        embed.total,
    )
    window = config.window_size // config.patch_size
    full = sum(frame_pairs(grid) for grid in grids)
    windowed = sum(window_pairs(grid, window) for grid in grids)
    num_full = len(config.fullatt_block_indexes)
    pairs = num_full * full + (config.depth - num_full) * windowed
    return matrices, attention_flops(config.hidden_size, pairs)
