"""How fast a GPU and its links are: data sheets, and what share of them is assumed or measured."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.scaling.plan import GPUS_A_NODE, num_nodes

CARDS = {"24 GB": 24e9, "48 GB": 48e9, "H100": 80e9, "H200": 141e9}
"""Bytes of memory."""
USABLE = 0.9
"""Share of a card's memory that may be planned with: CUDA, NCCL and fragments take the rest."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What is reached. Without measurements, shares of an H100's data sheet."""

    flops: float = 0.45 * 989e12
    """Operations a second that are executed in bfloat16, those of recomputing among them."""
    memory: float = 0.6 * 3.35e12
    """Bytes a second of device memory in decoding."""
    nvlink: float = 0.7 * 450e9
    """Bytes a second to a GPU within a machine."""
    network: float = 0.7 * 50e9
    """Bytes a second to a GPU from another machine, over its own 400 Gb/s."""
    hop_s: float = 3e-6
    """Of a message from one GPU to the next of a ring."""
    pcie: float = 50e9
    """Bytes a second between a GPU and its host."""
    host: float = 400e9
    """Bytes a second of a machine's memory."""


def ring_s(rates: Rates, num_bytes: float, num_calls: int, num_gpus: int) -> float:
    """Seconds of all-gathers (or reduce-scatters) that are so large together.

    All rails of a machine carry a share of the ring, so each brings in only an eighth.

    Args:
        rates: of the links.
        num_bytes: whole, of all calls.
        num_calls: each of which goes round the ring.
        num_gpus: N.
    """
    rate = rates.nvlink
    if num_nodes(num_gpus) > 1:
        rate = min(rate, GPUS_A_NODE * rates.network)
    share = (num_gpus - 1) / num_gpus
    return num_bytes * share / rate + num_calls * (num_gpus - 1) * rates.hop_s


def read_rates(path: Path) -> Rates:
    """Replace what ``python benchmarks/gpu.py`` measures by what it found.

    Args:
        path: of its ``gpu.json``, measured with the 7B's shape.
    """
    rows: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["rows"]
    updates = [
        r
        for r in rows.get("update", [])
        if r.get("pass") == "shared" and r["checkpointing"] and "s" in r
    ]
    decodes = [r for r in rows.get("decode", []) if "ms a step" in r]
    for name, found in (("update", updates), ("decode", decodes)):
        if not found:
            sys.exit(
                f"{path} has no rows of {name}: run python benchmarks/gpu.py --only update decode"
            )
    # TFLOP leaves out the forward that checkpointing repeats: a third of forward and backward
    flops = median(4 / 3 * 1e12 * r["TFLOP"] / r["s"] for r in updates)
    memory = median(1e9 * r["GB a step"] / (1e-3 * r["ms a step"]) for r in decodes)
    return replace(Rates(), flops=flops, memory=memory)
