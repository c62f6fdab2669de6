"""``vrts fit`` itself on one device, through its configurations: cases of `benchmarks.gpu`.

On a CPU, gloo takes the place of NCCL and float32 that of bfloat16.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.common import Shape, random_policy
from benchmarks.gpu_bench import Bench, Row
from vrts.cli import main
from vrts.demo.videos import make_dataset

CONFIGS = Path(__file__).parents[1] / "configs"
PEAK_TFLOPS = 989
"""Of an H200 (and an H100 SXM) in bfloat16, dense, by its data sheet: what MFU is a share of."""
NUM_STEPS = 3


def sharded_training(bench: Bench) -> Row:
    """Train a small model, sharded over this one process, against the same without sharding."""
    with _folder(bench, bench.scale.small_shape) as (root, model):
        want = _fit(bench, root / "plain", model, "gpu", *_exact())
        got = _fit(bench, root / "fsdp", model, "fsdp", *_exact())
    return {"overlay": "fsdp", **_compared(got, want)}


def resumed(bench: Bench) -> Row:
    """Save with DCP, go on from it, and compare with a run that was not interrupted."""
    every = "--trainer.callbacks=[{class_path: StepCheckpoint, init_args: {every_n_steps: 1}}]"
    with _folder(bench, bench.scale.small_shape) as (root, model):
        whole = _fit(bench, root / "whole", model, "fsdp", *_exact())
        begin = _fit(bench, root / "parts", model, "fsdp", *_exact(), every, steps=NUM_STEPS - 1)
        saved = root / "parts/checkpoints/last.ckpt"
        parts = [*saved.rglob("*.distcp")]
        size = sum(part.stat().st_size for part in parts)
        more = (*_exact(), every, "--ckpt_path=last")
        rest = _fit(bench, root / "parts", model, "fsdp", *more)
    compared = _compared(begin + rest, whole)
    return {
        "checkpoint": f"{len(parts)} file of DCP" if parts else "no DCP",
        "checkpoint MB": size / 1e6,
        "steps after resuming": len(rest),
        **compared,
        "ok": bool(parts) and len(rest) == 1 and compared["ok"],
    }


def tuned(bench: Bench, tuning: str) -> Row:
    """Train the large model under the overlay ``gpu``: seconds, memory and MFU of the last step.

    Full fine-tuning is without a reference, which would not fit beside Adam's moments.
    """
    bench.release()
    scale = bench.scale
    more = [
        f"--model.num_generations={scale.G}",
        f"--model.max_new_tokens={scale.L}",
        f"--data.num_frames={scale.num_frames}",
    ]
    if tuning == "full":
        more += ["--model.objective.init_args.beta=0", "--model.reference=null"]
    if bench.device.type == "cuda":
        pixels = scale.sides[0][0] * scale.sides[0][1]
        more.append(f"--data.resolution={{min_pixels: {pixels}, max_pixels: {pixels}}}")
    with _folder(bench, scale.shape) as (root, model):
        last = _fit(bench, root / "run", model, "gpu", *more, tuning=tuning)[-1]
    keys = ("rollout_s", "update_s", "step_s", "memory_gb", "mfu_update", "mfu_step")
    return {
        "tuning": tuning,
        "G": scale.G,
        "L": scale.L,
        "frames": scale.num_frames,
        **{key: last[f"throughput/{key}"] for key in keys},
        "MFU is of TFLOP/s": PEAK_TFLOPS,
        "log-probs, rollout from update, nats": last["train/rollout_logprob_gap"],
    }


def _exact() -> tuple[str, ...]:
    """Words of runs that are compared: with steps that are large, but not of rounding noise."""
    return (
        "--trainer.precision=32-true",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.init_args={lr: 1.0, momentum: 0.9}",
    )


def _compared(got: list[dict[str, float]], want: list[dict[str, float]]) -> Row:
    """How far two runs of as many steps are apart, and how far the weights were moved."""
    apart = max(
        abs(a[key] - b[key]) / (abs(b[key]) + 1e-2)
        for a, b in zip(got, want, strict=True)
        for key in ("train/loss", "train/kl", "train/entropy")
    )
    kl = want[-1]["train/kl"]
    return {
        "loss, KL, entropy apart": apart,
        "KL of the last step": kl,
        "ok": apart <= 1e-3 and kl > 1e-4,
    }


@contextmanager
def _folder(bench: Bench, shape: Shape) -> Iterator[tuple[Path, Path]]:
    """A folder for runs, and one with a model of that shape, on the disk in bfloat16."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = random_policy(shape, bench.device, torch.bfloat16)
        model.save_pretrained(root / "model")
        del model
        bench.release()
        make_dataset(root / "data", num_videos=4, seed=5)
        yield root, root / "model"


def _fit(
    bench: Bench,
    root: Path,
    model: Path,
    overlay: str,
    *more: str,
    tuning: str = "full",
    steps: int = NUM_STEPS,
) -> list[dict[str, float]]:
    """Run ``vrts fit``; what it logged at each step.

    Raises:
        RuntimeError: it ended with an error, which it has printed.
    """
    args = [
        "fit",
        *(f"--config={CONFIGS / name}.yaml" for name in ("grpo", tuning, overlay)),
        f"--model.policy.init_args.path={model}",
        f"--trainer.default_root_dir={root}",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.init_args.save_dir={root}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.devices=1",
        "--data.batch_size=1",
        f"--trainer.max_steps={steps}",
        "--trainer.max_epochs=9",
        f"--trainer.callbacks=[{{class_path: ThroughputLog, init_args: {{peak_tflops: "
        f"{PEAK_TFLOPS}}}}}]",
        # random weights never earn the recipe's rewards
        "--model.rewards=[{class_path: benchmarks.step_vrts.Variety}]",
        "--model.num_generations=4",
        "--model.max_new_tokens=12",
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={root.parent / 'data/questions.jsonl'}",
        "--data.train.init_args.video_root=null",
        "--data.num_frames=4",
        *more,
    ]
    with ExitStack() as stack:
        if bench.device.type == "cpu":
            args += ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
        stack.callback(_end_group)
        if main(args) != 0:
            raise RuntimeError(f"vrts {' '.join(args)} failed; see above")
    newest = max(root.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
    with newest.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    return [{k: float(v) for k, v in row.items() if v} for row in rows]


def _end_group() -> None:
    """Let the next run begin as the first one did."""
    if dist.is_initialized():
        dist.destroy_process_group()
