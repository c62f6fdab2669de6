"""The wheel, installed outside the repository, has what the command needs."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel as a user does, but with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(ROOT)], check=True, timeout=120)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, which shares only what vrts depends on."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    # a path in a .pth file is no site folder: an editable vrts in there stays unknown
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["--python", str(folder / "bin/python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*PIP, *install, str(wheel)], check=True, timeout=120)
    return folder


@pytest.fixture
def vrts(installed, tmp_path):
    """Run the installed command in an empty folder; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> str:
        command = [str(installed / "bin/vrts"), *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_wheel_carries_configurations_and_model_and_nothing_of_the_repository(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("configs", "assets/tiny"):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"vrts/{path.relative_to(ROOT).as_posix()}" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vrts", f"vrts-{VERSION}.dist-info"}
    assert {"vrts/py.typed", "vrts/models/__init__.pyi", "vrts/callbacks/report/page.css"} <= set(
        names
    )


def test_the_command_answers_outside_the_repository(vrts):
    assert vrts("--version") == f"vrts {VERSION}\n"
    shown = vrts("configs")
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.relative_to(ROOT / "configs").with_suffix("").as_posix() in shown


def test_the_demo_runs_outside_the_repository(vrts, tmp_path, installed):
    small = ["--num_steps=2", "--num_train_videos=16", "--num_held_out_videos=4"]
    shown = vrts("demo", "--folder=tried", *small)
    assert "8 held-out questions; 2 GRPO steps" in shown
    summary = json.loads((tmp_path / "tried/summary.json").read_text())
    assert summary["num_questions"] == 8
    assert summary["fit"]["steps"] == 2
    assert (tmp_path / "tried/model/model.safetensors").is_file()
    settings = json.loads((tmp_path / "tried/predictions/base/s2d/settings.json").read_text())
    assert str(installed) in json.dumps(settings), "not the model of the wheel"


def test_the_demo_leaves_a_folder_with_other_files(installed, tmp_path):
    (tmp_path / "thesis.tex").touch()
    words = [str(installed / "bin/vrts"), "demo", f"--folder={tmp_path}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "holds thesis.tex, which no demo has made" in done.stderr
    assert (tmp_path / "thesis.tex").exists()
