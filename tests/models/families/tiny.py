"""Tiny random models of each family, as Hugging Face folders with a complete processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tools.tiny.model import build_model_folder
from tools.tiny.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, build_tokenizer

PIXELS = 64 * 64
"""Of a frame, for families whose token has a side of 32 pixels."""
THINKING_TEMPLATE = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
"""A chat template that begins the completion, as Thinking checkpoints have it."""


def build_qwen2_5_vl(folder: Path, seed: int = 0) -> None:
    """The architecture of the embedded model."""
    build_model_folder(folder, seed)


def build_qwen3_vl(folder: Path, seed: int = 0, template: str = CHAT_TEMPLATE) -> None:
    """Four layers, of which the first two take deepstack features; a head is wider than D / heads.

    Args:
        folder: is created.
        seed: of the weights.
        template: the chat template.
    """
    tokenizer = build_tokenizer()
    text = {
        **_text(tokenizer),
        "num_hidden_layers": 4,
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 96,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
        "initializer_range": 0.06,
    }
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **vision_ids(tokenizer)
    )
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, size=size, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": PIXELS, "longest_edge": 16 * PIXELS}, **pixels
        ),
        chat_template=template,
    )
    _write(folder, seed, lambda: Qwen3VLForConditionalGeneration(config), processor)


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Options that all decoders of a test have."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END_OF_TURN),
        "pad_token_id": tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        "tie_word_embeddings": True,
    }


def vision_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of the tokens around vision inputs, by their names in a configuration."""
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"vision_{end}_token_id": f"vision_{end}" for end in ("start", "end")}
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _write(
    folder: Path, seed: int, make: Callable[[], PreTrainedModel], processor: ProcessorMixin
) -> None:
    """Weights, processor and generation config."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" in name:  # else a norm of ones hides its weights
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=_generator(seed))
    tokenizer = processor.tokenizer
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TURN, END_OF_TEXT)]
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=ends[1], do_sample=True
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
