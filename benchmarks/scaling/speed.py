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
    gather_s: float
    """Of all weights going round, most of it beside computing."""
    num_gathers: float
    """Times that the language model's layers are gathered."""
    idle: float
    """Share of decoding that a GPU on average waits for the longest completion of all."""

    @property
    def total_s(self) -> float:
        """Of the whole step."""
        parts = (self.prefill_s, self.decode_s, self.reference_s, self.update_s, self.optimizer_s)
        return sum(parts)


def decode_step_s(
    rates: Rates, model: Model, adapter: int, num_kv_tokens: float, is_sharded: bool
) -> float:
    """Seconds of one token of every row: reading all weights, or launching what does.

    CUDA graphs are for weights that lie whole; an adapter's own launches are not counted.
    """
    weights = 2.0 * (model.shape.num_layers * model.layer + model.head) + 4.0 * adapter
    reading_s = (weights + model.kv_bytes(num_kv_tokens)) / rates.memory
    launching_s = model.shape.num_layers * rates.launch_s if is_sharded else 0.0
    return max(reading_s, launching_s)


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
    """Seconds in which float32 gradients are summed over all GPUs."""
    layers = plan.model.shape.num_layers
    passes = 1 if plan.is_sharded else 2  # reduced and scattered; DDP gathers them again
    summed_s = ring_s(rates, passes * 4.0 * plan.trained, passes * layers, num_gpus)
    offload_s = 4.0 * plan.trained / num_gpus / rates.pcie if plan.offload else 0.0
    return summed_s + offload_s


def optimizer_s(plan: Plan, rates: Rates, num_gpus: int) -> float:
    """Seconds of AdamW, which memory limits, the host's where shards are offloaded."""
    if plan.offload:
        return ADAM_BYTES * plan.trained / num_nodes(num_gpus) / rates.host
    own = plan.trained / num_gpus if plan.is_sharded else plan.trained
    return ADAM_BYTES * own / rates.memory


def training_step(plan: Plan, num_gpus: int, work: Work, rates: Rates) -> Step:
    """A step of ``batch_size`` questions a GPU without accumulation.

    All wait for the longest completion of all GPUs. Gathers go on beside the computing of the
    layer before, so that a phase takes the longer one of the two.
    """
    model, B = plan.model, plan.batch_size
    mean = round(expected_longest(1, MEAN_LENGTH, work.L))
    per_question = workload(model, plan.rank, work.grid, work.P, [mean] * work.G)
    once_s = gather_s(plan, rates, num_gpus)
    num_steps = expected_longest(B * work.G * num_gpus, MEAN_LENGTH, work.L)
    own_steps = expected_longest(B * work.G, MEAN_LENGTH, work.L)

    def computing_s(flops: float) -> float:
        return B * flops / rates.flops

    prompt = per_question.vision_flops + prefill_flops(model, work.P)
    prefill_s = max(computing_s(prompt), once_s)
    kv_tokens = B * (work.P + work.G * num_steps / 2)
    token_s = decode_step_s(rates, model, plan.adapter, kv_tokens, plan.is_sharded)
    is_resident = plan.is_sharded and plan.resident
    each_token_s = 0.0 if is_resident else once_s
    decode_s = num_steps * max(token_s, each_token_s)
    # a frozen copy is gathered anew; without an adapter the policy's own weights are still there
    reference_gathers = int(plan.is_sharded and (not plan.is_lora or not plan.resident))
    scoring = computing_s(per_question.scoring_flops)
    reference_s = max(scoring, reference_gathers * once_s)
    # checkpointing forwards everything once more
    executed = per_question.update_flops + per_question.forward_flops
    update_gathers = int(plan.is_sharded) * (1 if plan.resident else 2)
    moving_s = update_gathers * once_s + gradient_s(plan, rates, num_gpus)
    update_s = max(computing_s(executed), moving_s)
    num_gathers = float(plan.is_sharded) + reference_gathers + update_gathers
    num_gathers += num_steps if plan.is_sharded and not plan.resident else 0.0
    return Step(
        prefill_s,
        decode_s,
        reference_s,
        update_s,
        optimizer_s(plan, rates, num_gpus),
        num_gathers * once_s,
        num_gathers,
        1 - own_steps / num_steps,
    )


def largest_phase(step: Step, plan: Plan) -> str:
    """What most of a step goes to."""
    phases = {
        "decoding": step.decode_s,
        "update": step.update_s,
        "reference": step.reference_s,
        "prefill": step.prefill_s,
        "optimizer": step.optimizer_s,
    }
    name = max(phases, key=phases.__getitem__)
    if name != "decoding" or not plan.is_sharded:
        return name
    return "launches of decoding" if plan.resident else "a gather a token"
