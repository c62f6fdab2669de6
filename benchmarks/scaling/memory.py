"""Memory of a GPU in training and prediction, term by term, in bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Shape
from benchmarks.scaling.plan import Plan, Work, num_nodes
from benchmarks.scaling.rates import USABLE
from benchmarks.scaling.sizes import Model, num_patches
from vrts.models.engines.decode_batch import MAX_PREFILL_TOKENS
from vrts.models.vlm.network import MAX_PATCHES

HEAD_CHUNK = 256
"""`TransformersPolicy.head_chunk_size`."""
LOGIT_COPIES = 5
"""Of a chunk's logits in float32: themselves, log-probs, entropy's product, two in backward."""
MAX_ROWS = 64
"""`NativeEngine.max_rows`."""
KV_SHARE = 0.6
"""Of free memory that the engine gives to its KV cache."""
GATHERED_LAYERS = 3
"""In use, prefetched, and the buffer that the latter is gathered in."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How what the update holds a token compares with `saved_values`, as measured."""

    prompt: float
    completion: float


def read_measured(path: Path) -> Measured:
    """Take the factors from what ``python -m benchmarks.update`` writes.

    The measured pass has float32 weights and no gradient checkpointing: every layer keeps its
    values. Its constant is all laid to the prompt.
    """
    found = json.loads(path.read_text())
    shape = Shape(**found["settings"]["shape"])
    a_token = shape.num_layers * saved_values(shape) * 4
    lines = [row for row in found["memory growth"] if row["grows with"] == "G·L"]
    P = found["memory"][0]["P"]
    return Measured(
        max(row["constant MB"] for row in lines) * 1e6 / P / a_token,
        max(row["kB a token"] for row in lines) * 1e3 / a_token,
    )


def saved_values(shape: Shape) -> int:
    """Numbers a token that a decoder layer keeps for its backward, counted from its operations.

    Of the hidden size: input, its norm, queries, rotated ones, attention's output, its
    projection, their sum, its norm. Keys, rotated ones and values. Gate, its activation, up and
    the product of the feed-forward.
    """
    kv_size = shape.hidden_size // shape.num_heads * shape.num_kv_heads
    return 8 * shape.hidden_size + 3 * kv_size + 4 * shape.intermediate_size


@dataclass(frozen=True, slots=True)
class Held:
    """What is there from step to step, of all processes together."""

    weights: float
    gradients: float
    optimizer: float
    reference: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.reference


def held(plan: Plan) -> Held:
    """Weights, gradients, Adam's moments and reference of a model that is held once.

    ``full``: all float32, the reference a second set of weights. ``lora``: a bfloat16 model, the
    adapter float32, no reference.
    """
    model = plan.model
    every = model.language + model.vision
    if plan.is_lora:
        weights, reference = 2.0 * every + 4.0 * plan.adapter, 0.0
    else:
        weights, reference = 4.0 * every, 4.0 * every
    return Held(weights, 4.0 * plan.trained, 8.0 * plan.trained, reference)


def held_bytes(plan: Plan, num_gpus: int) -> float:
    """What a GPU holds from step to step of what is trained, without the engine's copy."""
    if plan.offload:
        return 0.0
    if plan.is_sharded:
        return held(plan).total / num_gpus
    # autocast keeps bfloat16 copies of float32 weights that are trained; DDP has buckets
    buckets = 4.0 * plan.trained if num_gpus > 1 else 0.0
    return held(plan).total + 2.0 * plan.trained + buckets


def engine_bytes(plan: Plan) -> float:
    """The engine's own copy of weights in bfloat16, on each GPU.

    An adapter on bfloat16 weights that lie whole is all that is copied; its first products twice.
    """
    if plan.is_lora and not plan.is_sharded:
        return 3.0 * plan.adapter
    return 2.0 * (plan.model.language + plan.model.vision) + 3.0 * plan.adapter


def host_bytes(plan: Plan, num_gpus: int) -> float:
    """What a machine holds for its GPUs where shards are offloaded."""
    return held(plan).total / num_nodes(num_gpus) if plan.offload else 0.0


