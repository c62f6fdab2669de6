"""The tables of ``docs/scaling.md``, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.scaling import memory
from benchmarks.scaling.choice import (
    limits,
    plans,
    possible,
    recipe_batch_size,
    smallest_card,
    steps_an_epoch,
)
from benchmarks.scaling.memory import Measured, training_peak
from benchmarks.scaling.plan import DENSE, EVALUATION, TRAINING, Plan
from benchmarks.scaling.rates import CARDS, Rates
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.speed import decode_step_s, largest_phase

NUM_GPUS = (1, 8, 64)
CARDS_GB = (24, 48, 80, 141)
PHASES = ("encode", "rollout", "reference", "forward", "backward", "optimizer")
COUNTED = RESULTS / "memory.json"
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a parameter: 4 bits, a byte for each 64 of them and a float32 for each 256 of these."""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are formatted already."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _gb(num_bytes: float) -> str:
    gb = num_bytes / 1e9
    return f"{gb:,.0f}" if gb >= 10 else f"{gb:.1f}"


def _s(value: float) -> str:
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _label(plan: Plan) -> list[str]:
    return [plan.model.name, plan.tuning, plan.devices, str(plan.batch_size)]


LABEL = ["model", "tuning", "devices", "questions a GPU"]


def terms(measured: Measured) -> str:
    """What a model takes, held once, and what is added to it on each GPU."""
    columns = [
        "GB", "tuning", "weights", "gradients", "Adam", "reference", "engine: ddp / fsdp",
        "gathered: all / some layers", "activations of a question", "KV of a question",
    ]  # fmt: skip
    rows = []
    for model in MODELS:
        for is_lora in (True, False):
            plan = Plan(model, is_lora, is_sharded=True)
            whole = Plan(model, is_lora)
            some = Plan(model, is_lora, is_sharded=True, keep_gathered=False)
            held = memory.held(plan)
            kept = (held.weights, held.gradients, held.optimizer, held.reference)
            rows.append(
                [
                    model.name,
                    plan.tuning,
                    *map(_gb, kept),
                    " / ".join(_gb(memory.engine_bytes(p)) for p in (whole, plan)),
                    " / ".join(_gb(memory.gathered_bytes(p)) for p in (plan, some)),
                    _gb(memory.activation_bytes(plan, TRAINING, measured)),
                    _gb(memory.rollout_kv_bytes(model, TRAINING)),
                ]
            )
    return markdown(columns, rows)


def peaks(measured: Measured) -> str:
    """Peak of a GPU in training, and which card has room for it."""
    columns = [*LABEL, *(f"{n} GPU{'s' * (n > 1)}" for n in NUM_GPUS), "host, 8 GPUs"]
    rows = []
    for plan in plans():
        cells = []
        for num_gpus in NUM_GPUS:
            peak = training_peak(plan, num_gpus, TRAINING, measured)
            cells.append(f"{_gb(peak)} ({smallest_card(peak) or 'none'})")
        host = memory.host_bytes(plan, 8)
        rows.append([*_label(plan), *cells, _gb(host) if host else ""])
    return markdown(columns, rows)


def steps(measured: Measured, rates: Rates) -> str:
    """Seconds of a step where there is room for it; its parts with the fewest GPUs that do."""
    columns = [
        *LABEL, *(f"{n} GPU{'s' * (n > 1)}" for n in NUM_GPUS),
        "parts: prefill, decoding, reference, update, optimizer", "gathers: times, s",
        "waiting", "most goes to",
    ]  # fmt: skip
    found = {n: {p: step for p, _, step in possible(measured, rates, n)} for n in NUM_GPUS}
    rows = []
    for plan in plans():
        totals = [found[n][plan].total_s if plan in found[n] else None for n in NUM_GPUS]
        step = next((found[n][plan] for n in NUM_GPUS if plan in found[n]), None)
        if step is None:
            continue
        parts = (
            step.prefill_s, step.decode_s, step.reference_s, step.update_s, step.optimizer_s
        )  # fmt: skip
        rows.append(
            [
                *_label(plan),
                *("no room" if total is None else _s(total) for total in totals),
                ", ".join(map(_s, parts)),
                f"{step.num_gathers}, {_s(step.gather_s)}" if plan.is_sharded else "none",
                f"{step.idle:.0%}",
                largest_phase(step),
            ]
        )
    return markdown(columns, rows)


def fastest(measured: Measured, rates: Rates) -> str:
    """For each tuning and number of GPUs the plan with the shortest epoch, of the 7B.

    A step has as many questions as the recipe's, or one of each GPU where these are more.
    """
    columns = [
        "tuning", "GPUs", "devices", "card", "questions a step", "steps an epoch", "s a step",
        "hours an epoch", "limited by",
    ]  # fmt: skip
    rows = []
    for is_lora in (True, False):
        for num_gpus in NUM_GPUS:
            own = [
                (steps_an_epoch(plan, num_gpus) * step.total_s / 3600, plan, card, step)
                for plan, card, step in possible(measured, rates, num_gpus)
                if (plan.is_lora, plan.batch_size) == (is_lora, recipe_batch_size(num_gpus))
            ]
            tuning = "lora" if is_lora else "full"
            if not own:
                rows.append([tuning, str(num_gpus), "none has room", *[""] * 6])
                continue
            hours, plan, card, step = min(own, key=lambda found: found[0])
            rows.append(
                [
                    tuning,
                    str(num_gpus),
                    plan.devices,
                    card,
                    f"{num_gpus * plan.batch_size:,}",
                    f"{steps_an_epoch(plan, num_gpus):,}",
                    _s(step.total_s),
                    _s(hours),
                    limits(plan, num_gpus, step),
                ]
            )
    return markdown(columns, rows)


