"""Training with FSDP2 on two processes: what each of its options costs in time and saves in memory.

``python -m benchmarks.sharding`` takes some minutes on a CPU of two cores. Two gloo processes of
one thread train all of a random language model in float32 with AdamW, two questions each in
micro-batches of one, with `FullySharded` and, to compare, with DDP. Settings take turns, so ratios
are within one run: they are to `FullySharded` as it is by default, with completions of the same
length. Of two processes the slower and the larger one counts.

``peak MB`` is the most that torch's allocator holds at once from before loading to the end of the
second step: weights, gradients, Adam's moments, the engine's copy, gathered weights, activations.
DDP's weights are the mapped file, and its engine shares them. What gloo and Python take is not in
it. Gathering goes through the memory of one machine here, so seconds tell of its number, not of a
network.

Loading is measured by itself, by the process's anonymous memory: no process may hold the whole
model at any time.
"""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import spawn

from benchmarks.common import SMALL, print_table, write_results
from benchmarks.sharding_ranks import RANKS, Case, Plan, run_rank
from benchmarks.step import write_model
from vrts.models.sharding import Sharding

LENGTHS = (16, 64)
B, G, NUM_FRAMES, SIDE = 2, 4, 8, 112
ROUNDS, STEPS = 2, 1
SETTINGS: dict[str, Sharding | None] = {
    "DDP": None,
    "default": Sharding(),
    "keep_gathered: false": Sharding(keep_gathered=False),
    "sync_every_micro_batch: true": Sharding(sync_every_micro_batch=True),
    "cpu_offload: true": Sharding(cpu_offload=True),
}
OFFLOADING = (
    "On CPU processes shards are in the host's memory anyway: cpu_offload runs and saves nothing "
    "here, so its seconds show how far those of one setting scatter on two cores. What it saves on "
    "a GPU is not measured by this benchmark."
)

Found = Mapping[str, Any]
"""What one process wrote."""


def measure(plan: Plan) -> list[Found]:
    """Run the plan on two processes; what each of them found."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        spawn(run_rank, (folder, port, plan), nprocs=RANKS)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]


def loading_row(ranks: Sequence[Found]) -> dict[str, float]:
    """Memory of loading, of the process that takes most, beside the whole model's bytes.

    Raises:
        RuntimeError: a process held as much as the whole model has.
    """
    most = {key: max(rank["load"][key] for rank in ranks) for key in ranks[0]["load"]}
    if most["resident"] >= most["model"]:
        raise RuntimeError(f"a process held as much as the whole model while loading: {most} bytes")
    return {
        "model MB": most["model"] / 1e6,
        "parameters of a rank MB": most["held"] / 1e6,
        "peak of loading MB": most["resident"] / 1e6,
        "peak / model": most["resident"] / most["model"],
    }


def training_rows(names: Sequence[str], plan: Plan, ranks: Sequence[Found]) -> list[dict[str, Any]]:
    """A row for each setting and length.

    Args:
        names: of the plan's cases.
        plan: what was run.
        ranks: what each process found.

    Raises:
        RuntimeError: the processes did not gather equally often, or while they sampled.
    """
    rows: list[dict[str, Any]] = []
    for index, (name, case) in enumerate(zip(names, plan.cases, strict=True)):
        found = [rank["cases"][index] for rank in ranks]
        counts = [[step["all-gathers"] for step in one["steps"]] for one in found]
        if counts[0] != counts[1]:
            raise RuntimeError(f"{name}, L = {case.L}: all-gathers differ: {counts}")
        if any(step["all-gathers in sampling"] for one in found for step in one["steps"]):
            raise RuntimeError(f"{name}, L = {case.L}: all-gathers while sampling")
        rows.append({"setting": name, "L": case.L, **_summary(found)})
    for row in rows:
        base = next(r for r in rows if (r["setting"], r["L"]) == ("default", row["L"]))
        for key in ("rollout s", "update s", "peak MB"):
            row[f"{key.split()[0]} ratio"] = row[key] / base[key]
    return rows


def _summary(found: Sequence[Found]) -> dict[str, float]:
    """Medians over steps of what the processes found, of the larger one."""

    def median(key: str, of_ranks: Callable[..., float] = max) -> float:
        steps = zip(*(one["steps"] for one in found), strict=True)
        return statistics.median(of_ranks(step[key] for step in of_step) for of_step in steps)

    return {
        "all-gathers": median("all-gathers"),
        "gathered MB": median("gathered bytes") / 1e6,
        "rollout s": median("rollout s"),
        "update s": median("update s"),
        "weights MB": median("parameter bytes") / 1e6,
        "peak MB": max(one["peak bytes"] for one in found) / 1e6,
    }


def main() -> None:
    """Measure all settings and lengths."""
    names = [name for _ in LENGTHS for name in SETTINGS]
    cases = tuple(Case(L, sharding) for L in LENGTHS for sharding in SETTINGS.values())
    with tempfile.TemporaryDirectory() as model:
        write_model(Path(model), SMALL)
        plan = Plan(model, cases, B, G, NUM_FRAMES, SIDE, ROUNDS, STEPS)
        ranks = measure(plan)
    load, rows = loading_row(ranks), training_rows(names, plan, ranks)
    print_table("training on two processes, by rank; ratios to default", rows)
    print_table("loading, by rank", [load])
    print(OFFLOADING)
    write_results(
        "sharding",
        rows,
        {"loading": load, "cpu_offload": OFFLOADING},
        shape=SMALL,
        dtype="float32",
        ranks=RANKS,
        backend="gloo",
        questions=B,
        G=G,
        frames=f"{NUM_FRAMES} of {SIDE}x{SIDE}",
        rounds=ROUNDS,
        steps_a_round=STEPS,
        optimizer="torch.optim.AdamW, lr 1e-6, all but the vision tower",
    )


if __name__ == "__main__":
    main()
