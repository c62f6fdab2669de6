"""One complete GRPO step of vrts against one of TRL's ``GRPOTrainer``, of the recipe's 8 questions.

``pip install --editable '.[bench]'`` brings TRL; ``python -m benchmarks.step`` then takes about
half an hour on a CPU. A step is rollout, reward, loss, backward and optimizer step, each side under
its own trainer in a process of its own, a step of one after a step of the other.

Both have the same randomly initialised Qwen2.5-VL from the same folder, frozen vision tower, all of
the language model trained in float32 with the same AdamW, no reference, G completions of exactly L
tokens, and the same patches, number of vision tokens and prompt tokens, which is checked. TRL gets
the frames as images: in its 1.16, ``_generate_and_score_completions`` hands ``pixel_values`` of
images on to the gradient pass and ``_get_per_token_logps_and_entropies`` has no parameter for
``pixel_values_videos``, so that a video would be seen in sampling and missing in the update. An
image fills a temporal patch by itself, so vrts's video has every frame twice.

Settings of TRL are its defaults but for those that equality asks for, and those that make it fast:
all completions of a step are generated together (``steps_per_generation``), then the update goes
question by question. The JSON file lists them.
Gradient checkpointing, which TRL has on and vrts off by default, is the same on both sides.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLImageProcessor

from benchmarks.common import SMALL, Shape, print_table, random_policy, write_results
from benchmarks.step_case import CLIP_NORM, LEARNING_RATE, SIDE, WEIGHT_DECAY, Case, trl_settings
from benchmarks.step_vrts import vrts_steps
from benchmarks.turns import take_turns

REPEATS = 2
"""Timed steps of each side, of which the median counts; one more warms up."""
CASES = [
    Case(12, B=8, G=8, L=32),
    Case(12, B=8, G=8, L=32, checkpointing=True),
]


def write_model(
    folder: Path,
    shape: Shape,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[int]:
    """Write the random model that both sides load.

    Args:
        folder: is filled.
        shape: of the model.
        device: that makes it; None is the CPU.
        dtype: of its weights.

    Returns:
        The vision tokens' ids.
    """
    policy = random_policy(shape, device or torch.device("cpu"), dtype)
    # TRL's images go through the processor's resizing; this is the frames' size already
    policy.processor.image_processor = Qwen2VLImageProcessor(
        size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    )
    policy.save_pretrained(folder)
    return policy.family.suppressed_ids()


def check_equal(case: Case, vrts: dict[str, Any], trl: dict[str, Any]) -> None:
    """Make sure that both sides had the same work.

    Args:
        case: the shape.
        vrts: facts of a step of vrts.
        trl: facts of a step of TRL.

    Raises:
        RuntimeError: they had not; the message says in what.
    """
    if vrts["P"] != trl["P"]:
        raise RuntimeError(f"prompts differ: {vrts['P']} tokens in vrts, {trl['P']} in TRL")
    for name, facts in (("vrts", vrts), ("TRL", trl)):
        if facts["lengths"] != [case.L] * case.B * case.G:
            raise RuntimeError(
                f"{name} sampled completions of {facts['lengths']} tokens, not {case.B} times "
                f"{case.G} of {case.L}"
            )
    ours, theirs = torch.from_numpy(vrts["patches"]), torch.from_numpy(trl["patches"])
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0, atol=1e-6):
        raise RuntimeError(f"patches differ: {tuple(ours.shape)}, {tuple(theirs.shape)}")


def median(steps: Sequence[tuple[float, dict[str, Any]]], fact: str | None = None) -> float:
    """Median over steps of their seconds, or of one of their facts."""
    return statistics.median(seconds if fact is None else facts[fact] for seconds, facts in steps)


def measure(folder: Path, case: Case, repeats: int) -> dict[str, Any]:
    """Time both sides for one shape."""
    from benchmarks.step_trl import trl_steps

    args = (str(folder), case, repeats + 1)
    steps = take_turns({"vrts": (vrts_steps, args), "TRL": (trl_steps, args)}, repeats)
    vrts, trl = steps["vrts"], steps["TRL"]
    for (_, ours), (_, theirs) in zip(vrts, trl, strict=True):
        check_equal(case, ours, theirs)
    return {
        "images": case.num_images,
        "P": vrts[0][1]["P"],
        "B": case.B,
        "G": case.G,
        "L": case.L,
        "checkpointing": case.checkpointing,
        "TRL s": median(trl),
        "vrts s": median(vrts),
        "ratio": median(trl) / median(vrts),
        "TRL CPU s": median(trl, "CPU s"),
        "vrts CPU s": median(vrts, "CPU s"),
        "vrts rollout s": median(vrts, "rollout s"),
        "TRL vision passes": median(trl, "vision passes"),
        "vrts vision passes": median(vrts, "vision passes"),
        "TRL step s": [seconds for seconds, _ in trl],
        "vrts step s": [seconds for seconds, _ in vrts],
    }


def main() -> None:
    """Measure all cases on the CPU, one thread a side."""
    if find_spec("trl") is None:
        sys.exit(
            "benchmarks.step compares with TRL, which is not installed; in the repository, run "
            ".venv/bin/pip install --editable '.[bench]'"
        )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        vision_ids = write_model(Path(folder), SMALL)
        rows = [measure(Path(folder), case, REPEATS) for case in CASES]
    hidden = ("TRL step s", "vrts step s")
    print_table(
        "a GRPO step: TRL against vrts",
        [{k: v for k, v in row.items() if k not in hidden} for row in rows],
    )
    write_results(
        "step",
        rows,
        {},
        shape=SMALL,
        dtype="float32",
        repeats=REPEATS,
        frames=f"{SIDE}x{SIDE}",
        optimizer=f"torch.optim.AdamW, lr {LEARNING_RATE}, weight decay {WEIGHT_DECAY}, all but "
        f"the vision tower; gradient clipped at norm {CLIP_NORM}",
        reward="number of different characters",
        versions={name: version(name) for name in ("trl", "accelerate", "datasets")},
        vrts="VideoQAModule with GRPO(beta=0) and micro-batches of one question, "
        "TransformersPolicy in float32; all else by default",
        trl=[trl_settings(case, REPEATS + 1, vision_ids) for case in CASES],
    )


if __name__ == "__main__":
    main()
