"""``vrts fit`` and ``vrts predict`` by their configurations: cases of `benchmarks.gpu`.

On a CPU, gloo takes the place of NCCL and float32 that of bfloat16.
"""

from __future__ import annotations

import csv
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu_bench import Bench, Row
from benchmarks.step import measure
from benchmarks.step_case import Case as StepCase
from vrts.cli.command import main
from vrts.files.predictions import read_predictions

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_STEPS = 3


def sharded_training(bench: Bench) -> Row:
    """Train a small model, sharded over this one process, against the same without sharding."""
    model = bench.model_folder(bench.scale.small_shape)
    with tempfile.TemporaryDirectory(dir=bench.folder) as root:
        want = _fit(bench, Path(root) / "plain", model, "gpu", *_exact())
        got = _fit(bench, Path(root) / "fsdp", model, "fsdp", *_exact())
    return {"overlay": "fsdp", **_compared(got, want)}


def resumed(bench: Bench) -> Row:
    """Save with DCP, resume from it, and compare with a run that was not interrupted."""
    every = "--trainer.callbacks=[{class_path: StepCheckpoint, init_args: {every_n_steps: 1}}]"
    model = bench.model_folder(bench.scale.small_shape)
    with tempfile.TemporaryDirectory(dir=bench.folder) as root:
        whole = _fit(bench, Path(root) / "whole", model, "fsdp", *_exact())
        run = Path(root) / "parts"
        begin = _fit(bench, run, model, "fsdp", *_exact(), every, steps=NUM_STEPS - 1)
        parts = [*(run / "checkpoints/last.ckpt").rglob("*.distcp")]
        size = sum(part.stat().st_size for part in parts)
        rest = _fit(bench, run, model, "fsdp", *_exact(), every, "--ckpt_path=last")
    compared = _compared(begin + rest, whole)
    return {
        "checkpoint": f"{len(parts)} file of DCP" if parts else "no DCP",
        "checkpoint MB": size / 1e6,
        "steps after resuming": len(rest),
        **compared,
        "ok": bool(parts) and len(rest) == 1 and compared["ok"],
    }


def tuned(bench: Bench, tuning: str) -> Row:
    """``vrts fit`` of the large model under the overlay ``gpu``, as the recipe is: its last step.

    Full fine-tuning is without a reference, which would not fit beside Adam's moments, and keeps
    the engine's copy on the host during the update.
    """
    scale = bench.scale
    more = [
        f"--model.num_generations={scale.G}",
        f"--model.max_new_tokens={scale.L}",
        f"--data.num_frames={scale.num_frames}",
        f"--data.batch_size={scale.B}",
        *_pixels(bench),
    ]
    if tuning == "full":
        more += ["--model.objective.init_args.beta=0", "--model.reference=null"]
        more += ["--model.engine=NativeEngine", "--model.engine.init_args.offload=true"]
    model = bench.model_folder(scale.shape)
    with tempfile.TemporaryDirectory(dir=bench.folder) as root:
        last = _fit(bench, Path(root), model, "gpu", *more, tuning=tuning)[-1]
    keys = ("rollout_s", "update_s", "step_s", "rollout_tokens_per_s", "memory_gb")
    return {
        "tuning": tuning,
        "B": scale.B,
        "G": scale.G,
        "L": scale.L,
        "frames": scale.num_frames,
        **{key: last[f"throughput/{key}"] for key in (*keys, "mfu_update", "mfu_step")},
        "MFU is of TFLOP/s": bench.peak_tflops,
        "log-probs, rollout from update, nats": last["train/sampling/logprob_diff"],
    }


