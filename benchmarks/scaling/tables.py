"""The tables of ``docs/scaling.md``, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.scaling import memory
from benchmarks.scaling.choice import limits, plans, possible, smallest_card, steps_an_epoch
from benchmarks.scaling.memory import Measured, training_peak
from benchmarks.scaling.plan import DENSE, EVALUATION, TRAINING, Plan
from benchmarks.scaling.rates import Rates
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.speed import decode_step_s, gather_s, largest_phase

NUM_GPUS = (8, 64, 512)
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
    return [plan.model.name, plan.tuning, plan.devices]


def terms(measured: Measured) -> str:
    """What a model takes, held once, and what a question adds to it on each GPU."""
    columns = [
        "GB", "tuning", "weights", "gradients", "Adam", "reference",
        "gathered: all / some layers", "activations of the update", "KV in training",
    ]  # fmt: skip
    rows = []
    for model in MODELS:
        for is_lora in (True, False):
            plan = Plan(model, is_lora, is_sharded=True)
            held = memory.held(plan)
            adapter_layer = plan.trained_layer if is_lora else 0
            gathered = [memory.gathered_bytes(model, adapter_layer, r) for r in (True, False)]
            kept = (held.weights, held.gradients, held.optimizer, held.reference)
            rows.append(
                [
                    model.name,
                    plan.tuning,
                    *map(_gb, kept),
                    " / ".join(map(_gb, gathered)),
                    _gb(memory.activation_bytes(plan, TRAINING, measured)),
                    _gb(memory.rollout_kv_bytes(model, TRAINING)),
                ]
            )
    return markdown(columns, rows)


def peaks(measured: Measured) -> str:
    """Peak of a GPU in training, and which card has room for it."""
    columns = ["model", "tuning", "devices", "1 GPU", *(f"{n} GPUs" for n in NUM_GPUS)]
    columns.append("host, 8 GPUs")
    rows = []
    for plan in plans():
        cells = []
        for num_gpus in (1, *NUM_GPUS):
            peak = training_peak(plan, num_gpus, TRAINING, measured)
            cells.append(f"{_gb(peak)} ({smallest_card(peak) or 'none'})")
        host = memory.host_bytes(plan, NUM_GPUS[0])
        rows.append([*_label(plan), *cells, _gb(host) if host else ""])
    return markdown(columns, rows)


def steps(measured: Measured, rates: Rates) -> str:
    """Seconds of a step where there is room for it; its parts with the fewest GPUs that do."""
    columns = [
        "model", "tuning", "devices", *(f"{n} GPUs" for n in NUM_GPUS),
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
                f"{step.num_gathers:.0f}, {_s(step.gather_s)}" if plan.is_sharded else "none",
                f"{step.idle:.0%}",
                largest_phase(step, plan),
            ]
        )
    return markdown(columns, rows)


def fastest(measured: Measured, rates: Rates) -> str:
    """For each model, tuning and number of GPUs the plan with the shortest epoch.

    All have one question a GPU, which is nearest to the recipe's eight a step.
    """
    columns = [
        "model", "tuning", "GPUs", "devices", "card", "questions a step", "steps an epoch",
        "s a step", "hours an epoch", "limited by",
    ]  # fmt: skip
    rows = []
    for model in MODELS:
        for is_lora in (True, False):
            for num_gpus in NUM_GPUS:
                own = [
                    (steps_an_epoch(plan, num_gpus) * step.total_s / 3600, plan, card, step)
                    for plan, card, step in possible(measured, rates, num_gpus)
                    if (plan.model, plan.is_lora, plan.batch_size) == (model, is_lora, 1)
                ]
                hours, plan, card, step = min(own, key=lambda found: found[0])
                rows.append(
                    [
                        model.name,
                        plan.tuning,
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
    """A GPU in prediction: memory at 128 frames, and seconds of a token of all M answers."""
    columns = [
        "model", "devices", "weights", "KV: 32 / 128 frames", "peak: 32 / 128 frames (card)",
        "ms a token", f"s a round of {DENSE.L:,} tokens",
    ]  # fmt: skip
    rows = []
    for model in MODELS:
        for num_gpus in (1, 8, 64):
            is_sharded = num_gpus > 1
            weights = 2.0 * (model.language + model.vision) / num_gpus
            works = (EVALUATION, DENSE)
            kv = [memory.rollout_kv_bytes(model, work) for work in works]
            peak = [memory.prediction_peak(model, work, num_gpus, is_sharded) for work in works]
            plan = Plan(model, is_lora=True, is_sharded=is_sharded, resident=False)
            tokens = DENSE.P + DENSE.G * DENSE.L / 2
            token_s = decode_step_s(rates, model, 0, tokens, is_sharded)
            token_s = max(token_s, gather_s(plan, rates, num_gpus))
            rows.append(
                [
                    model.name,
                    f"fsdp, not resident, {num_gpus} GPUs" if is_sharded else "ddp",
                    _gb(weights),
                    " / ".join(map(_gb, kv)),
                    f"{' / '.join(map(_gb, peak))} ({smallest_card(peak[-1]) or 'none'})",
                    f"{1e3 * token_s:.1f}",
                    _s(DENSE.L * token_s),
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
    columns = ["recipe", "card", "prompt", "between steps", *PHASES, "peak", "fits"]
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

    The engine's copy and what a phase adds stay whole. Gathered layers come on top.

    Args:
        full: counted on one GPU.
        num_gpus: N.
    """
    plan = Plan(MODELS[0], is_lora=False, is_sharded=True)
    own, copy = memory.held(plan), memory.gathered_bytes(plan.model, 0, resident=True)
    few = memory.gathered_bytes(plan.model, 0, resident=False)
    kept = own.total - own.gradients
    share = kept / num_gpus + copy
    whole = full["held"]
    phases = {}
    for name, peak in full["phases"].items():
        with_gradients = name in ("forward", "backward", "optimizer")
        added = peak - whole - own.gradients * with_gradients
        gathered = few if name in ("reference", "forward", "backward") else 0.0
        phases[name] = share + own.gradients * with_gradients / num_gpus + added + gathered
    return {**full, "card GB": 80, "held": share, "phases": phases}


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
