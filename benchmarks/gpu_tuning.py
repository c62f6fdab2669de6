"""Full fine-tuning, and weights sharded over one process: cases of `benchmarks.gpu`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch

from benchmarks.common import peak_bytes
from benchmarks.gpu_bench import Bench, Row
from benchmarks.gpu_passes import roll_out, shared_update, use_checkpointing
from benchmarks.gpu_sharding import sharded


def full_fine_tuning(bench: Bench, dtype: torch.dtype) -> Row:
    """Peak memory of a whole step of full fine-tuning with AdamW, without a reference.

    In float32 computing is in half precision by autocast, as with the Trainer's ``bf16-mixed``.
    """
    bench.release()
    scale, device = bench.scale, bench.device
    policy = bench.make(scale.shape, dtype)
    use_checkpointing(policy, True)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.01, fused=True)
    mixed = dtype == torch.float32

    def step() -> None:
        with torch.autocast(device.type, scale.dtype) if mixed else nullcontext():
            prompts = policy.encode([bench.sample(scale.sides[-1])], scale.L)
            rollout = roll_out(policy, prompts, scale.G, scale.L)
            loss = -policy.score(prompts, rollout, 1.0).logprobs.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the optimizer's state is there from the first step on
    before = float(torch.cuda.memory_allocated()) if device.type == "cuda" else 0.0
    peak = before + peak_bytes(step, device)
    return {
        "weights": str(dtype),
        "parameters, 1e9": sum(p.numel() for p in policy.parameters()) / 1e9,
        "frames": scale.num_frames,
        "G": scale.G,
        "L": scale.L,
        "peak GB": peak / 1e9,
    }


def one_process(bench: Bench) -> Row:
    """Rollout and update, sharded over one process, against not sharded.

    Sharded weights are decoded without graphs.
    """
    bench.release()
    scale, side = bench.scale, bench.scale.sides[-1]
    policy = bench.make(scale.shape, scale.dtype)
    use_checkpointing(policy, True)

    def measured() -> tuple[float, float]:
        prompts = policy.encode([bench.sample(side)], scale.L)
        rollout_s = bench.time(partial(roll_out, policy, prompts, scale.G, scale.L // 4), 1)
        return rollout_s, bench.time(partial(shared_update, policy, prompts, scale.G, scale.L), 1)

    plain_s = measured()
    with sharded(policy, scale.dtype):
        sharded_s = measured()
    return {
        "rollout s": plain_s[0],
        "sharded rollout s": sharded_s[0],
        "update s": plain_s[1],
        "sharded update s": sharded_s[1],
    }
