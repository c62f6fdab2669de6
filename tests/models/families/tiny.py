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
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tools.tiny.model import build_model_folder
from tools.tiny.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, build_tokenizer

PIXELS = 64 * 64
"""Of a frame, for families whose token has a side of 32 pixels."""
HYBRID = "linear linear linear full linear full"
"""Layers of a decoder that is a hybrid."""
THINKING_TEMPLATE = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
"""A chat template that begins the completion, as Thinking checkpoints have it."""

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For images; transformers' processor has another one for videos."""


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
    processor = _qwen3_vl_processor(tokenizer, template)
    _write(folder, seed, lambda: Qwen3VLForConditionalGeneration(config), processor)


def build_qwen3_5(folder: Path, seed: int = 0, template: str = CHAT_TEMPLATE) -> None:
    """Gated delta nets before, between and behind two layers of attention.

    Args:
        folder: is created.
        seed: of the weights.
        template: the chat template.
    """
    tokenizer = build_tokenizer()
    text = {
        **_text(tokenizer),
        "num_hidden_layers": 6,
        "layer_types": [f"{kind}_attention" for kind in HYBRID.split()],
        "head_dim": 32,
        "initializer_range": 0.04,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 96,
        "num_position_embeddings": 36,
        "initializer_range": 0.06,
    }
    config = Qwen3_5Config(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **vision_ids(tokenizer)
    )

    def make() -> PreTrainedModel:
        model = Qwen3_5ForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            # matrices that remember some hundred tokens, or a few; transformers' own forget at once
            if name.endswith("A_log"):
                parameter.data = torch.empty_like(parameter).uniform_(0.1, 2.0).log()
            if name.endswith("dt_bias"):
                parameter.data.uniform_(-5.0, 0.0)
            if "conv1d" in name:
                parameter.data.normal_(0.0, 0.5)
        return model

    _write(folder, seed, make, _qwen3_vl_processor(tokenizer, template))


def _qwen3_vl_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> ProcessorMixin:
    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, size=size, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": PIXELS, "longest_edge": 16 * PIXELS}, **pixels
        ),
        chat_template=template,
    )


SQUARE = 36
"""Pixels of a side of SmolVLM2's frames: 4 patches and some pixels more, as in its 2.2B."""


def build_smolvlm(folder: Path, seed: int = 0) -> None:
    """Three layers; the head is no copy of the embeddings. A frame is 4 tokens."""
    tokenizer = build_tokenizer()
    end, image = "<end_of_utterance>", "<image>"
    around = ["<fake_token_around_image>", "<global-img>"]
    special = [*tokenizer.all_special_tokens, end, image, *around]
    tokenizer.add_special_tokens({"eos_token": end, "extra_special_tokens": special})
    vision = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "image_size": SQUARE,
        "patch_size": 8,
        "initializer_range": 0.06,
    }
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **_text(tokenizer), "tie_word_embeddings": False},
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids(image),
    )
    edges = {"size": {"longest_edge": 4 * SQUARE}, "max_image_size": {"longest_edge": SQUARE}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**edges),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            max_image_size={"longest_edge": SQUARE},
            video_sampling={
                "fps": 1,
                "max_frames": 64,
                "video_size": {"longest_edge": SQUARE},
            },
        ),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    _write(folder, seed, lambda: SmolVLMForConditionalGeneration(config), processor)


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
        "eos_token_id": tokenizer.eos_token_id,
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
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)]
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=ends[1], do_sample=True
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
