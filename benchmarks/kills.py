"""Kills training runs at random moments, resumes them, and compares with one that was left alone.

``python -m benchmarks.kills`` trains the embedded model on a CPU, with LoRA, dropout and
micro-batches, alone and as two ranks over gloo, of which each has the whole model (DDP) or a shard
of it (FSDP2), whose checkpoints are written at once or in the background. Of two ranks, one is
killed or both. A sharded checkpoint is a folder, which gets its name when it is whole and loses it
before it is removed: half the kills of sharded runs come right after one of these. Each run that
was killed resumes with ``--ckpt_path last`` until it is finished; its curves, completions and
adapter must then be those of the uninterrupted run, to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
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
from vrts.callbacks.monitoring.curves import POINTS
from vrts.cli.command import main as vrts
from vrts.demo.videos import make_dataset
from vrts.files.writing import GONE
from vrts.models.checkpoints.finding import REST

CONFIGS = Path(__file__).parents[1] / "configs"
MODEL = CONFIGS.parent / "assets/tiny"
TIMED = ("train/rollout_s", "train/update_s", "train/tokens_per_s")
"""Metrics that are about time and so differ from run to run."""
PATIENCE_S = 400
"""A rank that waits for a dead one longer than that has hung."""


@dataclass(frozen=True)
class Spread:
    """How a run is spread over processes."""

    num_ranks: int
    strategy: str
    """``trainer.strategy``."""
    swaps_folders: bool = False
    """Whether its checkpoints are folders, which are renamed."""


SHARDED = "{class_path: FullySharded, init_args: {timeout_s: 60, save_in_background: %s}}"
SPREADS = {
    "one process": Spread(1, "auto"),
    "two ranks, DDP": Spread(2, '{class_path: DDPStrategy, init_args: {timeout: "0:01:00"}}'),
    "two ranks, FSDP2": Spread(2, SHARDED % "false", swaps_folders=True),
    "two ranks, FSDP2, saved in the background": Spread(2, SHARDED % "true", swaps_folders=True),
}
"""Nothing like torchrun ends a rank whose peer was killed before they met: its timeout does."""


@dataclass(frozen=True)
class Swap:
    """A moment: right after the n-th rename of a folder to a name with this end."""

    end: str
    count: int


SWAP_ENDS = (GONE, ".ckpt")
"""Of the older checkpoint, which is about to be removed, and of the newer one (or of the link to
it), which gets its name."""


@dataclass
class Tally:
    """What became of the runs that were spread in one way."""

    spread: str
    kills: int = 0
    at_swaps: int = 0
    """Kills right after one of the renames of folders."""
    without_last: int = 0
    """Kills after which ``last.ckpt`` led nowhere."""
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

    def start(
        self, folder: Path, spread: Spread, *more: str, dies_after: Swap | None = None
    ) -> list[ForkServerProcess]:
        """Start or resume the run of a folder.

        Args:
            folder: of the run.
            spread: over processes that are connected by gloo.
            more: command-line words.
            dies_after: when the first process kills itself.
        """
        folder.mkdir(parents=True, exist_ok=True)
        args = [*self._args(folder, spread), *more]
        port, log, count = _free_port(), folder / "log", spread.num_ranks
        deaths = [dies_after, *[None] * (count - 1)]
        processes = [
            self._context.Process(target=_train, args=(args, log, rank, count, port, death))
            for rank, death in enumerate(deaths)
        ]
        for process in processes:
            process.start()
        return processes

    def _args(self, folder: Path, spread: Spread) -> list[str]:
        return [
            "fit",
            *(f"--config={CONFIGS / name}.yaml" for name in ("grpo", "lora", "tiny")),
            f"--model.policy.init_args.path={MODEL}",
            "--model.policy.init_args.lora={rank: 4, alpha: 8, dropout: 0.2}",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.devices={spread.num_ranks}",
            f"--trainer.strategy={spread.strategy}",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--data.batch_size=2",
            "--trainer.max_epochs=2",
            "--trainer.callbacks=[{class_path: StepCheckpoint, init_args: {every_n_steps: 1}}, "
            "{class_path: CompletionLog, init_args: {every_n_steps: 1, num_shown: 0}}, "
            "CurveWriter, ExportPretrained]",
            "--model.optimizer.init_args.lr=0.001",
            "--model.num_generations=4",
            "--model.max_new_tokens=16",
            "--data.train=VideoR1Reader",
            f"--data.train.init_args.path={self._annotations}",
            "--data.train.init_args.video_root=null",
            "--data.num_frames=4",
            "--data.num_workers=0",
            "--ckpt_path=last",
        ]


def _train(
    args: list[str], log: Path, rank: int, num_ranks: int, port: int, dies_after: Swap | None
) -> None:
    """One rank, started as torchrun would start it."""
    if dies_after is not None:
        _die_after(dies_after)
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


def _die_after(swap: Swap) -> None:
    """Have this process kill itself at a moment that no other process could meet."""
    replace, left = os.replace, swap.count

    def replace_and_die(source: Any, target: Any, **options: Any) -> None:
        nonlocal left
        replace(source, target, **options)
        if Path(target).is_dir() and str(target).endswith(swap.end):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die  # type: ignore[assignment]  # pathlib renames by it


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
    last = folder / "checkpoints/last.ckpt"
    points = torch.load(last / REST if last.is_dir() else last, weights_only=True)[POINTS]
    curves = [{k: v for k, v in point.items() if k not in TIMED} for point in points]
    weights = load_file(folder / "model/adapter_model.safetensors")
    return {
        "curves": curves,
        "completions.jsonl": (folder / "completions.jsonl").read_text(),
        "adapter_model.safetensors": {name: w.tolist() for name, w in weights.items()},
    }


def kill_and_resume(job: Job, root: Path, name: str, num_kills: int, seed: int) -> Tally:
    """Kill runs until there were enough kills, and see each of them through.

    Args:
        job: what is run.
        root: for the folders of the runs.
        name: of a spread; where it has two ranks, one or both are killed by turns.
        num_kills: in all.
        seed: of the moments.
    """
    spread, whole = SPREADS[name], root / "whole"
    begin_s = time.monotonic()
    finish(job.start(whole, spread), whole)
    duration_s = time.monotonic() - begin_s
    want, rng, tally = outcome(whole), random.Random(seed), Tally(name)
    while tally.kills < num_kills:
        folder = root / f"run{tally.runs}"
        tally.runs += 1
        while not _is_finished(job, folder, spread, tally, num_kills, duration_s, rng):
            pass
        got = outcome(folder)
        tally.differing += [f"{folder.name}/{file}" for file in want if got[file] != want[file]]
    return tally


def _is_finished(
    job: Job, folder: Path, spread: Spread, tally: Tally, num_kills: int, duration_s: float,
    rng: random.Random,
) -> bool:  # fmt: skip
    """Start a run once more and kill it, unless it ends before or there were kills enough."""
    enough, number = tally.kills == num_kills, tally.kills
    at_swap = spread.swaps_folders and number // 2 % 2 == 0 and not enough
    swap = Swap(SWAP_ENDS[number // 4 % 2], rng.randint(1, 4)) if at_swap else None
    processes = job.start(folder, spread, dies_after=swap)
    tally.starts += 1
    if not enough:
        wait_s = PATIENCE_S if at_swap else rng.uniform(0.1, 1.1) * duration_s
        processes[0].join(wait_s)
    killed_itself = at_swap and processes[0].exitcode == -signal.SIGKILL
    if enough or not (killed_itself or processes[0].exitcode is None):
        finish(processes, folder)
        return True
    tally.killed_at_steps.append(_newest_step(folder / "completions.jsonl"))
    one = spread.num_ranks > 1 and number % 2 == 0
    victims = processes
    if one:
        victims = [processes[0 if killed_itself else rng.randrange(spread.num_ranks)]]
    _end(victims)
    last = folder / "checkpoints/last.ckpt"
    tally.kills += 1
    tally.at_swaps += killed_itself
    tally.without_last += last.is_symlink() and not last.exists()
    for process in processes:
        process.join(PATIENCE_S)
        tally.hung += process.exitcode is None
    _end(processes)
    return False


def _newest_step(path: Path) -> int:
    """Step of the last complete line of a run's completions; 0 where there is none."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@contextlib.contextmanager
def forked(root: Path) -> Iterator[Job]:
    """A job whose processes are forked from a server that has imported everything.

    Args:
        root: for the model, the data and the runs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.common", "vrts.cli.command"])
    warm = context.Process(target=_free_port)  # the server starts with the first process
    warm.start()
    warm.join()
    yield Job(root, context)


def main() -> None:
    """Kill and resume, write ``results/kills.json``, and fail where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills",
        type=int,
        default=20,
        help="a quarter of them for each way to spread a run and to save it",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shares = {name: -(-options.kills // len(SPREADS)) for name in SPREADS}
    with tempfile.TemporaryDirectory() as root, forked(Path(root)) as job:
        tallies = [
            kill_and_resume(job, Path(root) / str(i), name, kills, options.seed)
            for i, (name, kills) in enumerate(shares.items())
        ]
    report("kills", [vars(tally) for tally in tallies], seed=options.seed)
    if any(tally.differing or tally.hung for tally in tallies):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
