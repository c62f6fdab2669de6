"""A small Qwen2.5-VL as a Hugging Face folder: real architecture and processor, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from tools.tiny.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, build_tokenizer

HIDDEN_SIZE = 96
PIXELS = 56 * 56
"""Pixels of a frame of the synthetic videos; the processor's budget."""


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Configuration of about 0.6 million parameters."""

    def token_id(token: str) -> int:
        index = tokenizer.convert_tokens_to_ids(token)
        assert isinstance(index, int)
        return index

    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        # larger than usual, for so narrow a model to start learning at once
        "initializer_range": 0.1,
        "rope_parameters": {
            "rope_type": "default",
            # Prompts are short. High frequencies tell neighbouring tokens apart, which finding the
            # letter in front of an option needs: with 1000, look-ups stayed at 70 % in 375 steps.
            "rope_theta": 100.0,
            "mrope_section": [4, 4, 4],
        },
        "bos_token_id": None,
        "eos_token_id": token_id(END_OF_TURN),
        "pad_token_id": token_id(END_OF_TEXT),
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": HIDDEN_SIZE,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "initializer_range": 0.06,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model_folder(folder: Path, seed: int) -> None:
    """Write weights, tokenizer, processor and generation config.

    Args:
        folder: is created.
        seed: of the random initialisation.
    """
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    ends = [tokenizer.convert_tokens_to_ids(t) for t in (END_OF_TURN, END_OF_TEXT)]
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=ends[1], do_sample=True
    )
    model.save_pretrained(folder)
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
