"""A prediction run: rows in flight, and the same completions as of one question at a time.

``python -m benchmarks.prediction`` asks 200 questions by `SparseToDense` on two levels, of a random
model whose completions end at any token with the same probability: their lengths differ more than
tenfold. Rows that end make place for others of any question and level, so the engine's budget of
rows stays used. Then the same questions are asked one at a time, with the same seeds.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import Shape, random_policy, random_sample, report
from benchmarks.s2d import InMemory, make_data, predict
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.models.engines.native import NativeEngine
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Clip, Prediction, Question

SHAPE = Shape(96, 3, 4, 2, 192, 32, 2)
"""Of the embedded model."""
SIDE = 56


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked."""

    num_questions: int = 200
    levels: tuple[int, ...] = (4, 8)
    M: int = 5
    mean_length: int = 40
    max_new_tokens: int = 160
    max_rows: int = 32


def ending_policy(mean_length: int) -> TransformersPolicy:
    """A random model whose completions are so long on average, before they are cut off."""
    policy = random_policy(SHAPE, torch.device("cpu"), torch.float32).eval()
    network = policy.network()
    ordinary = network.vocab_size - len(network.suppressed_ids)
    network.end_ids = torch.arange(max(ordinary // mean_length, 1))
    return policy


def ask(
    policy: TransformersPolicy, questions: Sequence[Question], run: Run, engine: NativeEngine
) -> dict[str, Prediction]:
    """Predict some questions together."""
    clips: dict[tuple[str, int], Clip] = {}
    for question in questions:
        for T in run.levels:
            clip = random_sample(T, SIDE, SIDE, seed=int(question.id)).clip
            assert clip is not None
            clips[question.video, T] = clip
    data = make_data(questions, SIDE, eval_batch_size=4, num_workers=0, decoder=InMemory(clips))
    # an early stop gives up whatever has not ended by then, which differs with what is beside it
    densifier = SparseToDense(list(run.levels), num_samples=run.M, early_stop=False)
    return predict(policy, data, densifier, run.max_new_tokens, engine)


def measure(run: Run) -> dict[str, Any]:
    """Ask all together, then one at a time.

    Raises:
        RuntimeError: a completion differs.
    """
    policy = ending_policy(run.mean_length)
    questions = [
        Question(str(i), "What happens?", f"{i}.mp4", options=("a", "b"))
        for i in range(run.num_questions)
    ]
    engine, other = NativeEngine(max_rows=run.max_rows), NativeEngine(max_rows=run.max_rows)
    start_s = time.perf_counter()
    together = ask(policy, questions, run, engine)
    together_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    alone: dict[str, Prediction] = {}
    for question in questions:
        alone |= ask(policy, [question], run, other)
    alone_s = time.perf_counter() - start_s
    rounds = {id: (p.answer, [_content(r) for r in p.rounds]) for id, p in together.items()}
    for id, prediction in alone.items():
        if rounds[id] != (prediction.answer, [_content(r) for r in prediction.rounds]):
            raise RuntimeError(f"question {id}: other completions than by itself")
    of_all = [r for p in together.values() for r in p.rounds]
    lengths = sorted(n for r in of_all for n in r.num_tokens)
    tenths = statistics.quantiles(lengths, n=10)
    count = engine.count
    return {
        "questions": len(together),
        "failed": sum(p.error is not None for p in together.values()),
        "rounds": len(of_all),
        "completions": len(lengths),
        "tokens: 1st tenth": tenths[0],
        "tokens: median": tenths[4],
        "tokens: 9th tenth": tenths[-1],
        "budget of rows": run.max_rows,
        "mean rows in flight": count.rows / count.steps,
        "share of the budget": count.rows / count.steps / run.max_rows,
        "share while others wait": count.full_rows / max(count.full_steps, 1) / run.max_rows,
        "together s": together_s,
        "one at a time s": alone_s,
        "ratio": alone_s / together_s,
        "same completions": len(alone),
    }


def _content(found: Any) -> tuple[Any, ...]:
    """What must be the same of a round."""
    return found.num_frames, found.completions, found.answers, found.num_tokens


def main() -> None:
    """Measure with one thread."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    run = Run()
    report("prediction", [measure(run)], shape=SHAPE, dtype="float32", levels=run.levels, M=run.M)


if __name__ == "__main__":
    main()
