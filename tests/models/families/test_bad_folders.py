"""Folders that are no model of a known family, through the command: one message each."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlavaConfig

from tests.cli.test_command import predict_args
from tests.models.families.tiny import build_qwen3_vl, build_smolvlm
from vrts.cli.command import main


def refused(folder: Path, annotations: Path, tmp_path: Path, capsys) -> str:
    """The message, of three lines at most, with which a prediction run ends."""
    assert main(predict_args(folder, tmp_path / "run", annotations)) != 0
    (message,) = [
        part for part in capsys.readouterr().err.split("vrts: error: ")[1:] if part.strip()
    ]
    assert len(message.strip().splitlines()) <= 3, message
    return message


def change(folder: Path, **keys) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in keys.items():
        part, _, name = key.rpartition("__")
        (config[part] if part else config)[name] = value
    path.write_text(json.dumps(config))


@pytest.fixture
def folder(family_model, tmp_path) -> Path:
    return Path(shutil.copytree(family_model.folder, tmp_path / "folder"))


@pytest.mark.parametrize("config", [LlamaConfig(), LlavaConfig()], ids=["text", "no video"])
def test_other_kinds_of_models(config, folder, annotations, tmp_path, capsys):
    config.save_pretrained(folder)
    message = refused(folder, annotations, tmp_path, capsys)
    assert f"is of type '{config.model_type}'" in message
    assert "Qwen2.5-VL (qwen2_5_vl, qwen2_vl), Qwen3-VL (qwen3_vl)" in message


def test_a_mixture_of_experts(folder, annotations, tmp_path, capsys):
    change(folder, model_type="qwen3_vl_moe")
    assert "'qwen3_vl_moe', which vrts does not know" in refused(
        folder, annotations, tmp_path, capsys
    )


def test_a_transformers_that_is_too_old(folder, annotations, tmp_path, capsys, monkeypatch):
    known = json.loads((folder / "config.json").read_text())["model_type"]
    monkeypatch.setattr("vrts.models.vlm.loading.CONFIG_MAPPING", {})
    message = refused(folder, annotations, tmp_path, capsys)
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    (oldest,) = [d for d in pyproject["project"]["dependencies"] if d.startswith("transformers")]
    assert f"does not know; pip install '{oldest.partition(',')[0]}'" in message
    assert known.split("_")[0] in message.lower()


def test_weights_of_another_size(folder, annotations, tmp_path, capsys):
    change(folder, text_config__intermediate_size=96)
    message = refused(folder, annotations, tmp_path, capsys)
    assert "mlp" in message
    assert "but config.json makes it (96, 96)" in message


def test_a_processor_of_another_family(family_model, folder, annotations, tmp_path, capsys):
    other = build_qwen3_vl if family_model.case.name == "smolvlm" else build_smolvlm
    other(tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder)
    message = refused(folder, annotations, tmp_path, capsys)
    assert "take the model's own processor files" in message


@pytest.mark.parametrize("key", ["patch_size", "temporal_patch_size", "merge_size"])
def test_a_processor_of_other_patches(family_model, folder, annotations, tmp_path, capsys, key):
    if family_model.case.squares:
        pytest.skip("its processor makes no patches")
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["video_processor"][key] = 4
    path.write_text(json.dumps(config))
    message = refused(folder, annotations, tmp_path, capsys)
    assert f"has {key} 4, but the model's vision_config has" in message


def test_sliding_windows(family_model, folder, annotations, tmp_path, capsys):
    if family_model.case.name != "qwen2_5_vl":
        pytest.skip("only its configuration has them")
    change(folder, text_config__layer_types=["sliding_attention", "full_attention"] * 2)
    change(folder, text_config__num_hidden_layers=4)
    assert "layers with a sliding window" in refused(folder, annotations, tmp_path, capsys)


def test_no_processor(folder, annotations, tmp_path, capsys):
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    message = refused(folder, annotations, tmp_path, capsys)
    assert "processor" in message
    assert str(folder) in message
