"""Seconds of a training step, phase by phase."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scaling.plan import Plan, Work, num_nodes
from benchmarks.scaling.rates import Rates, ring_s
from benchmarks.scaling.sizes import Model, prefill_flops, workload

MEAN_LENGTH = 300
"""Tokens of a completion on average, before the limit cuts it: an assumption."""
ADAM_BYTES = 28
"""A parameter in a step: weight, gradient and two moments read, all but the gradient written."""


def expected_longest(num: int, mean: float, limit: int) -> float:
    """Expected tokens of the longest of so many completions, whose lengths are exponential.

    Args:
        num: completions.
        mean: of their lengths, before they are cut.
        limit: where they are cut.
    """
    return sum(1 - (1 - math.exp(-n / mean)) ** num for n in range(limit))


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of a step, one after the other, and what it takes part in."""

    prefill_s: float
    """Vision tower and prompt."""
    decode_s: float
    reference_s: float
    update_s: float
    optimizer_s: float
    """And the engine's taking over of what it has changed."""
    gather_s: float
    """Of all weights going round, most of it beside computing."""
    num_gathers: int
    """Times that the language model's layers are gathered."""
    idle: float
    """Share of decoding that a GPU on average waits for the longest completion of all."""

    @property
    def total_s(self) -> float:
        """Of the whole step."""
        parts = (self.prefill_s, self.decode_s, self.reference_s, self.update_s, self.optimizer_s)
        return sum(parts)


def decode_step_s(
    rates: Rates, model: Model, adapter: int, num_kv_tokens: float, num_rows: float
) -> float:
    """Seconds of one token of every row: reading all weights and the cache, or computing."""
    matrices = model.shape.num_layers * model.layer + model.head + adapter
    reading_s = (2.0 * matrices + model.kv_bytes(num_kv_tokens)) / rates.memory
    return max(reading_s, 2.0 * matrices * num_rows / rates.flops)


def gather_s(plan: Plan, rates: Rates, num_gpus: int) -> float:
    """Seconds in which all layers of the language model are gathered once, in bfloat16."""
    if not plan.is_sharded:
        return 0.0
    model, layers = plan.model, plan.model.shape.num_layers
    whole_s = ring_s(rates, 2.0 * (layers * model.layer + plan.adapter), layers, num_gpus)
    return whole_s + (_copy_s(plan, rates, num_gpus) if plan.offload else 0.0)


def _copy_s(plan: Plan, rates: Rates, num_gpus: int) -> float:
    """Seconds in which a GPU fetches its shards from the host, as they are held there."""
    size = 2.0 if plan.is_lora else 4.0
    model = plan.model
    own = (size * model.shape.num_layers * model.layer + 4.0 * plan.adapter) / num_gpus
    return own / rates.pcie


def gradient_s(plan: Plan, rates: Rates, num_gpus: int) -> float:
    """Seconds in which float32 gradients are summed over all GPUs, in all of a step."""
    layers = plan.model.shape.num_layers
    passes = 1 if plan.is_sharded else 2  # reduced and scattered; DDP gathers them again
    summed_s = ring_s(rates, passes * 4.0 * plan.trained, passes * layers, num_gpus)
    offload_s = 4.0 * plan.trained / num_gpus / rates.pcie if plan.offload else 0.0
    times = plan.num_micro_batches if plan.sync_every_micro_batch else 1
    return times * (summed_s + offload_s)


def optimizer_s(plan: Plan, rates: Rates, num_gpus: int) -> float:
    """Seconds of AdamW, which memory limits, the host's where shards are offloaded."""
    if plan.offload:
        return ADAM_BYTES * plan.trained / num_nodes(num_gpus) / rates.host
    own = plan.trained / num_gpus if plan.is_sharded else plan.trained
    return ADAM_BYTES * own / rates.memory


def training_step(plan: Plan, num_gpus: int, work: Work, rates: Rates) -> Step:
    """A step of ``batch_size`` questions a GPU, all rolled out together.

    The update begins when the longest completion of all GPUs has ended. Gathers go on beside the
    computing of the layer before, so that a phase takes the longer one of the two.
    """
    model, B = plan.model, plan.batch_size
    mean = round(expected_longest(1, MEAN_LENGTH, work.L))
    per_question = workload(model, plan.rank, work.grid, work.P, [mean] * work.G)
    once_s = gather_s(plan, rates, num_gpus)
    num_rows = B * work.G
    num_steps = expected_longest(num_rows * num_gpus, MEAN_LENGTH, work.L)
    own_steps = expected_longest(num_rows, MEAN_LENGTH, work.L)

    def computing_s(flops: float) -> float:
        return B * flops / rates.flops

    prompt = per_question.vision_flops + prefill_flops(model, work.P)
    in_flight = num_rows * mean / own_steps  # on average; rows that end leave
    kv_tokens = B * work.P + in_flight * own_steps / 2
    decode_s = num_steps * decode_step_s(rates, model, plan.adapter, kv_tokens, in_flight)
    passes = 1 if plan.keep_gathered else plan.num_micro_batches
    # a frozen copy is gathered too, and all of the policy once for the engine
    sync_gathers = 0 if plan.is_lora else 1
    reference_gathers = passes if not (plan.is_lora and plan.keep_gathered) else 0
    update_gathers = passes * (1 if plan.keep_gathered else 2)
    if not plan.is_sharded:
        sync_gathers = reference_gathers = update_gathers = 0
    reference_s = max(computing_s(per_question.scoring_flops), reference_gathers * once_s)
    # checkpointing forwards everything once more
    executed = per_question.update_flops + per_question.forward_flops
    moving_s = update_gathers * once_s + gradient_s(plan, rates, num_gpus)
    num_gathers = sync_gathers + reference_gathers + update_gathers
    return Step(
        computing_s(prompt),
        decode_s,
        reference_s,
        max(computing_s(executed), moving_s),
        optimizer_s(plan, rates, num_gpus) + sync_gathers * once_s,
        num_gathers * once_s,
        num_gathers,
        1 - own_steps / num_steps,
    )


def largest_phase(step: Step) -> str:
    """What most of a step goes to."""
    phases = {
        "decoding": step.decode_s,
        "update": step.update_s,
        "reference": step.reference_s,
        "prefill": step.prefill_s,
        "optimizer": step.optimizer_s,
    }
    return max(phases, key=phases.__getitem__)
