"""What a rollout and an update take, counted from the model and its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vrts.models.families.family import Family, count_matrices, matrix_shape
from vrts.models.families.flops import Matrices, attention_flops, visible_pairs
from vrts.models.families.prompt import VideoPrompt
from vrts.models.policy import Workload


def count_workload(
    family: Family, model: Any, prompts: Sequence[VideoPrompt], lengths: Sequence[Sequence[int]]
) -> Workload:
    """Count tokens and operations.

    Args:
        family: of the model.
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
    width = family.num_attention_layers * text.num_attention_heads * head_dim
    mixing = attention_flops(width, pairs) + family.recurrence_work(num_tokens)
    layers, head = _layers(family, model), count_matrices(model.lm_head)
    vision, vision_attention = family.vision_work(model, [p.grid for p in prompts])
    trains_vision = any(p.requires_grad for p in family.visual(model).parameters())
    num_patches = sum(t * h * w for t, h, w in (p.grid for p in prompts))
    backward = layers.backward(num_tokens) + head.backward(num_completion_tokens) + 2 * mixing
    if trains_vision:
        backward += vision.backward(num_patches) + 2 * vision_attention
    return Workload(
        num_prompt_tokens,
        num_completion_tokens,
        vision_flops=vision.forward(num_patches) + vision_attention,
        forward_flops=layers.forward(num_tokens) + head.forward(num_completion_tokens) + mixing,
        backward_flops=backward,
        trains_vision=trains_vision,
    )


def _layers(family: Family, model: Any) -> Matrices:
    """Matrices of the decoder layers."""
    language = family.language(model)
    every = count_matrices(language.layers)
    trained_before = (*language.embed_tokens.parameters(), *family.visual(model).parameters())
    if any(p.requires_grad for p in trained_before):
        return every
    # under an adapter backward ends in the first layer, whose input depends on nothing trained
    first = language.layers[0]
    named = first.named_modules()
    own = [part.parameters() for name, part in named if name.rpartition(".")[2] in _READ]
    # the second matrix of an adapter reads the first one's result, which is trained
    shapes = [matrix_shape(p) for part in own for p in part if p.ndim == 2]
    read = [shape for shape in shapes if shape[1] == first.hidden_size]
    return Matrices(every.total, every.trained, sum(shape.numel() for shape in read))


_READ = {"q_proj", "k_proj", "v_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}
"""Layers whose input is that of a decoder layer."""