def predicted(bench: Bench) -> Row:
    """``vrts predict`` with sparse-to-dense on three levels; random weights never agree before."""
    scale = bench.scale
    model = bench.model_folder(scale.shape)
    levels = [scale.num_frames // 4 // 2 * 2 or 2, scale.num_frames // 2, scale.num_frames]
    levels = sorted(set(levels))
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(dir=bench.folder) as root:
        args = [
            "predict",
            *(f"--config={CONFIGS / name}.yaml" for name in ("s2d", "gpu")),
            f"--model.policy.init_args.path={model}",
            "--model.policy.init_args.dtype=bfloat16",
            f"--model.max_new_tokens={scale.L}",
            f"--trainer.default_root_dir={root}",
            f"--trainer.callbacks=[{{class_path: SparseToDense, init_args: {{levels: {levels}}}}}, "
            "PredictionWriter]",
            f"--data.predict.init_args.path={bench.folder / 'data/questions.jsonl'}",
            "--data.predict.init_args.video_root=null",
            *_pixels(bench),
        ]
        start_s = time.perf_counter()
        _vrts(bench, args)
        wall_s = time.perf_counter() - start_s
        found = list(read_predictions(Path(root) / "predictions.jsonl"))
    rounds = [r for prediction in found for r in prediction.rounds]
    tokens = sum(sum(r.num_tokens) for r in rounds)
    on_cuda = bench.device.type == "cuda"
    return {
        "questions": len(found),
        "failed": sum(prediction.error is not None for prediction in found),
        "levels": levels,
        "rounds": len(rounds),
        "tokens": tokens,
        "s, loading included": wall_s,
        "tokens/s, loading included": tokens / wall_s,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if on_cuda else None,
        "ok": bool(rounds) and all(prediction.error is None for prediction in found),
    }


def trl_step(bench: Bench) -> Row:
    """The step of `benchmarks.step` with LoRA, by vrts and by TRL, each in a process of its own."""
    scale = bench.scale
    is_large = bench.device.type == "cuda"
    case = StepCase(
        12 if is_large else 2,
        B=scale.B,
        G=scale.G,
        L=scale.L // 2,
        checkpointing=True,
        lora_rank=scale.lora_rank,
        device=bench.device.type,
    )
    row = measure(bench.model_folder(scale.shape), case, repeats=1)
    return {key: value for key, value in row.items() if not key.endswith("step s")}


def trl_missing() -> str | None:
    """What is missing for `trl_step`."""
    return "trl is not installed" if find_spec("trl") is None else None


def _pixels(bench: Bench) -> list[str]:
    """Words that give frames the benchmark's size; the tiny model's are those of its videos."""
    if bench.device.type != "cuda":
        return []
    pixels = bench.scale.sides[0][0] * bench.scale.sides[0][1]
    return [f"--data.resolution={{min_pixels: {pixels}, max_pixels: {pixels}}}"]


def _exact() -> tuple[str, ...]:
    """Words of runs that are compared: with steps that are large, but not of rounding noise."""
    return (
        "--trainer.precision=32-true",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.init_args={lr: 1.0, momentum: 0.9, fused: false}",
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


def _fit(
    bench: Bench,
    root: Path,
    model: Path,
    overlay: str,
    *more: str,
    tuning: str = "full",
    steps: int = NUM_STEPS,
) -> list[dict[str, float]]:
    """Run ``vrts fit``; what it logged at each step. Raises as `_vrts` does."""
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
        f"{bench.peak_tflops}}}}}]",
        # random weights never earn the recipe's rewards
        "--model.rewards=[{class_path: benchmarks.step_vrts.Variety}]",
        "--model.num_generations=4",
        "--model.max_new_tokens=12",
        "--data.train=VideoR1Reader",
        f"--data.train.init_args.path={bench.folder / 'data/questions.jsonl'}",
        "--data.train.init_args.video_root=null",
        "--data.num_frames=4",
        *more,
    ]
    _vrts(bench, args)
    newest = max(root.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
    with newest.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    return [{k: float(v) for k, v in row.items() if v} for row in rows]


def _vrts(bench: Bench, args: list[str]) -> None:
    """Run the command, on the CPU where there is no device.

    Raises:
        RuntimeError: it ended with an error, which it has printed.
    """
    if bench.device.type == "cpu":
        args = [*args, "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    with ExitStack() as stack:
        stack.callback(_end_group)
        if main(args) != 0:
            raise RuntimeError(f"vrts {' '.join(args)} failed; see above")


def _end_group() -> None:
    """Let the next run begin as the first one did."""
    if dist.is_initialized():
        dist.destroy_process_group()
