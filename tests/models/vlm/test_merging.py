"""A merged model answers as the adapter does, and the adapted one stays as it was."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.models.vlm.test_policy import perturb_adapter, roll
from vrts.models.vlm.loading import Lora, load_model
from vrts.models.vlm.policy import TransformersPolicy
from vrts.models.vlm.saving import check_mergeable, merge_adapters
from vrts.types import InputError


@pytest.fixture
def adapted(load_policy):
    policy = load_policy(lora=Lora(rank=4, alpha=8)).eval()
    perturb_adapter(policy)
    return policy


def test_a_merged_folder_scores_as_the_adapter_does(adapted, load_policy, samples, tmp_path):
    prompts, completions = roll(adapted, samples)
    want = adapted.logprobs(prompts, completions, 1.0).logprobs
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    adapted.save_pretrained(tmp_path / "merged", merge=True)
    merged = load_policy(tmp_path / "merged").eval()
    torch.testing.assert_close(
        merged.logprobs(prompts, completions, 1.0).logprobs, want, rtol=0, atol=2e-5
    )
    assert (load_policy().logprobs(prompts, completions, 1.0).logprobs - want).abs().max() > 1e-3
    after = dict(adapted.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(adapted.logprobs(prompts, completions, 1.0).logprobs, want)


def test_it_is_a_plain_model_to_transformers(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "merged", merge=True)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= names
    assert "adapter_config.json" not in names
    _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_merging_without_an_adapter_writes_the_model(load_policy, tmp_path):
    policy = load_policy()
    policy.save_pretrained(tmp_path / "out", merge=True)
    again = load_policy(tmp_path / "out")
    named = dict(again.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in policy.named_parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_rounding_happens_once_and_is_told(model_folder, tmp_path, caplog, scale):
    """Sums are made in float32, whatever the base is held in."""
    policy = TransformersPolicy(str(model_folder), lora=Lora(rank=4, alpha=8), dtype="bfloat16")
    policy.load()
    perturb_adapter(policy)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(scale)
    base, state = policy.base, dict(policy.base.state_dict())
    name = "model.language_model.layers.0.mlp.down_proj"
    weights = {key.removeprefix(name): value for key, value in state.items() if name in key}
    B, A = weights[".lora_B.default.weight"], weights[".lora_A.default.weight"]
    old = weights[".base_layer.weight"]
    want = (old.double() + 2.0 * B.double() @ A.double()).float().bfloat16()
    rounding = merge_adapters(base, state)
    assert state[f"{name}.weight"].dtype == torch.bfloat16
    assert (state[f"{name}.weight"] != want).float().mean() < 1e-3  # float32 sums may tip a few
    assert not [key for key in state if "lora_" in key or "base_layer" in key]
    assert rounding < 0.2 if scale == 1 else rounding > 0.5
    with caplog.at_level(logging.INFO):
        policy.save_pretrained(tmp_path / "out", merge=True)
    (record,) = [r for r in caplog.records if "merged the adapter" in r.getMessage()]
    assert "rounding to bfloat16 changed the update by" in record.getMessage()
    if scale < 1:
        assert record.levelno == logging.WARNING
    assert load_model(str(tmp_path / "out"), "auto", None).dtype == torch.bfloat16


def test_float32_loses_nothing(adapted):
    assert merge_adapters(adapted.base, dict(adapted.base.state_dict())) < 1e-5


def test_an_adapter_that_is_no_number_is_refused(adapted, tmp_path):
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(InputError, match=r"merge: model\.language_model\.layers\.0"):
        adapted.save_pretrained(tmp_path / "out", merge=True)


def test_weights_that_are_used_twice_are_refused(load_policy):
    """A merged head would change the embedding that it is tied to."""
    model = load_policy().model
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    with pytest.raises(InputError, match="lm_head, whose weights the model uses in a second place"):
        check_mergeable(get_peft_model(model, LoraConfig(target_modules=["lm_head"])))


def test_modules_that_are_trained_whole_are_refused(load_policy):
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"])
    with pytest.raises(InputError, match="is not a low-rank adapter"):
        check_mergeable(get_peft_model(load_policy().model, config))


def test_no_room_is_told_before_anything_is_written(adapted, tmp_path, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(InputError, match=r"cannot write the model to .*are free.*vrts export"):
        adapted.save_pretrained(tmp_path / "out", merge=True)
    assert not list((tmp_path / "out").iterdir())
