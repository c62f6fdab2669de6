"""Every block of code in the README and the guides runs as pasted, or says why it cannot.

Blocks of a page run in their order in one folder. One with a title is written to that file. The 7B
model gives way to a small one, and training to one step; ``<!-- not run: why -->`` before a block
leaves it out.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import vrts
from tools.tiny.model import build_model_folder
from vrts.api import ask
from vrts.cli import HELP, main
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset
from vrts.types import InputError

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/options.md"})
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>.+?)\")?\n"
    r"(?P<code>.*?)^```$",
    re.M | re.S,
)
SHOWN = {"text", "mermaid"}
"""Blocks that are pictures."""
SMALL = ["--config=tiny", "--config=cpu", "--trainer.enable_progress_bar=false"]
SMALLER = {
    "fit": [
        "--trainer.max_steps=1", "--model.num_generations=2", "--model.max_new_tokens=8",
        "--data.num_frames=4", "--data.num_workers=0", "--model.optimizer.init_args.fused=false",
    ],
    "predict": ["--data.num_workers=0", "--model.max_new_tokens=8"],
}  # fmt: skip
"""What each command gets behind its own words."""
CHANGES = {
    '"Qwen/Qwen2.5-VL-7B-Instruct"': '"assets/tiny", dtype="float32"',
    "max_steps=100": "max_steps=1, accelerator='cpu', logger=False",
    "batch_size=8": "batch_size=1, num_frames=4, num_workers=0",
    "rewards=[": "num_generations=2, max_new_tokens=8, rewards=[",
    "options=[": "max_new_tokens=8, levels=(4, 8), accelerator='cpu', options=[",
}
"""Of Python, for a small model."""


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    title: str | None
    why: str | None


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["code"], m["title"], m["why"]) for m in found]


def commands(code: str) -> list[list[str]]:
    """The words of each line of a shell."""
    lines = code.replace("\\\n", " ")
    whole = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), lines)
    return [words for line in whole.splitlines() if (words := shlex.split(line, comments=True))]


def run_command(words: list[str]) -> None:
    assert words[0] == "vrts", f"{words}: only vrts is run"
    command = words[1]
    more = [] if command == "export" or "replay" in words else SMALL + SMALLER.get(command, [])
    more += ["--trainer.val_check_interval=1"] if "validate" in words else []
    assert main([*words[1:], *more]) == 0, words


def run(block: Block) -> None:
    if block.title:
        Path(block.title).write_text(block.code, encoding="utf-8")
        if block.language == "json":
            assert all(json.loads(line) for line in block.code.splitlines())
    elif block.language == "python":
        code = block.code
        for old, new in CHANGES.items():
            code = code.replace(old, new)
        exec(compile(code, "page", "exec"), {})
    else:
        assert block.language == "bash", f"a {block.language} block needs a title or a reason"
        for words in commands(block.code):
            run_command(words)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with what the pages name: a clip, questions to train on, and questions held out."""
    annotations = make_dataset(tmp_path / "data", num_videos=1, seed=5, kinds=(OBJECT, FLASH))
    (tmp_path / "clips").mkdir()
    shutil.copy(next((tmp_path / "data/videos").iterdir()), tmp_path / "clips/kitchen.mp4")
    (tmp_path / "data/videos").rename(tmp_path / "videos")
    for name in ("questions.jsonl", "held_out.jsonl"):
        shutil.copy(annotations, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs(page, here, capsys):
    for block in blocks(page):
        if block.why is None and block.language not in SHOWN:
            run(block)
    if page.name == "README.md":
        assert (here / "runs/mine/model/adapter_model.safetensors").is_file()
        assert (here / "runs/answers/report.html").is_file()
    if page.name == "predict.md":
        assert (here / "runs/by_logprob/metrics.json").is_file()
        out = capsys.readouterr().out
        assert re.search(r"Counter\(.*\) [48] \(0\.0, ", out)
        assert out.count("\nWhat does she pick up? ") >= 1
    if page.name == "train.md":
        assert (here / "exported/model.safetensors").is_file()
    if page.name == "plug-ins.md":
        rewards = json.loads((here / "runs/brief/completions.jsonl").read_text().splitlines()[0])
        assert {"accuracy", "brevity", "enthusiasm"} <= rewards["rewards"].keys()


@pytest.mark.slow
def test_the_examples_of_help_run(here):
    shutil.copy(here / "clips/kitchen.mp4", "clip.mp4")
    Path("questions.csv").write_text("video,question\nclip.mp4,Who wins?\n")
    examples = re.findall(r": +(vrts \w+ --config .*)", HELP.replace("\\\n", " "))
    assert len(examples) == 3
    for example in examples:
        more = ["--data.batch_size=1"] if " fit " in example else []
        run_command([*shlex.split(example), *more])


def test_no_block_escapes():
    """The pattern finds all fences, and few blocks are left out."""
    skipped = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(page)), page
        skipped += sum(block.why is not None for block in blocks(page))
    assert skipped <= 10


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_bytes()) <= 8 * 1024
    pictures = list((ROOT / "docs/pictures").iterdir())
    assert sum(path.stat().st_size for path in pictures) < 300_000
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_what_is_exported_is_there():
    assert set(vrts.__all__) == {
        "Completion", "Prediction", "Question", "ask", "load", "read_predictions",
    }  # fmt: skip
    assert all(getattr(vrts, name) is not None for name in vrts.__all__)


def test_a_video_that_is_not_there(tmp_path):
    build_model_folder(tmp_path / "model", seed=0)
    with pytest.raises(InputError, match=r"data\.video: nowhere\.mp4: no such"):
        ask(vrts.load(str(tmp_path / "model")), "nowhere.mp4", "?", accelerator="cpu")
