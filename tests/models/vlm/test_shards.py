"""Loading in two steps, without memory and then from the files, comes to the same as loading."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vrts.models.vlm.loading import Lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.models.vlm.shards import INDEX, weights_digest
from vrts.types import InputError


def load_empty(folder, **options) -> TransformersPolicy:
    policy = TransformersPolicy(str(folder), **({"dtype": "float32"} | options))
    policy.load_empty()
    return policy


def load(folder, **options) -> TransformersPolicy:
    policy = TransformersPolicy(str(folder), **({"dtype": "float32"} | options))
    policy.load()
    return policy


def check_same(got: TransformersPolicy, want: TransformersPolicy) -> None:
    left, right = got.state_dict(), want.state_dict()
    assert left.keys() == right.keys()
    for name, value in right.items():
        assert left[name].dtype == value.dtype, name
        assert torch.equal(left[name], value), name
    for (name, left), (_, right) in zip(got.named_buffers(), want.named_buffers(), strict=True):
        assert torch.equal(left, right), name
    assert [n for n, p in got.named_parameters() if p.requires_grad] == [
        n for n, p in want.named_parameters() if p.requires_grad
    ]
    config = want.base.generation_config
    assert got.base.generation_config.eos_token_id == config.eos_token_id
    assert got.training == want.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_weights_are_those_of_the_files(model_folder, dtype):
    policy = load_empty(model_folder, dtype=dtype)
    assert all(p.is_meta for p in policy.parameters())
    copied = copy.deepcopy(policy)
    for one in (policy, copied):
        one.fill(torch.device("cpu"))
        check_same(one, load(model_folder, dtype=dtype))
        assert one.base.lm_head.weight is one.base.model.language_model.embed_tokens.weight


def test_an_adapter_begins_as_it_does_elsewhere(model_folder, tmp_path):
    policies = []
    for make in (load_empty, load):
        torch.manual_seed(3)
        policies.append(make(model_folder, lora=Lora(rank=4, alpha=8)))
    policies[0].fill(torch.device("cpu"))
    check_same(*policies)
    trained = policies[1]
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    trained.save_pretrained(tmp_path)
    again = load_empty(tmp_path, lora=Lora(rank=4, alpha=8))
    again.fill(torch.device("cpu"))
    check_same(again, trained)


def test_several_files_with_names_of_the_model(model_folder, tmp_path):
    """The other tests read the names of published files, which transformers writes too."""
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert any(name.startswith("visual.") for name in tensors)
    assert any(name.startswith("model.layers.") for name in tensors)
    model = load(model_folder).base
    new = {name: tensor.clone() for name, tensor in model.named_parameters()}
    assert not new.keys() & tensors.keys()
    names = sorted(new)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: new[name] for name in own}, tmp_path / file)
    places = {name: file for file, own in parts.items() for name in own}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "unlisted.safetensors")
    policy = load_empty(tmp_path)
    policy.fill(torch.device("cpu"))
    check_same(policy, load(model_folder))


def test_what_does_not_fit_is_named(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.norm.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    with pytest.raises(InputError, match=r"lack 1 tensors .* model.language_model.norm.weight"):
        load_empty(tmp_path).fill(torch.device("cpu"))
    save_file(tensors | {name: torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"norm.weight has shape \(3,\), but config.json"):
        load_empty(tmp_path).fill(torch.device("cpu"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load"):
        load_empty(tmp_path).fill(torch.device("cpu"))


def test_the_digest_of_weights_is_of_their_content(tmp_path, model_folder):
    """However they are divided into files, and of every tensor."""
    want = weights_digest(model_folder)
    assert want is not None
    weights = load_file(model_folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, tmp_path / file, {"format": "pt"})
    assert weights_digest(tmp_path) == want
    index = {name: file for file, held in parts.items() for name in held}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    save_file(weights, tmp_path / "not_in_the_index.safetensors")
    assert weights_digest(tmp_path) == want
    found = {want}
    for name in (names[0], names[-1]):
        changed = weights | {name: weights[name] + 1e-3}
        (tmp_path / name).mkdir()
        save_file(changed, tmp_path / name / "model.safetensors")
        found.add(weights_digest(tmp_path / name))
    assert len(found) == 3
    assert weights_digest(tmp_path / "nowhere") is None
