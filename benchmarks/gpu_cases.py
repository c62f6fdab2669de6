"""What `benchmarks.gpu` measures, case by case, the most telling ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import product

import torch

from benchmarks.gpu_bench import Bench, Case, Row
from benchmarks.gpu_commands import resumed, sharded_training, tuned
from benchmarks.gpu_exactness import exact_float32, exact_half, exact_sampled
from benchmarks.gpu_speed import decode, generation, profiled, rates, update, update_memory
from benchmarks.gpu_tuning import full_fine_tuning, one_process


def cases(bench: Bench) -> Iterator[Case]:
    """All cases, most telling first; those that need another model come last."""
    sides, scale = bench.scale.sides, bench.scale
    yield Case("rates", "card", 10, partial(rates, bench))
    yield Case("exactness", "float32", 15, partial(exact_float32, bench))
    yield Case("exactness", "half precision", 15, partial(exact_half, bench))
    yield Case("exactness", "sampled log-probs", 30, partial(exact_sampled, bench))
    for side in sides:
        yield Case("decode", f"{side}", 20, partial(decode, bench, side))
        yield Case("generate", f"{side}", 30, partial(generation, bench, side))
    for side, checkpointing, naive in product(sides, (False, True), (False, True)):
        name = f"{side}, {'naive' if naive else 'shared'}, checkpointing {checkpointing}"
        num_tokens = scale.num_frames // 2 * side[0] * side[1] / 28**2
        expected_s = 3 + num_tokens * (2.5e-3 if naive else 0.5e-3)
        yield Case("update", name, expected_s, partial(update, bench, side, checkpointing, naive))
    for G in scale.group_sizes:
        yield Case("update memory", f"G = {G}", 4, partial(update_memory, bench, G))
    yield Case("profile", "decode", 15, partial(profiled, bench, "decode"))
    yield Case("profile", "update", 15, partial(profiled, bench, "update"))
    for dtype in (torch.bfloat16, torch.float32):
        yield Case("full fine-tuning", f"{dtype}", 40, partial(full_fine_tuning, bench, dtype))
    yield Case("whole step", "TRL", 0, dict, missing=_trl_missing())
    yield Case("sharding", "FSDP2, one process", 40, partial(one_process, bench))
    yield from _commands(bench)


def _commands(bench: Bench) -> Iterator[Case]:
    """Cases of ``vrts fit`` itself."""

    def case(section: str, name: str, expected_s: float, run: Callable[[], Row]) -> Case:
        return Case(section, name, expected_s, run, on_request=True)

    yield case("sharded command", "fsdp, one process", 25, partial(sharded_training, bench))
    yield case("resumed command", "fsdp, one process", 40, partial(resumed, bench))
    for tuning in ("lora", "full"):
        yield case("tuning command", f"{tuning}, gpu", 150, partial(tuned, bench, tuning))


def _trl_missing() -> str:
    if find_spec("trl") is None:
        return "trl is not installed"
    return "benchmarks.step compares with TRL on a CPU; run it by itself"
