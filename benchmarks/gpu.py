"""One card, one command: a random Qwen2.5-VL of the 7B's shape in bfloat16, no weights needed.

``python -m benchmarks.gpu`` or ``python benchmarks/gpu.py`` measures, within nine minutes, what the
card can do, whether results are exact on it, the recipe's own programs (``vrts fit`` with LoRA,
``vrts predict`` with sparse-to-dense), a step against TRL's, and rollout, decoding and update by
themselves, with and without adapter. It writes ``results/gpu.json`` after every row. A case that
does not fit into memory is a result, and named as one; what there was no time for is listed.
Further sections of ``vrts fit`` run where they are asked for:
``--only "sharded command" "resumed command" "full command"``. ``--small`` runs every case with a
tiny model, on a CPU too, to try the script itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":  # also as a file, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, machine
from benchmarks.gpu_bench import FULL, TINY, Bench, Case, Row
from benchmarks.gpu_cases import cases

BUDGET_S = 520.0
"""No case begins that is expected to end later."""
TARGETS = {
    "rollout, times as fast as generate": 4.0,
    "decode, times the memory floor": 1.6,
    "update, share of G(P+L) / (P+GL)": 0.75,
    "model FLOPs utilisation of the update": 0.45,
}


def run(found: dict[str, Any], todo: Iterable[Case], bench: Bench, path: Path) -> None:
    """Run cases one after the other, and write what is found after each.

    Args:
        found: results so far; `rows` by section, `not run` by case.
        todo: most important first.
        bench: gives the device and how long cases take.
        path: of the JSON file.
    """
    start_s = time.perf_counter()
    for case in todo:
        left_s = BUDGET_S - (time.perf_counter() - start_s)
        label = f"{case.section}: {case.name}"
        if case.missing is not None:
            found["not run"][label] = case.missing
        elif left_s < case.expected_s * bench.scale.slowness:
            found["not run"][label] = f"{left_s:.0f} s of {BUDGET_S:.0f} were left"
        else:
            row = attempt(case, bench)
            print(f"{time.perf_counter() - start_s:4.0f} s  {label}: {_short(row)}", flush=True)
            found["rows"].setdefault(case.section, []).append(row)
        found["summary"] = summary(found["rows"])
        path.write_text(json.dumps(found, indent=2) + "\n")


def attempt(case: Case, bench: Bench) -> Row:
    """The row of a case, or that it did not fit into memory."""
    try:
        return case.run()
    except torch.cuda.OutOfMemoryError as error:
        message = str(error).partition(". ")[0]
    # Out of the handler, whose traceback holds what the case had allocated.
    bench.release()
    return {"case": case.name, "out of memory": message}


def summary(rows: dict[str, list[Row]]) -> list[Row]:
    """The ratios that are aimed at, each from the rows of one run."""
    out: list[Row] = []

    def add(name: str, case: str, value: float) -> None:
        out.append({"what": name, "case": case, "measured": value, "target": TARGETS[name]})

    rollout, floor, share, mfu = TARGETS
    card = next((row for row in rows.get("rates", []) if "GB/s" in row), None)
    for row in _complete(rows, "generate"):
        add(rollout, f"P = {row['P']}", row["ratio"])
    for row in _complete(rows, "decode"):
        if card is not None:
            at_best_ms = 1e3 * row["GB a step"] / card["GB/s"]
            adapter = ", adapter" if row["adapter"] else ""
            add(floor, f"P = {row['P']}{adapter}", row["ms a step"] / at_best_ms)
    updates = {
        (r["P"], r["checkpointing"], r["adapter"], r["pass"]): r for r in _complete(rows, "update")
    }
    for (P, checkpointing, adapter, kind), row in updates.items():
        case = f"P = {P}, checkpointing {checkpointing}" + (", adapter" if adapter else "")
        naive = updates.get((P, checkpointing, adapter, "naive"))
        if kind == "shared":
            add(mfu, case, row["MFU"])
        if kind == "shared" and naive is not None:
            G, L = row["G"], row["L"]
            formula = G * (P + L) / (P + G * L)
            add(share, case, naive["s"] / (row["s"] + row["vision s"]) / formula)
    return out


def _complete(rows: dict[str, list[Row]], section: str) -> list[Row]:
    return [row for row in rows.get(section, []) if "out of memory" not in row]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if not isinstance(v, list))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_summary(found: dict[str, Any]) -> None:
    """Print what was aimed at and what was not run."""
    table = Table("what", "case", "measured", "target", title="benchmarks.gpu")
    for row in found["summary"]:
        table.add_row(row["what"], row["case"], f"{row['measured']:.3g}", f"{row['target']:.3g}")
    Console().print(table)
    for label, reason in found["not run"].items():
        print(f"not run: {label}: {reason}")


def main(args: list[str] | None = None) -> None:
    """Parse the command line and measure.

    Args:
        args: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument("--only", nargs="+", default=None, help="sections to run, such as decode")
    options = parser.parse_args(args)
    if not options.small and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device; --small tries the script without one")
    scale = TINY if options.small else FULL
    bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), scale)
    path = options.output or RESULTS / ("gpu-small.json" if options.small else "gpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = machine()
    if torch.cuda.is_available():
        facts["gpu_memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    found: dict[str, Any] = {"machine": facts, "rows": {}, "not run": {}, "summary": []}
    todo = (
        case
        for case in cases(bench)
        if (case.section in options.only if options.only else options.small or not case.on_request)
    )
    run(found, todo, bench, path)
    print_summary(found)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
