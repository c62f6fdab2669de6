"""Peak memory on a CPU, from the events of torch's own allocator, and how it grows with G."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def allocator_peak(run: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator holds at once during a call, beyond those before it.

    Every allocation and release is counted, those within an operation too; unlike the resident
    set, this does not depend on what the C library keeps. What the call frees must have been
    allocated by it.

    Args:
        run: what is measured; it runs once.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    held = peak = 0
    for event in events:
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit ``y = intercept + slope * x`` by least squares.

    Args:
        x: at least two different numbers.
        y: as many.

    Returns:
        Intercept, slope, and the largest distance of a point from the line as a share of the
        range of `y`.
    """
    xs, ys = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    centred = xs - xs.mean()
    slope = float((centred * ys).sum() / centred.square().sum())
    intercept = float(ys.mean()) - slope * float(xs.mean())
    distance = (ys - intercept - slope * xs).abs().max()
    return intercept, slope, float(distance / (ys.max() - ys.min()))
