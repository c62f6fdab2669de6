"""What `benchmarks.gpu` measures, case by case, the most telling ones first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

from benchmarks.gpu_bench import Bench, Case
from benchmarks.gpu_commands import (
    predicted,
    resumed,
    sharded_training,
    trl_missing,
    trl_step,
    tuned,
)
from benchmarks.gpu_exactness import exact_float32, exact_half, exact_sampled
from benchmarks.gpu_speed import (
    decode,
    generation,
    profiled,
    rates,
    step_rollout,
    update,
    update_memory,
)


def cases(bench: Bench) -> Iterator[Case]:
    """All cases, most telling first; those that need another model come together."""
    sides = bench.scale.sides
    first, last = sides[0], sides[-1]
    yield Case("rates", "card", 10, partial(rates, bench))
    yield Case("exactness", "float32", 15, partial(exact_float32, bench))
    yield Case("exactness", "half precision", 15, partial(exact_half, bench))
    yield Case("exactness", "sampled log-probs", 30, partial(exact_sampled, bench))
    yield Case("fit command", "lora, gpu", 110, partial(tuned, bench, "lora"))
    yield Case("predict command", "s2d, gpu", 50, partial(predicted, bench))
    yield Case("step rollout", f"{last}", 25, partial(step_rollout, bench))
    yield Case("decode", f"{first}, adapter", 15, partial(decode, bench, first, lora=True))
    for checkpointing in (False, True):
        run = partial(update, bench, first, checkpointing, naive=False, lora=True)
        yield Case("update", f"{first}, adapter, checkpointing {checkpointing}", 6, run)
    for what in ("decode", "update"):
        yield Case("profile", what, 10, partial(profiled, bench, what))
    for side in sides[:2]:
        yield Case("decode", f"{side}", 15, partial(decode, bench, side))
    yield Case("generate", f"{first}", 25, partial(generation, bench, first))
    shapes = [*product((first,), (False, True), (False, True)), (last, True, False)]
    for side, checkpointing, naive in [*shapes, (last, True, True)]:
        name = f"{side}, {'naive' if naive else 'shared'}, checkpointing {checkpointing}"
        num_tokens = bench.scale.num_frames // 2 * side[0] * side[1] / 28**2
        expected_s = 3 + num_tokens * (2.5e-3 if naive else 0.5e-3)
        yield Case("update", name, expected_s, partial(update, bench, side, checkpointing, naive))
    for G in bench.scale.group_sizes:
        yield Case("update memory", f"G = {G}", 4, partial(update_memory, bench, G))
    yield Case("step", "against TRL, lora", 90, partial(trl_step, bench), missing=trl_missing())
    for name, expected_s, case in (
        ("sharded command", 25, partial(sharded_training, bench)),
        ("resumed command", 40, partial(resumed, bench)),
        ("full command", 150, partial(tuned, bench, "full")),
    ):
        yield Case(name, "one process", expected_s, case, on_request=True)
