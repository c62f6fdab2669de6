"""What is saved has the names of transformers 4.57 too, and loads here as before."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from tests.models.families.conftest import family_model  # noqa: F401 a fixture
from vrts.models.vlm.policy import TransformersPolicy


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def saved(family_model, tmp_path):  # noqa: F811
    policy = family_model.policy()
    policy.save_pretrained(tmp_path / "model")
    return policy, tmp_path / "model"


def test_rotary_parameters(saved):
    policy, folder = saved
    own = policy.base.config.text_config.rope_parameters
    text = read(folder / "config.json")["text_config"]
    assert text["rope_theta"] == own["rope_theta"]
    if "mrope_section" in own:
        assert text["rope_scaling"]["mrope_section"] == own["mrope_section"]
        assert text["rope_scaling"]["type"] == "mrope"
    again = AutoConfig.from_pretrained(folder).text_config.rope_parameters
    assert {key: again[key] for key in own} == own


def test_processors_and_tokenizer(saved):
    policy, folder = saved
    images = read(folder / "preprocessor_config.json")
    videos = read(folder / "video_preprocessor_config.json")
    assert images["image_mean"] == list(policy.processor.image_processor.image_mean)
    assert videos["video_processor_type"] == type(policy.processor.video_processor).__name__
    assert videos["processor_class"] == type(policy.processor).__name__
    tokenizer = read(folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] != "TokenizersBackend"
    assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    before, after = (
        AutoProcessor.from_pretrained(path).tokenizer for path in (policy.path, folder)
    )
    text = "<|im_start|>user\nWhat? <think>red</think><|im_end|>"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert set(after.all_special_tokens) == set(before.all_special_tokens)


def test_it_is_the_same_model_here(saved):
    policy, folder = saved
    again = TransformersPolicy(str(folder), dtype="float32")
    again.load()
    for (name, one), (other, two) in zip(
        policy.named_parameters(), again.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)
