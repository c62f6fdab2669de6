"""The small model is a real Qwen2.5-VL folder."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tools.tiny.model import PIXELS, build_config, build_model_folder
from tools.tiny.tokenizer import SPECIAL_TOKENS, build_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_model_folder(folder, seed=0)
    return folder


def test_transformers_own_classes_load_it(folder):
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "qwen2_5_vl"
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    processor = AutoProcessor.from_pretrained(folder)
    assert len(processor.tokenizer) == config.text_config.vocab_size
    assert processor.video_processor.size["longest_edge"] == PIXELS


def test_vision_ids_are_those_of_the_tokenizer():
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    for name in ("video", "image"):
        index = getattr(config, f"{name}_token_id")
        assert tokenizer.convert_ids_to_tokens(index) == f"<|{name}_pad|>"
    assert config.vision_start_token_id == tokenizer.convert_tokens_to_ids("<|vision_start|>")
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)


def test_completions_end_at_either_end_token(folder):
    tokenizer = build_tokenizer()
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]


def test_seed_decides_the_weights_and_nothing_else_is_drawn(folder, tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("same", 0), ("other", 1)):
        build_model_folder(tmp_path / name, seed)
    assert torch.equal(before, torch.random.get_rng_state())
    weights, same, other = (
        load_file(path / "model.safetensors")
        for path in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert weights.keys() == same.keys() == other.keys()
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    name = next(key for key in weights if key.endswith("embed_tokens.weight"))
    assert not torch.equal(weights[name], other[name])
