"""Kills training runs at random moments, resumes them, and compares with one that was left alone.

``python -m benchmarks.kills`` trains the embedded model on a CPU, with LoRA, dropout and gradient
accumulation, alone and as two ranks over gloo. Of two ranks, one is killed or both. Each run that
was killed goes on with ``--ckpt_path last`` until it is finished; its curves, completions and
adapter must then be those of the uninterrupted run, to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.common import report
from vrts.cli import main as vrts
from vrts.demo.videos import make_dataset

CONFIGS = Path(__file__).parents[1] / "configs"
MODEL = CONFIGS.parent / "assets/tiny"
TIMED = ("train/rollout_s", "train/update_s", "train/tokens_per_s")
"""Metrics that are about time and so differ from run to run."""
PATIENCE_S = 120
"""A rank that waits for a dead one longer than that has hung."""


@dataclass
class Tally:
    """What became of the runs with so many ranks."""

    num_ranks: int
    kills: int = 0
    runs: int = 0
    starts: int = 0
    killed_at_steps: list[int] = field(default_factory=list)
    """Steps that were in the curves when a kill came."""
    differing: list[str] = field(default_factory=list)
    """Files that were not those of the uninterrupted run."""
    hung: int = 0
    """Ranks that had to be ended after the other one was killed."""


class Job:
    """A training run, started as often as it takes.

    Args:
        root: for the model, the data and the runs.
        context: has everything imported, so that processes begin at once.
    """

    def __init__(self, root: Path, context: ForkServerContext) -> None:
        self._context = context
        self._annotations = make_dataset(root / "data", num_videos=6, seed=5)

    def start(self, folder: Path, num_ranks: int, *more: str) -> list[ForkServerProcess]:
        """Start or resume the run of a folder.

        Args:
            folder: of the run.
            num_ranks: processes over gloo.
            more: command-line words.
        """
        folder.mkdir(parents=True, exist_ok=True)
        args = [*self._args(folder, num_ranks), *more]
        port = _free_port()
        processes = [
            self._context.Process(target=_train, args=(args, folder / "log", rank, num_ranks, port))
            for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        return processes

    def _args(self, folder: Path, num_ranks: int) -> list[str]:
        return [
            "fit",
            *(f"--config={CONFIGS / name}.yaml" for name in ("grpo", "lora", "tiny")),
            f"--model.policy.init_args.path={MODEL}",
            "--model.policy.init_args.lora={rank: 4, alpha: 8, dropout: 0.2}",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.devices={num_ranks}",
            f"--trainer.strategy={'ddp' if num_ranks > 1 else 'auto'}",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--trainer.accumulate_grad_batches=2",
            "--trainer.max_epochs=2",
            "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 1,"
            " save_last: true, enable_version_counter: false}}, {class_path: CompletionLog, "
            "init_args: {every_n_steps: 1, num_shown: 0}}, CurveWriter, ExportPretrained]",
            "--model.optimizer.init_args.lr=0.001",
            "--model.num_generations=4",
            "--data.train=VideoR1Reader",
            f"--data.train.init_args.path={self._annotations}",
            "--data.train.init_args.video_root=null",
            "--data.num_frames=4",
            "--data.num_workers=0",
            "--ckpt_path=last",
        ]


def _train(args: list[str], log: Path, rank: int, num_ranks: int, port: int) -> None:
    """One rank, started as torchrun would start it."""
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    if num_ranks > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "kills",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "GROUP_RANK": "0",
        }
    torch.set_num_threads(1)
    raise SystemExit(vrts(args))


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(processes: Sequence[ForkServerProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def finish(processes: Sequence[ForkServerProcess], folder: Path) -> None:
    """Wait for a run that is to succeed.

    Args:
        processes: its ranks.
        folder: of the run.

    Raises:
        RuntimeError: it failed, or does not end.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(deadline_s - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    if any(codes) or None in codes:
        _end(processes)
        raise RuntimeError(f"exit codes {codes}:\n{(folder / 'log').read_text()[-3000:]}")


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run has come to, by file, without times.

    Args:
        folder: of the run.
    """
    points = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    curves = [{k: v for k, v in point.items() if k not in TIMED} for point in points]
    weights = load_file(folder / "model/adapter_model.safetensors")
    return {
        "curves.jsonl": curves,
        "completions.jsonl": (folder / "completions.jsonl").read_text(),
        "adapter_model.safetensors": {name: w.tolist() for name, w in weights.items()},
    }


def kill_and_resume(job: Job, root: Path, num_ranks: int, num_kills: int, seed: int) -> Tally:
    """Kill runs until there were enough kills, and see each of them through.

    Args:
        job: what is run.
        root: for the folders of the runs.
        num_ranks: 1, or 2, of which one or both are killed by turns.
        num_kills: in all.
        seed: of the moments.
    """
    whole = root / "whole"
    begin_s = time.monotonic()
    finish(job.start(whole, num_ranks), whole)
    duration_s = time.monotonic() - begin_s
    want, rng, tally = outcome(whole), random.Random(seed), Tally(num_ranks)
    while tally.kills < num_kills:
        folder = root / f"run{tally.runs}"
        tally.runs += 1
        while True:
            processes = job.start(folder, num_ranks)
            tally.starts += 1
            if tally.kills == num_kills:
                finish(processes, folder)
                break
            processes[0].join(rng.uniform(0.1, 1.1) * duration_s)
            if processes[0].exitcode is not None:
                finish(processes, folder)
                break
            tally.killed_at_steps.append(_count_lines(folder / "curves.jsonl"))
            one = num_ranks > 1 and tally.kills % 2 == 0
            victims = [processes[rng.randrange(num_ranks)]] if one else processes
            _end(victims)
            tally.kills += 1
            for process in processes:
                process.join(PATIENCE_S)
                tally.hung += process.exitcode is None
            _end(processes)
        got = outcome(folder)
        tally.differing += [f"{folder.name}/{name}" for name in want if got[name] != want[name]]
    return tally


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextlib.contextmanager
def forked(root: Path) -> Iterator[Job]:
    """A job whose processes are forked from a server that has imported everything.

    Args:
        root: for the model, the data and the runs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.common", "vrts.cli"])
    warm = context.Process(target=_free_port)  # the server starts with the first process
    warm.start()
    warm.join()
    yield Job(root, context)


def main() -> None:
    """Kill and resume, write ``results/kills.json``, and fail where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="half of them with two ranks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, forked(Path(name)) as job:
        shares = {1: options.kills - options.kills // 2, 2: options.kills // 2}
        tallies = [
            kill_and_resume(job, Path(name) / str(ranks), ranks, kills, options.seed)
            for ranks, kills in shares.items()
        ]
    report("kills", [vars(tally) for tally in tallies], seed=options.seed)
    if any(tally.differing or tally.hung for tally in tallies):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
