"""Folders with a LoRA adapter: loading, going on with it, and what may be wrong with one."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.callbacks.runs import make_module
from tests.models.vlm.test_policy import perturb_adapter, roll, texts_of
from vrts.models.vlm.loading import Lora
from vrts.types import InputError

LORA = Lora(rank=4, alpha=8)


@pytest.fixture
def adapter(load_policy, tmp_path):
    """A policy with an adapter that does something, and its folder."""
    policy = load_policy(lora=LORA).eval()
    perturb_adapter(policy)
    policy.save_pretrained(tmp_path / "adapter")
    return policy, tmp_path / "adapter"


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_folder_scores_as_the_policy_that_wrote_it(load_policy, samples, adapter, lora):
    policy, folder = adapter
    again = load_policy(folder, lora=lora).eval()
    prompts, completions = roll(policy, samples)
    want = policy.logprobs(prompts, completions, 1.0).logprobs
    assert (load_policy().logprobs(prompts, completions, 1.0).logprobs - want).abs().max() > 1e-3
    torch.testing.assert_close(again.logprobs(prompts, completions, 1.0).logprobs, want)
    assert texts_of(roll(again, samples)[1]) == texts_of(completions)


def test_training_goes_on_only_where_lora_is_given(load_policy, adapter):
    _, folder = adapter
    names = [n for n, p in load_policy(folder, lora=LORA).named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    fixed = load_policy(folder)
    assert not any(p.requires_grad for p in fixed.base.model.language_model.parameters())


def test_full_fine_tuning_of_an_adapter_is_refused(load_policy, adapter):
    _, folder = adapter
    module = make_module(load_policy(folder))
    with pytest.raises(InputError, match=r"nothing to train; .* or the merged model as path"):
        module.configure_optimizers()


def test_without_the_adapter_it_is_the_base(load_policy, samples, adapter):
    policy, folder = adapter
    again = load_policy(folder, lora=LORA)
    prompts, completions = roll(policy, samples)
    with again.adapter_disabled():
        got = again.logprobs(prompts, completions, 1.0).logprobs
    torch.testing.assert_close(got, load_policy().logprobs(prompts, completions, 1.0).logprobs)


def test_another_rank_than_the_adapters_is_refused(load_policy, adapter):
    _, folder = adapter
    with pytest.raises(InputError, match=r"rank 16 and alpha 32, but .* rank 4 and alpha 8"):
        load_policy(folder, lora=Lora())


def test_a_relative_base_is_kept_as_an_absolute_path(
    load_policy, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(model_folder.parent)
    policy = load_policy(Path(model_folder.name), lora=LORA)
    policy.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert load_policy(tmp_path / "adapter").loaded


def test_it_holds_no_weights_of_the_base(adapter, model_folder):
    _, folder = adapter
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)


def edit(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_base_that_is_gone_is_named(load_policy, adapter):
    _, folder = adapter
    edit(folder, base_model_name_or_path="/nowhere/base")
    with pytest.raises(InputError, match=r"no folder '/nowhere/base'"):
        load_policy(folder)


def test_a_folder_without_a_base_is_refused(load_policy, adapter):
    _, folder = adapter
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(InputError, match="names no base_model_name_or_path"):
        load_policy(folder)


def test_a_folder_without_weights_is_refused(load_policy, adapter):
    _, folder = adapter
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        load_policy(folder)


def test_damaged_weights_are_refused(load_policy, adapter):
    _, folder = adapter
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot load the adapter"):
        load_policy(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"r": 4}'])
def test_a_damaged_configuration_is_refused(load_policy, adapter, text):
    _, folder = adapter
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_policy(folder)


def test_an_adapter_of_another_rank_is_refused(load_policy, adapter):
    """Weights and configuration of different runs."""
    _, folder = adapter
    edit(folder, r=8)
    with pytest.raises(InputError, match="cannot load the adapter"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("layers.0.mlp.up_proj", "Found missing adapter keys"),  # of a model of other layers
        (None, "it has 44 tensors, and 42 fit the model"),  # of a deeper model
    ],
)
def test_an_adapter_of_other_layers_is_refused(load_policy, adapter, name, problem):
    """It would answer as the base does, or as another model."""
    _, folder = adapter
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    found = [key for key in tensors if (name or "layers.0.mlp.up_proj") in key]
    assert len(found) == 2
    for key in found:
        tensors[key.replace("layers.0", "layers.9")] = tensors.pop(key) if name else tensors[key]
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    with pytest.raises(InputError, match=rf"cannot load .*: {problem}.* base_model_") as error:
        load_policy(folder)
    assert len(str(error.value)) < 700


def test_a_base_in_another_place_is_found(load_policy, samples, adapter, model_folder, tmp_path):
    policy, folder = adapter
    shutil.copytree(model_folder, tmp_path / "base")
    edit(folder, base_model_name_or_path=str(tmp_path / "base"))
    prompts, completions = roll(policy, samples)
    torch.testing.assert_close(
        load_policy(folder).logprobs(prompts, completions, 1.0).logprobs,
        policy.logprobs(prompts, completions, 1.0).logprobs,
    )


def test_the_fingerprint_names_the_base_and_its_weights(load_policy, adapter, model_folder):
    _, folder = adapter
    found = load_policy(folder).fingerprint()
    assert found["base"] == str(model_folder)
    assert found["weights"].keys() == {"adapter_model.safetensors"}
    assert found["base_weights"].keys() == {"model.safetensors"}
    assert load_policy().fingerprint()["base"] is None


def test_weights_are_told_by_their_content(load_policy, adapter):
    """A copy is the same model, whenever it was made."""
    _, folder = adapter
    before = load_policy(folder).fingerprint()
    path = folder / "adapter_model.safetensors"
    os.utime(path, (1e9, 1e9))
    assert load_policy(folder).fingerprint() == before
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, path)
    assert load_policy(folder).fingerprint()["weights"] != before["weights"]