def prediction(rates: Rates) -> str:
    """A GPU in prediction: how many questions have room, and tokens a second of full rows."""
    columns = [
        "model", "card", "weights", "KV of a question: 32 / 128 frames",
        "questions at a time: 32 / 128 frames", "rows", "ms a token", "tokens a second",
    ]  # fmt: skip
    rows = []
    for model, name in product(MODELS, CARDS):
        weights = 2.0 * (model.language + model.vision)
        budget = memory.prediction_kv_bytes(model, CARDS[name])
        works = (EVALUATION, DENSE)
        kv = [memory.rollout_kv_bytes(model, work) for work in works]
        most = [min(int(budget / one), memory.MAX_ROWS // EVALUATION.G) for one in kv]
        if not most[-1]:
            continue
        num_rows = most[0] * EVALUATION.G
        tokens = most[0] * (EVALUATION.P + EVALUATION.G * EVALUATION.L / 2)
        token_s = decode_step_s(rates, model, 0, tokens, num_rows)
        rows.append(
            [
                model.name,
                name,
                _gb(weights),
                " / ".join(map(_gb, kv)),
                " / ".join(map(str, most)),
                str(num_rows),
                f"{1e3 * token_s:.1f}",
                f"{num_rows / token_s:,.0f}",
            ]
        )
    return markdown(columns, rows)


def counted(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Peaks of each phase as ``python -m benchmarks.scaling.counted`` found them, and the cards.

    Two rows follow from others: `sharded` and `quantized`.

    Args:
        recipes: of ``memory.json``.
    """
    full, small = recipes["full"], recipes["lora, small_gpu"]
    rows = {
        **recipes,
        **{f"full, fsdp, {n} GPUs": sharded(full, n) for n in (2, 4, 8)},
        "lora, small_gpu, qlora": quantized(small),
    }
    columns = ["recipe", "card", "prompt", "before a step", *PHASES, "peak", "fits"]
    cells = []
    for name, row in rows.items():
        peak = max(row["phases"].values())
        fits = [f"{card} GB" for card in CARDS_GB if peak <= 1e9 * card]
        phases = (row["phases"].get(phase) for phase in PHASES)
        cells.append(
            [
                name,
                f"{row['card GB']} GB",
                f"{row['P']:,}",
                _gb1(row["held"]),
                *("" if phase is None else _gb1(phase) for phase in phases),
                _gb1(peak),
                fits[0] if fits else "none",
            ]
        )
    return markdown(columns, cells)


def _gb1(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}"


def sharded(full: Mapping[str, Any], num_gpus: int) -> dict[str, Any]:
    """Full tuning under ``fsdp``: each GPU has a share of what is trained and of the reference.

    The engine's copy, and what a phase adds, are whole. Gathered weights, and gradients that wait
    for the last micro-batch, come on top.

    Args:
        full: counted on one GPU.
        num_gpus: N.
    """
    plan = Plan(MODELS[0], is_lora=False, is_sharded=True)
    own = memory.held(plan)
    between = (own.total - own.gradients) / num_gpus + memory.engine_bytes(plan)
    phases = {}
    for name, peak in full["phases"].items():
        phases[name] = between + peak - full["held"]
        if name in ("forward", "backward", "optimizer"):
            phases[name] += own.gradients / num_gpus - own.gradients
        if name in ("forward", "backward"):
            phases[name] += memory.summed_bytes(plan)
        if name in ("reference", "forward", "backward"):
            phases[name] += memory.gathered_bytes(plan)
    return {**full, "card GB": 80, "held": between, "phases": phases}


def quantized(lora: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter on 4-bit matrices: what they save, and the largest one unpacked.

    Args:
        lora: counted with matrices of bfloat16.
    """
    model = MODELS[0]
    saved = (2 - NF4_BYTES) * model.shape.num_layers * model.layer_matrices
    unpacked = 2.0 * model.shape.hidden_size * model.shape.intermediate_size
    phases = {
        name: peak - saved + unpacked * (name not in ("encode", "optimizer"))
        for name, peak in lora["phases"].items()
    }
    return {**lora, "held": lora["held"] - saved, "phases": phases}


def tables(measured: Measured, rates: Rates) -> dict[str, str]:
    """All tables by their names, in the document's order."""
    return {
        "counted": counted(json.loads(COUNTED.read_text())["recipes"]),
        "fastest": fastest(measured, rates),
        "terms": terms(measured),
        "peaks": peaks(measured),
        "steps": steps(measured, rates),
        "prediction": prediction(rates),
    }
