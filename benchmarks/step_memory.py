"""Peak memory of a training step: it grows with the micro-batch, and not with the step.

``python -m benchmarks.step_memory`` takes a minute on a CPU. A step of a few questions is made by
`VideoQAModule` under Lightning's trainer, with all that belongs to it: encoding, rollout, rewards,
forward and backward, AdamW. The peak is that of torch's allocator beyond what was held before.
What a step holds for all of its questions are the keys and values of its rollout, a fraction of
the activations of one of them in the update.
"""

from __future__ import annotations

from functools import partial

import torch
from lightning import Trainer

from benchmarks.common import SMALL, Shape, peak_bytes, random_policy, random_sample, report
from benchmarks.step_vrts import SameQuestions, Variety
from vrts.models.attention.kv_cache import capacity_of
from vrts.models.grpo.objectives import GRPO
from vrts.models.module import VideoQAModule
from vrts.models.vlm.policy import TransformersPolicy

CASES = [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8)]
"""Questions of a step, and of a micro-batch."""
NUM_FRAMES, SIDE, G, L = 8, 112, 8, 48
CPU = torch.device("cpu")


def measure(shape: Shape, B: int, micro_batch_size: int) -> dict[str, float]:
    """Make a step of a new model.

    Args:
        shape: of the model.
        B: questions of the step.
        micro_batch_size: of them.
    """
    policy = random_policy(shape, CPU, torch.float32)
    module = VideoQAModule(
        policy,
        rewards=[Variety()],
        objective=GRPO(beta=0.0),
        num_generations=G,
        max_new_tokens=L,
        micro_batch_size=micro_batch_size,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    samples = [random_sample(NUM_FRAMES, SIDE, SIDE, seed) for seed in range(B)]
    P = policy.network().encode(samples[:1])[0].num_tokens
    data = SameQuestions(samples, 1)
    peak = peak_bytes(partial(trainer.fit, module, datamodule=data), CPU)
    return {
        "B": B,
        "micro-batch": micro_batch_size,
        "P": P,
        "G": G,
        "L": L,
        "peak MB": peak / 1e6,
        "KV MB": kv_bytes(policy, B, P) / 1e6,
    }


def kv_bytes(policy: TransformersPolicy, B: int, P: int) -> float:
    """Keys and values of a step's rollout: each prompt once, and its completions."""
    layers, heads, dim = policy.network().kv_shape
    return 2.0 * layers * heads * dim * 4 * B * (capacity_of(P) + G * L)


def main() -> None:
    """Measure all cases with one thread."""
    torch.set_num_threads(1)
    rows = [measure(SMALL, *case) for case in CASES]
    first = rows[0]["peak MB"]
    report(
        "step_memory",
        [{**row, "ratio": row["peak MB"] / first} for row in rows],
        shape=SMALL,
        dtype="float32",
        frames=f"{NUM_FRAMES} of {SIDE}x{SIDE}",
    )


if __name__ == "__main__":
    main()
