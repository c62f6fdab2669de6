"""A small model that reasons at different lengths, as real ones do.

The embedded model's completions are all of nearly one length, which leaves an early stop little to
give up. Some lessons on the demo's videos teach it to say more, or less, before it answers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from tools.tiny.lessons import as_completions
from tools.tiny.targets import warmup_target
from tools.tiny.warmup import PROMPT, load_pool
from vrts.demo.questions import FIRST, FLASH, LAST, MOTION, OBJECT
from vrts.models.vlm.policy import TransformersPolicy

MODEL = Path(__file__).parents[1] / "assets/tiny"
KINDS = (OBJECT, FLASH, FIRST, LAST, MOTION)
"""All kinds of question that the demo knows."""
LEVELS = (4, 8, 16)
NUM_VIDEOS, NUM_STEPS, BATCH_SIZE, LEARNING_RATE, SEED = 60, 60, 16, 2e-3, 7
REMARKS = (
    "there is a clip", "look at each second", "that is not clear", "how long is this video",
)  # fmt: skip
"""What may be said before the answer is reasoned out: any number of these, in any order."""


def load_policy() -> TransformersPolicy:
    """Load the embedded model."""
    policy = TransformersPolicy(str(MODEL), prompt=PROMPT, dtype="float32")
    policy.load()
    return policy.eval()


def talkative_policy() -> TransformersPolicy:
    """Load the embedded model and teach it, in some seconds; the same each time."""
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder:
        pool = load_pool(Path(folder), NUM_VIDEOS, SEED, KINDS)
    policy = load_policy()
    tokenizer = policy.processor.tokenizer
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE)
    for _ in range(NUM_STEPS):
        items = [pool[i] for i in rng.choice(len(pool), BATCH_SIZE, replace=False)]
        num_frames = rng.choice(LEVELS, BATCH_SIZE).tolist()
        samples = [item.sample(T) for item, T in zip(items, num_frames, strict=True)]
        texts = [
            with_remarks(warmup_target(item.row, item.frame_indices(T), rng), rng)
            for item, T in zip(items, num_frames, strict=True)
        ]
        completions = as_completions(tokenizer, texts)
        prompts = policy.network().encode(samples)
        logprobs = policy.logprobs(prompts, [[c] for c in completions], 1.0).logprobs
        loss = -logprobs.sum() / sum(c.num_tokens for c in completions)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return policy


def with_remarks(target: str, rng: np.random.Generator) -> str:
    """Put a random number of remarks, none to all of them, in front of a target's reasoning."""
    count = rng.integers(len(REMARKS) + 1)
    remarks = "".join(f"{remark}. " for remark in rng.permutation(REMARKS)[:count])
    return target.replace("<think>", f"<think>{remarks}", 1)
