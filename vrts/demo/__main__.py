"""``vrts demo``: predict, train with GRPO, predict again, on the embedded model."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from vrts.cli.command import run
from vrts.demo.videos import make_dataset

MODELS = {"base": "base", "rl": "GRPO"}
MODES = {"sparse": "sparse: 4", "dense": "dense: 16", "s2d": "S2D: 4, 8, 16"}
OVERLAYS: dict[str, list[str]] = {"sparse": ["demo/sparse"], "dense": ["demo/dense"], "s2d": []}
"""What comes on top of ``demo/predict`` for each way to predict."""
TRAIN_SEED, HELD_OUT_SEED = 101, 102
MADE = {
    "data", "predictions", "checkpoints", "logs", "model", "curves.png", "completions.jsonl",
    "summary.json",
}  # fmt: skip
"""What a demo leaves in its folder; one with anything else is not emptied."""


def predict(model: str, overlays: list[str], data: Path, folder: Path) -> dict[str, Any]:
    """Run ``vrts predict`` of a model on the questions in `data`; predictions go to `folder`."""
    start_s = time.perf_counter()
    options = {
        "--model.policy.init_args.path": model,
        "--data.predict.init_args.path": data / "questions.jsonl",
        "--trainer.default_root_dir": folder,
    }
    configs = [f"--config={name}" for name in ("demo/predict", *overlays)]
    run(["predict", *configs, *(f"{option}={value}" for option, value in options.items())])
    metrics = json.loads((folder / "metrics.json").read_text())
    return predict_report(metrics, time.perf_counter() - start_s)


def predict_report(metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what the demo shows of a ``metrics.json``, and the duration of the run."""
    names = ("accuracy", "mean_frames", "mean_frames_total", "unanimous_and_wrong")
    numbers = {name: metrics[name] for name in names}
    return numbers | {"stderr": metrics["accuracy_stderr"], "seconds": round(seconds, 1)}


def predict_all(name: str, model: str, folder: Path) -> dict[str, Any]:
    """Predict with a model in all three ways, in the folder of the demo."""
    questions, root = folder / "data/held_out", folder / "predictions" / name
    return {mode: predict(model, names, questions, root / mode) for mode, names in OVERLAYS.items()}


def train(folder: Path, num_steps: int) -> dict[str, Any]:
    """Run ``vrts fit`` from the embedded model; the learning rate falls to 0 over the steps."""
    start_s = time.perf_counter()
    options = {
        "--data.train.init_args.path": folder / "data/train/questions.jsonl",
        "--trainer.default_root_dir": folder,
        "--trainer.logger.init_args.save_dir": folder,
        "--trainer.max_steps": num_steps,
        "--model.lr_scheduler.init_args.total_iters": num_steps,
    }
    words = [f"{option}={value}" for option, value in options.items()]
    steps = run(["fit", "--config=demo/fit", *words]).trainer.global_step
    return {"steps": steps, "seconds": round(time.perf_counter() - start_s, 1)}


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """Compare the base and the trained model in all modes, from the content of ``summary.json``."""
    fit = summary["fit"]
    table = Table(
        title=f"{summary['num_questions']} held-out questions; "
        f"{fit['steps']} GRPO steps in {fit['seconds']:.0f} s"
    )
    for name in ("model", "levels"):
        table.add_column(name, no_wrap=True)
    for name in ("accuracy, %", "frames", "in all", "agreed, wrong", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for model, model_label in MODELS.items():
        for mode, mode_label in MODES.items():
            found = summary[model][mode]
            table.add_row(
                model_label,
                mode_label,
                f"{100 * found['accuracy']:.1f} ± {100 * found['stderr']:.1f}",
                f"{found['mean_frames']:.1f}",
                f"{found['mean_frames_total']:.1f}",
                f"{100 * found['unanimous_and_wrong']:.1f}",
                f"{found['seconds']:.0f}",
            )
        table.add_section()
    return table


def main(args: Sequence[str] | None = None) -> int:
    """Run the demo, show its table and write ``summary.json``; 1 if it must not use the folder."""
    parser = argparse.ArgumentParser("vrts demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="what it leaves")
    parser.add_argument("--num_steps", type=int, default=200, help="of GRPO")
    parser.add_argument("--num_train_videos", type=int, default=1600)
    parser.add_argument("--num_held_out_videos", type=int, default=200)
    given = parser.parse_args(args)
    folder: Path = given.folder
    others = sorted({path.name for path in folder.glob("*")} - MADE)
    if others:
        message = f"--folder: {folder} holds {others[0]}, which no demo has made; give another"
        print(f"vrts: error: {message}", file=sys.stderr)
        return 1
    # beside decode workers on few cores, several threads are many times slower than one
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    disable_progress_bar()
    console = Console()
    shutil.rmtree(folder, ignore_errors=True)
    for name, num_videos, seed in (
        ("train", given.num_train_videos, TRAIN_SEED),
        ("held_out", given.num_held_out_videos, HELD_OUT_SEED),
    ):
        console.print(f"Making {num_videos} {name} videos in {folder / 'data' / name}")
        questions = make_dataset(folder / "data" / name, num_videos, seed)
    console.rule("base model: sparse, dense and sparse-to-dense prediction")
    base = predict_all("base", "assets/tiny", folder)
    console.rule("GRPO from the base model, no supervised step")
    fit = train(folder, given.num_steps)
    console.rule("trained model: sparse, dense and sparse-to-dense prediction")
    trained = predict_all("rl", str(folder / "model"), folder)
    num_questions = len(questions.read_text().splitlines())
    summary = {"base": base, "rl": trained, "fit": fit, "num_questions": num_questions}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(comparison_table(summary))
    report = folder / "predictions/rl/s2d/report.html"
    console.print(f"Numbers: {folder / 'summary.json'}; every answer: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
