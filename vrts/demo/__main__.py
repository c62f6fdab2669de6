"""``python -m vrts.demo``: predict, train with GRPO, predict again, on the embedded model."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from vrts.cli.command import run
from vrts.demo.report import comparison_table, predict_report
from vrts.demo.videos import make_dataset

FOLDER = Path("runs/demo")
"""Everything that the demo makes; emptied first. The configurations name it too."""
CONFIGS = Path("configs/demo")
BASE_MODEL, TRAINED_MODEL = Path("assets/tiny"), FOLDER / "model"
OVERLAYS: dict[str, list[str]] = {"sparse": ["sparse.yaml"], "dense": ["dense.yaml"], "s2d": []}
"""What comes on top of ``predict.yaml`` for each way to predict."""
NUM_TRAIN_VIDEOS, TRAIN_SEED = 1600, 101
NUM_HELD_OUT_VIDEOS, HELD_OUT_SEED = 200, 102


def predict(model: Path, overlays: list[str], folder: Path) -> dict[str, Any]:
    """Run ``vrts predict`` on the held-out questions.

    Args:
        model: folder of the model.
        overlays: configurations on top of ``predict.yaml``.
        folder: gets the predictions.

    Returns:
        What `predict_report` says of the run.
    """
    start_s = time.perf_counter()
    configs = [f"--config={CONFIGS / name}" for name in ["predict.yaml", *overlays]]
    path = f"--model.policy.init_args.path={model}"
    run(["predict", *configs, path, f"--trainer.default_root_dir={folder}"])
    metrics = json.loads((folder / "metrics.json").read_text())
    return predict_report(metrics, time.perf_counter() - start_s)


def predict_all(name: str, model: Path) -> dict[str, Any]:
    """Predict in all three ways.

    Args:
        name: of the model, for its folder.
        model: folder of the model.
    """
    return {
        mode: predict(model, overlays, FOLDER / "predictions" / name / mode)
        for mode, overlays in OVERLAYS.items()
    }


def main() -> None:
    """Run the demo, show its table and write ``summary.json``."""
    # beside decode workers on few cores, several threads are many times slower than one
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    disable_progress_bar()
    console = Console()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, num_videos, seed in (
        ("train", NUM_TRAIN_VIDEOS, TRAIN_SEED),
        ("held_out", NUM_HELD_OUT_VIDEOS, HELD_OUT_SEED),
    ):
        console.print(f"Making {num_videos} {name} videos in {FOLDER / 'data' / name}")
        make_dataset(FOLDER / "data" / name, num_videos, seed)
    console.rule("base model: sparse, dense and sparse-to-dense prediction")
    base = predict_all("base", BASE_MODEL)
    console.rule("GRPO from the base model, no supervised step")
    start_s = time.perf_counter()
    steps = run(["fit", f"--config={CONFIGS / 'fit.yaml'}"]).trainer.global_step
    fit = {"steps": steps, "seconds": round(time.perf_counter() - start_s, 1)}
    console.rule("trained model: sparse, dense and sparse-to-dense prediction")
    trained = predict_all("rl", TRAINED_MODEL)
    summary = {
        "base": base,
        "rl": trained,
        "fit": fit,
        "num_questions": len((FOLDER / "data/held_out/questions.jsonl").read_text().splitlines()),
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(comparison_table(summary))
    console.print(f"Numbers: {FOLDER / 'summary.json'}")


if __name__ == "__main__":
    main()
