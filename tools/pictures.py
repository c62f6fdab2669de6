"""Makes the README's pictures: ``python -m tools.pictures runs/demo docs/pictures``."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from PIL import Image

import vrts
from vrts.types import Prediction

matplotlib.use("Agg")
MODELS = {"base": ("base", "#9aa5b1"), "rl": ("after 200 steps of GRPO", "#1f77b4")}
MODES = {"sparse": "sparse", "dense": "dense", "s2d": "sparse-to-dense"}


def draw_accuracy(summary: dict[str, Any], path: Path) -> None:
    """Draw accuracy over the frames that decided, of base and trained model.

    Args:
        summary: content of the demo's ``summary.json``.
        path: of the image.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.3), layout="constrained")
    for model, (label, colour) in MODELS.items():
        runs = [summary[model][mode] for mode in MODES]
        x, y = ([run["mean_frames"] for run in runs], [100 * run["accuracy"] for run in runs])
        error = [100 * run["stderr"] for run in runs]
        axes.errorbar(x, y, error, fmt="o", color=colour, capsize=3, label=label)
        for name, at_x, at_y in zip(MODES.values(), x, y, strict=True):
            text = f"{name} {at_y:.1f}"
            axes.annotate(text, (at_x, at_y), (7, -4), textcoords="offset points", fontsize=9)
    axes.set(xlim=(3, 19.5), ylim=(50, 92), xlabel="frames in the deciding round, mean")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    save(figure, path)


def draw_rounds(prediction: Prediction, path: Path) -> None:
    """Draw the rounds of a question: the frames that were shown, and the votes.

    Args:
        prediction: of a question that took several rounds.
        path: of the image.
    """
    question, rounds = prediction.question, prediction.rounds
    figure, axes = plt.subplots(len(rounds), 1, figsize=(9, 0.92 * len(rounds) + 0.5))
    with av.open(question.video) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate)
    most = max(asked.num_frames for asked in rounds)
    for row, (axis, asked) in enumerate(zip(axes, rounds, strict=True)):
        shown = [frames[round(time * rate)] for time in asked.times_s]
        strip = np.full((56, 60 * most - 4, 3), 255, np.uint8)
        for place, frame in enumerate(shown):
            at = round(place * (most - 1) / max(len(shown) - 1, 1)) * 60
            strip[:, at : at + 56] = frame
        axis.imshow(strip, interpolation="nearest")
        axis.axis("off")
        votes = "  ".join(answer or "none" for answer in asked.answers)
        last = row == len(rounds) - 1
        end = f"answer {prediction.answer}" if last else "they disagree: look closer"
        axis.set_title(f"{asked.num_frames} frames, votes  {votes}:  {end}", fontsize=9, loc="left")
    options = ", ".join(
        f"{letter} {text}" for letter, text in zip("ABCD", question.options or [], strict=False)
    )
    figure.suptitle(f"{question.text}   {options}", fontsize=10)
    figure.tight_layout(h_pad=0.4)
    save(figure, path)


def draw_shared_prefix(path: Path, prompt: int = 12, lengths: tuple[int, ...] = (4, 5, 3)) -> None:
    """Draw which token attends to which, with the prompt repeated and with the prompt shared.

    Args:
        path: of the image.
        prompt: its tokens.
        lengths: tokens of each completion.
    """
    rows = [prompt + length for length in lengths]
    repeated = np.zeros((sum(rows), sum(rows)))
    for start, row in zip(np.cumsum([0, *rows]), rows, strict=False):
        repeated[start : start + row, start : start + row] = np.tri(row)
        repeated[start : start + prompt, start : start + prompt] *= 2
    total = prompt + sum(lengths)
    shared = np.zeros((total, total))
    shared[:prompt, :prompt] = 2 * np.tri(prompt)
    for start, length in zip(prompt + np.cumsum([0, *lengths]), lengths, strict=False):
        shared[start : start + length, :prompt] = 1
        shared[start : start + length, start : start + length] = np.tri(length)
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.9), layout="constrained")
    colours = ListedColormap(["#f4f6f8", "#1f77b4", "#e0a030"])
    titles = (f"prompt repeated: {sum(rows)} tokens", f"prompt shared: {total} tokens")
    for axis, mask, title in zip(axes, (repeated, shared), titles, strict=True):
        axis.imshow(mask, cmap=colours, vmin=0, vmax=2, interpolation="nearest")
        axis.set(title=title, xlabel="attended to", ylabel="token", xticks=[], yticks=[])
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Save a figure in few colours and bytes."""
    figure.savefig(path, dpi=110)
    plt.close(figure)
    shrink(path)


def shrink(path: Path, colours: int = 64, box: tuple[int, int, int, int] | None = None) -> None:
    """Cut an image to a box and keep few colours."""
    with Image.open(path) as image:
        cut = image.convert("RGB").crop(box) if box else image.convert("RGB")
    cut.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def photograph(page: Path, path: Path, width: int = 1000, height: int = 760) -> None:
    """Take a picture of the top of a report in Chromium."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options = [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        copy = Path(profile) / "report.html"  # without the name of this machine's folder
        copy.write_text(page.read_text().replace(f"{Path.cwd()}/", ""))
        shot = [f"--screenshot={path.resolve()}", copy.as_uri()]
        subprocess.run([*command, *options, *shot], check=True, timeout=120, capture_output=True)
    shrink(path)


def main() -> None:
    """Make all pictures from a run of the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a demo")
    parser.add_argument("pictures", type=Path, help="folder of the images")
    given = parser.parse_args()
    given.pictures.mkdir(parents=True, exist_ok=True)
    draw_accuracy(json.loads((given.run / "summary.json").read_text()), given.pictures / "demo.png")
    draw_shared_prefix(given.pictures / "shared_prefix.png")
    answered = given.run / "predictions/rl/s2d"
    found = (
        prediction
        for prediction in vrts.read_predictions(str(answered / "predictions.jsonl"))
        if len(prediction.rounds) == 3
        and prediction.correct
        and prediction.rounds[-1].agreement == 1
    )
    draw_rounds(next(found), given.pictures / "sparse_to_dense.png")
    photograph(answered / "report.html", given.pictures / "report.png")
    curves = given.pictures / "curves.png"
    curves.write_bytes((given.run / "curves.png").read_bytes())
    with Image.open(curves) as image:
        width, height = image.size
    shrink(curves, 200, (0, 0, width, round(0.393 * height)))


if __name__ == "__main__":
    main()
