"""Configurations and the embedded model are found by name from any folder."""

from pathlib import Path

import pytest

from vrts.files.shipped import CONFIGS, ROOT, find_config, find_model, list_configs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["grpo", "grpo.yaml", "configs/grpo.yaml"])
def test_a_name_is_found_from_anywhere(name):
    assert find_config(name) == str(CONFIGS / "grpo.yaml")


@pytest.mark.parametrize("name", ["grpo", "grpo.yaml"])
def test_a_file_in_the_working_directory_wins(here, name):
    (here / "grpo.yaml").write_text("model: {seed: 1}\n")
    assert find_config(name) == "grpo.yaml"


def test_a_folder_of_that_name_does_not(here):
    (here / "grpo").mkdir()
    assert find_config("grpo") == str(CONFIGS / "grpo.yaml")


def test_a_folder_within_is_part_of_the_name():
    assert find_config("demo/fit") == str(CONFIGS / "demo/fit.yaml")


@pytest.mark.parametrize("name", ["mine", "../grpo", "/nowhere/grpo.yaml"])
def test_what_there_is_not_stays(name):
    assert find_config(name) == name


def test_each_is_listed_with_a_sentence():
    found = list_configs()
    assert {f"{name}.yaml" for name in found} == {
        path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")
    }
    assert all(text.endswith((".", ")")) and len(text) <= 95 for text in found.values()), found


def test_the_embedded_model_is_found_and_a_folder_wins(here):
    assert Path(find_model("assets/tiny")) == ROOT / "assets/tiny"
    assert find_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    (here / "assets/tiny").mkdir(parents=True)
    assert find_model("assets/tiny") == "assets/tiny"