def gathered_bytes(plan: Plan) -> float:
    """Gathered weights in bfloat16 in an update under FSDP: all of them, or a few layers at a time.

    Embeddings, head and norms stay as long as a method of the policy runs.
    """
    model, layers = plan.model, plan.model.shape.num_layers
    adapter_layer = plan.trained_layer if plan.is_lora else 0
    if not plan.is_sharded:
        return 0.0
    if plan.keep_gathered:
        return 2.0 * (model.language + model.vision + layers * adapter_layer)
    layer = GATHERED_LAYERS * (model.layer + adapter_layer)
    return 2.0 * (layer + 2 * model.head + model.shape.hidden_size)


def summed_bytes(plan: Plan) -> float:
    """Float32 gradients on their way under FSDP: of all micro-batches so far, or of one layer."""
    if not plan.is_sharded:
        return 0.0
    if plan.num_micro_batches > 1 and not plan.sync_every_micro_batch:
        return 4.0 * plan.trained
    return 6.0 * plan.trained_layer


def forward_bytes(model: Model, num_tokens: float) -> float:
    """The widest moment of a layer without gradient: input, norm, gate, up and product."""
    return 2.0 * num_tokens * (2 * model.shape.hidden_size + 3 * model.shape.intermediate_size)


def vision_bytes(model: Model, work: Work, batch_size: int = 1) -> float:
    """The widest moment of a vision block, which has no gradient."""
    widths = 2 * model.shape.vision_hidden_size + 3 * model.vision_ffn
    own = num_patches(work.grid)
    return 2.0 * max(own, min(batch_size * own, MAX_PATCHES)) * widths


def activation_bytes(plan: Plan, work: Work, measured: Measured) -> float:
    """A micro-batch with gradient checkpointing: every layer's input, one layer's values, logits.

    Linear in P + G·L, since the prompt is forwarded once for its completions.
    """
    shape = plan.model.shape
    B = min(plan.micro_batch_size, plan.batch_size)
    num_prompt, num_own = B * work.P, B * work.G * (work.L - 1)
    # embeddings of float32 weights that no FSDP gathers in bfloat16
    input_size = 2 if plan.is_sharded or plan.is_lora else 4
    inputs = input_size * shape.num_layers * shape.hidden_size * (num_prompt + num_own)
    tokens = measured.prompt * num_prompt + measured.completion * num_own
    logits = 4.0 * LOGIT_COPIES * HEAD_CHUNK * (shape.vocab_size or 0)
    return inputs + 2.0 * saved_values(shape) * tokens + logits


def rollout_kv_bytes(model: Model, work: Work, batch_size: int = 1) -> float:
    """Keys and values: one copy of each prompt, and each completion's own."""
    return model.kv_bytes(batch_size * (work.P + work.G * work.L))


def rollout_bytes(plan: Plan, work: Work) -> float:
    """Encoding, or prompts' prefill and the KV cache of a step's questions all together.

    The cache is half the rows' and half the prompts', and holds no more rows than the engine takes.
    """
    model, B = plan.model, plan.batch_size
    rows = min(B * work.G, MAX_ROWS)
    kv = model.kv_bytes(B * work.P + rows * work.L)
    tokens = max(work.P, min(B * work.P, MAX_PREFILL_TOKENS))
    return max(vision_bytes(model, work, B), kv + forward_bytes(model, tokens))


def training_peak(plan: Plan, num_gpus: int, work: Work, measured: Measured) -> float:
    """Most that a GPU holds at once in a step: in the rollout, the scoring or the update."""
    gathered = gathered_bytes(plan)
    B = min(plan.micro_batch_size, plan.batch_size)
    # a frozen copy gathers its own layers while the policy's stay
    scoring = gathered * (1 if plan.is_lora else 2)
    scoring += forward_bytes(plan.model, B * (work.P + work.G * work.L))
    update = gathered + activation_bytes(plan, work, measured) + summed_bytes(plan)
    phases = (rollout_bytes(plan, work), scoring, update)
    return held_bytes(plan, num_gpus) + engine_bytes(plan) + max(phases)


def prediction_kv_bytes(model: Model, card: float) -> float:
    """The engine's budget of a card that holds the model in bfloat16."""
    return KV_SHARE * max(USABLE * card - 2.0 * (model.language + model.vision), 0.0)
