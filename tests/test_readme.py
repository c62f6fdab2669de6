"""The README's Python works as pasted."""

import re
import shutil
from pathlib import Path

import pytest

import vrts
from tools.tiny.model import build_model_folder
from vrts.api import ask
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset
from vrts.files.predictions import write_predictions
from vrts.types import InputError, Prediction, Question, Round

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with what the README names: a small model, videos, questions, predictions."""
    build_model_folder(tmp_path / "model", seed=0)
    annotations = make_dataset(tmp_path / "data", num_videos=1, seed=5, kinds=(OBJECT, FLASH))
    annotations.rename(tmp_path / "questions.jsonl")
    (tmp_path / "data/videos").rename(tmp_path / "videos")
    (tmp_path / "clips").mkdir()
    shutil.copy(next((tmp_path / "videos").iterdir()), tmp_path / "clips/kitchen.mp4")
    (tmp_path / "runs/s2d").mkdir(parents=True)
    asked = Question("1", "What is shown?", "a.mp4")
    found = Prediction(asked, (Round(4, ("a cat",), ("a cat",), 1.0),), "a cat")
    write_predictions(tmp_path / "runs/s2d/predictions.jsonl", [found])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(block: str) -> None:
    """Run a block as it is, but for the model and the number of steps."""
    changes = {
        '"Qwen/Qwen2.5-VL-7B-Instruct"': '"model", dtype="float32"',
        "max_steps=100": "max_steps=1, accelerator='cpu', logger=False",
        "batch_size=8": "batch_size=1, num_frames=4, num_workers=0",
        "rewards=[": "num_generations=2, max_new_tokens=8, rewards=[",
        "options=[": "max_new_tokens=8, levels=(4, 8), accelerator='cpu', options=[",
    }
    for old, new in changes.items():
        block = block.replace(old, new)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_a_block_runs(here, index, capsys):
    run(BLOCKS[index])
    out = capsys.readouterr().out
    if "read_predictions" in BLOCKS[index]:
        assert out == "What is shown? a cat None 4\n"
    if "save_pretrained" in BLOCKS[index]:
        assert (here / "runs/mine/model/adapter_model.safetensors").is_file()
    if "vrts.ask" in BLOCKS[index]:
        assert re.search(r"Counter\(.*\) [48] \(0\.0, ", out), out


def test_there_is_a_block_for_each_use():
    text = "".join(BLOCKS)
    assert all(f"vrts.{name}(" in text for name in ("load", "ask", "read_predictions"))


def test_what_is_exported_is_there():
    assert set(vrts.__all__) == {
        "Completion", "Prediction", "Question", "ask", "load", "read_predictions",
    }  # fmt: skip
    assert all(getattr(vrts, name) is not None for name in vrts.__all__)


def test_a_video_that_is_not_there(here):
    with pytest.raises(InputError, match=r"data\.video: nowhere\.mp4: no such"):
        ask(vrts.load("model"), "nowhere.mp4", "?", accelerator="cpu")
