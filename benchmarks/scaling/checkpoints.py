"""Published checkpoints by their shapes, and policies of these shapes without values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
)

from benchmarks.common import never_end
from tests.models.families import tiny
from vrts.models.attention.shared_prefix import SHARED_PREFIX
from vrts.models.attention.windows import BATCHED_WINDOWS
from vrts.models.vlm.policy import TransformersPolicy


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What its ``config.json`` says that matters for memory."""

    build: Callable[[Path], None]
    """Writes a tiny model of the family, whose tokenizer and processor serve."""
    text: dict[str, Any]
    vision: dict[str, Any]
    top: dict[str, Any] = field(default_factory=dict)
    """Outside of both."""


def _text(
    hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        **more,
    }


def _qwen2_5(hidden: int, layers: int, heads: int, kv: int, ffn: int, tied: bool) -> Checkpoint:
    vocab = 151936 if tied else 152064
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = _text(hidden, layers, heads, kv, ffn, vocab, tied, rope_parameters=rotary)
    text["layer_types"] = ["full_attention"] * layers
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Checkpoint(tiny.build_qwen2_5_vl, text, vision)


def _qwen3(
    hidden: int, layers: int, heads: int, ffn: int, tied: bool, vision: tuple[int, int, int]
) -> Checkpoint:
    rotary = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    text = _text(hidden, layers, heads, 8, ffn, 151936, tied, head_dim=128, rope_parameters=rotary)
    depth, width, inner = vision
    third = depth // 3
    deeper = [5, 11, 17] if depth == 24 else [third - 1, 2 * third - 2, 3 * third - 3]
    return Checkpoint(
        tiny.build_qwen3_vl,
        text,
        {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": deeper,
        },
    )


def _qwen3_5(
    hidden: int, layers: int, heads: int, kv: int, ffn: int, value_heads: int, vision: int
) -> Checkpoint:
    rotary = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    }
    text = _text(
        hidden,
        layers,
        heads,
        kv,
        ffn,
        248320,
        True,
        head_dim=256,
        rope_parameters=rotary,
        linear_num_key_heads=16,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        layer_types=["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)],
    )
    return Checkpoint(
        tiny.build_qwen3_5,
        text,
        {
            "depth": 12 if vision == 768 else 24,
            "hidden_size": vision,
            "intermediate_size": 4 * vision,
            "num_heads": 12 if vision == 768 else 16,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
        },
    )


def _smolvlm(
    text: tuple[int, int, int, int, int], vision: dict[str, int], scale_factor: int
) -> Checkpoint:
    own = _text(*text, 49280, tied=False, head_dim=64) | {"max_position_embeddings": 8192}
    return Checkpoint(tiny.build_smolvlm, own, vision, {"scale_factor": scale_factor})


_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 512,
    "patch_size": 16,
}
_SO400M = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "image_size": 384,
    "patch_size": 14,
}

CHECKPOINTS: dict[str, Checkpoint] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(2048, 36, 16, 2, 11008, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(3584, 28, 28, 4, 18944, tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(2048, 28, 16, 6144, True, (24, 1024, 4096)),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(2560, 36, 32, 9728, True, (24, 1024, 4096)),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(4096, 36, 32, 12288, False, (27, 1152, 4304)),
    "Qwen/Qwen3.5-0.8B": _qwen3_5(1024, 24, 8, 2, 3584, 16, 768),
    "Qwen/Qwen3.5-2B": _qwen3_5(2048, 24, 8, 2, 6144, 16, 1024),
    "Qwen/Qwen3.5-4B": _qwen3_5(2560, 32, 16, 4, 9216, 32, 1024),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": _smolvlm((576, 30, 9, 3, 1536), _BASE, 4),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _smolvlm((960, 32, 15, 5, 2560), _BASE, 4),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _smolvlm((2048, 24, 32, 32, 8192), _SO400M, 3),
}
"""By hub id."""


def shaped_policy(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, **options: Any
) -> TransformersPolicy:
    """Make a policy of a checkpoint's shape, whose completions never end before their limit.

    Args:
        checkpoint: whose shape it has.
        device: of the weights.
        dtype: of the weights.
        options: of `TransformersPolicy`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint.build(folder)
        config: Any = AutoConfig.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        ends = GenerationConfig.from_pretrained(folder)
    for part, values in (
        (config.text_config, checkpoint.text),
        (config.vision_config, checkpoint.vision),
        (config, checkpoint.top),
    ):
        for key, value in values.items():
            setattr(part, key, value)
    config.tie_word_embeddings = checkpoint.text["tie_word_embeddings"]
    config = type(config).from_dict(config.to_dict())
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(
            config,
            dtype=dtype,
            attn_implementation={"text_config": SHARED_PREFIX, "vision_config": "sdpa"},
        )
    model.generation_config = ends
    policy = TransformersPolicy("shaped", **options)
    policy.adopt(model, processor)
    if policy.family.batches_windows:
        policy.family.visual(model).config._attn_implementation = BATCHED_WINDOWS
    never_end(policy)
    return policy
