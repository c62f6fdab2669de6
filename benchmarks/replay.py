"""Scoring recorded completions: votes, metrics and what else a prediction run leaves.

``python -m benchmarks.replay`` makes a recording of 10,000 questions about 2,500 videos, 5
completions of some 200 words at up to 3 levels, and replays it as ``vrts predict --config
configs/replay.yaml`` does, in a process of its own whose time and peak memory count.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import report
from vrts.files import read_predictions
from vrts.files.predictions import write_predictions
from vrts.types import Prediction, Question, Round
from vrts.voting import agreement, decide

NUM_QUESTIONS, QUESTIONS_A_VIDEO = 10_000, 4
LEVELS, M = (32, 64, 128), 5
WORDS = "the man in a red coat opens door and then walks to car because it rains while she".split()
LIMIT_S, LIMIT_BYTES = 60.0, 1e9


def completion(rng: random.Random, letter: str) -> str:
    """Make reasoning of some 200 words and an answer in one of the forms that models use."""
    words = " ".join(rng.choices(WORDS, k=rng.randrange(150, 250)))
    form = rng.choice(["{}", "{}.", "({})", "**{}**", "The answer is {}.", "Option {}"])
    return f"<think>{words}</think><answer>{form.format(letter)}</answer>"


def predictions(num_questions: int, seed: int) -> Iterator[Prediction]:
    """Make the predictions of a run whose questions differ in how hard they are."""
    rng = random.Random(seed)
    for index in range(num_questions):
        skill, rounds = rng.random(), []
        for level in LEVELS:
            answers = ["A" if rng.random() < skill else rng.choice("BCD") for _ in range(M)]
            rounds.append(
                Round(
                    num_frames=level,
                    completions=tuple(completion(rng, letter) for letter in answers),
                    answers=tuple(answers),
                    agreement=agreement(answers),
                    times_s=tuple(60 * i / level for i in range(level)),
                    num_tokens=tuple(rng.randrange(200, 400) for _ in answers),
                    mean_logprobs=tuple(-rng.random() for _ in answers),
                    cancelled=(False,) * M,
                )
            )
            if len(set(answers)) == 1:
                break
        breakdown = {
            "duration": rng.choice(["short", "medium", "long"]),
            "domain": f"domain {rng.randrange(6)}",
            "task": f"task {rng.randrange(12)}",
        }
        question = Question(
            id=f"q{index}",
            text=" ".join(rng.choices(WORDS, k=12)) + "?",
            video=f"videos/{index // QUESTIONS_A_VIDEO}.mp4",
            options=("to the car", "to the door", "nowhere", "home"),
            gold="A",
            metadata={"breakdown": breakdown},
        )
        yield decide(question, rounds)


def main() -> None:
    """Make the recording, replay it and report time and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        (path.parent / "settings.json").write_text(json.dumps({"levels": LEVELS}))
        write_predictions(path, predictions(NUM_QUESTIONS, seed=0))
        command = [sys.executable, "-m", "vrts", "predict", "--config=configs/replay.yaml"]
        command += [f"--model.policy.init_args.path={path}"]
        command += [f"--trainer.default_root_dir={folder}/replayed"]
        start_s = time.perf_counter()
        subprocess.run(command, check=True)
        wall_s = time.perf_counter() - start_s
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        metrics = json.loads((Path(folder) / "replayed/metrics.json").read_text())
        row = {
            "questions": metrics["num_questions"],
            "failed": metrics["num_failed"],
            "completions": sum(
                len(r.completions) for p in read_predictions(path) for r in p.rounds
            ),
            "recording MB": path.stat().st_size / 1e6,
            "s": wall_s,
            "CPU s": usage.ru_utime + usage.ru_stime,
            "peak MB": usage.ru_maxrss * 1024 / 1e6,
        }
    report("replay", [row], limits={"s": LIMIT_S, "peak MB": LIMIT_BYTES / 1e6})


if __name__ == "__main__":
    main()
