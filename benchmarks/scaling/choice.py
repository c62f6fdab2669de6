"""Which plans are compared, which a card has room for, and what limits them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.scaling.memory import Measured, training_peak
from benchmarks.scaling.plan import TRAINING, Plan
from benchmarks.scaling.rates import CARDS, USABLE, Rates
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.speed import Step, largest_phase, training_step

NUM_QUESTIONS = 6000
"""Of an epoch."""
FEW_STEPS = 50
"""An epoch of fewer has too few questions for so many GPUs: a judgement, not a measurement."""


RECIPE_QUESTIONS = 8
"""Of a step, in all."""


def plans() -> Iterator[Plan]:
    """All that are compared."""
    small, large = MODELS
    for batch_size in (1, 8):
        yield Plan(small, True, batch_size=batch_size)
    yield Plan(small, True, is_sharded=True, batch_size=8)
    yield Plan(small, False, batch_size=8)
    for batch_size in (1, 8):
        yield Plan(small, False, is_sharded=True, batch_size=batch_size)
    yield Plan(small, False, is_sharded=True, batch_size=8, sync_every_micro_batch=True)
    yield Plan(small, False, is_sharded=True, keep_gathered=False)
    yield Plan(small, False, is_sharded=True, keep_gathered=False, offload=True)
    yield Plan(large, True, is_sharded=True, keep_gathered=False)


def recipe_batch_size(num_gpus: int) -> int:
    """Questions of each GPU, for a step nearest to the recipe's."""
    return max(RECIPE_QUESTIONS // num_gpus, 1)


def smallest_card(peak: float) -> str | None:
    """Name of the smallest card that has room; None where none has."""
    fits = (name for name, size in CARDS.items() if peak <= USABLE * size)
    return next(fits, None)


def possible(measured: Measured, rates: Rates, num_gpus: int) -> list[tuple[Plan, str, Step]]:
    """Plans that some card has room for, with the card's name and their step."""
    out = []
    for plan in plans():
        card = smallest_card(training_peak(plan, num_gpus, TRAINING, measured))
        if card is not None:
            out.append((plan, card, training_step(plan, num_gpus, TRAINING, rates)))
    return out


def steps_an_epoch(plan: Plan, num_gpus: int) -> int:
    """Optimizer steps, the last one of them perhaps with fewer questions."""
    return math.ceil(NUM_QUESTIONS / (num_gpus * plan.batch_size))


def limits(plan: Plan, num_gpus: int, step: Step) -> str:
    """What to change first for a shorter epoch."""
    few = steps_an_epoch(plan, num_gpus) < FEW_STEPS
    return largest_phase(step) + (", too few questions" if few else "")
