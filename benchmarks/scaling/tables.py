"""The tables of ``docs/scaling.md``, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.scaling import memory
from benchmarks.scaling.choice import limits, plans, possible, smallest_card, steps_an_epoch
from benchmarks.scaling.memory import Measured, training_peak
from benchmarks.scaling.plan import DENSE, EVALUATION, TRAINING, Plan
from benchmarks.scaling.rates import Rates
from benchmarks.scaling.sizes import MODELS
from benchmarks.scaling.speed import decode_step_s, gather_s, largest_phase

NUM_GPUS = (8, 64, 512)


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


def tables(measured: Measured, rates: Rates) -> dict[str, str]:
    """All tables by their names, in the document's order."""
    return {
        "fastest": fastest(measured, rates),
        "terms": terms(measured),
        "peaks": peaks(measured),
        "steps": steps(measured, rates),
        "prediction": prediction(rates),
    }
