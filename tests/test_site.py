"""The site builds without a warning, its list of options is the code's, and its notebooks run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.options import page

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def test_options_are_those_of_the_code():
    kept = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert kept == page(), "python -m tools.options > docs/options.md"


@pytest.mark.slow
def test_it_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vrts.models.Policy" in (tmp_path / "api/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch, capsys):
    """Its cells in their order, as a kernel runs them."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not kept"
            exec(compile("".join(cell["source"]), f"{notebook.name}:{number}", "exec"), names)
    out = capsys.readouterr().out
    if notebook.stem == "reward":
        assert (tmp_path / "reward/model/model.safetensors").is_file()
        assert "train/reward/brevity" in names["trainer"].callback_metrics
    else:
        assert (tmp_path / "rescore/replayed/report.html").is_file()
        assert "one answer on 4 frames: " in out
