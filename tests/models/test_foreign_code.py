"""Folders of others: nothing in them is unpickled or run."""

import json
import pickle
import shutil

import pytest
import torch

from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.vlm.loading import Lora, check_type
from vrts.types import InputError

OWN = "raise SystemExit('code of the folder has run')\n"


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the model, with code beside it."""
    copy = shutil.copytree(model_folder, tmp_path / "model")
    (copy / "own.py").write_text(OWN)
    return copy


def edit(path, **values):
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "AutoConfig"),
        ("config.json", "AutoModelForImageTextToText"),
        ("processor_config.json", "AutoProcessor"),
        ("tokenizer_config.json", "AutoTokenizer"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ],
)
def test_code_of_its_own_is_refused_by_name(load_policy, folder, name, key):
    edit(folder / name, auto_map={key: "own.Own"})
    with pytest.raises(InputError, match=rf"model/{name} asks for Python code .*\(auto_map\)"):
        load_policy(folder)


def test_a_base_with_code_is_refused_behind_an_adapter(load_policy, folder, tmp_path):
    policy = load_policy(folder, lora=Lora(rank=4))
    perturb_adapter(policy)
    policy.save_pretrained(tmp_path / "adapter")
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Own"})
    with pytest.raises(InputError, match=r"model/config\.json asks for Python code"):
        load_policy(tmp_path / "adapter")


def test_so_is_a_model_of_the_hub(load_policy):
    """Whose configuration is only known when it is loaded."""
    config = load_policy().base.config
    check_type(config, "some/model")
    config.auto_map = {"AutoConfig": "own.Own"}
    with pytest.raises(InputError, match="configuration of some/model asks for Python code"):
        check_type(config, "some/model")


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return exec, (OWN,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_by_name(load_policy, folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match=r"model has no weights \(\*\.safetensors\)"):
        load_policy(folder)


def test_pickled_weights_beside_others_are_not_read(load_policy, folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Hostile()))
    assert load_policy(folder).loaded


def test_a_pickled_adapter_is_refused_by_name(load_policy, folder, tmp_path):
    load_policy(folder, lora=Lora(rank=4)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter has no adapter_model\.safetensors"):
        load_policy(tmp_path / "adapter")


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "owner/kernel@v1"},
        {"text_config": {"_attn_implementation": "owner/kernel:attention"}},
        {"vision_config": {"attn_implementation": {"a": 1}, "_attn_implementation": "a/b"}},
    ],
)
def test_a_kernel_of_the_hub_is_refused_by_name(load_policy, folder, fields):
    config = json.loads((folder / "config.json").read_text())
    for key, value in fields.items():
        config[key] = config[key] | value if isinstance(config.get(key), dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json asks for the kernel '.*/.*' of the hub"):
        load_policy(folder)


def test_an_index_that_names_a_pickle_is_refused_by_name(load_policy, folder):
    weights = {"lm_head.weight": "pytorch_model.bin", "x": "model.safetensors"}
    edit(folder / "model.safetensors.index.json", weight_map=weights)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match=r"index\.json names 'pytorch_model\.bin', which is no"):
        load_policy(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index\.json is not an index of weights"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "breaks"),
        ("{{ raise_exception('not this way') }}", "breaks .*not this way"),
        ("{% if %}", "breaks"),
        ("{% for m in messages if m.role == 'system' %}x{% endfor %}", "leaves out the question"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",  # of a text model
            "puts 0 video and 0 image placeholders for one video",
        ),
        (
            "<|video_pad|>{% for part in messages[0].content %}{{ part.text }}"
            "<|{{ part.type }}_pad|>{% endfor %}",
            "puts 2 video and 0 image placeholders for one video",
        ),
        (
            "{{ messages[0].content[1].text }}<|video_pad|>",
            "puts 1 video and 0 image placeholders for one image",
        ),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
            "{% endfor %}{% endfor %}{% endfor %}",
            "does not end within 1 s",
        ),
    ],
)
def test_a_chat_template_that_does_not_do_its_work_is_named(
    load_policy, folder, monkeypatch, template, problem
):
    monkeypatch.setattr("vrts.models.vlm.untrusted.TIMEOUT_S", 1)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=rf"the chat template in .*model {problem}"):
        load_policy(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "problem"),
    [("(([a-z_.0-9]+)+)+!", "did not end within 2 s"), ("(q_proj", "is not a regular expression")],
)
def test_a_regular_expression_that_runs_away_is_named(
    load_policy, folder, tmp_path, monkeypatch, pattern, problem
):
    monkeypatch.setattr("vrts.models.vlm.untrusted.TIMEOUT_S", 2)
    with pytest.raises(InputError, match=rf"lora\.target_modules: .*{problem}"):
        load_policy(folder, lora=Lora(rank=4, target_modules=pattern))
    load_policy(folder, lora=Lora(rank=4)).save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter/adapter_config.json", target_modules=pattern)
    with pytest.raises(InputError, match=rf"adapter_config\.json: .*{problem}"):
        load_policy(tmp_path / "adapter")
