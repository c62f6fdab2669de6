"""Sparse-to-dense prediction: what sharing and early stops save, and what overlapped decoding does.

``python -m benchmarks.s2d`` asks the embedded model about synthetic videos, twice with the same
seeds and Video-RTS's way of sampling: as the published evaluation does it (every one of the M
samples encodes the video and the prompt anew, and is generated to its end), and with
`SparseToDense`. All answers must be the same; the operations are counted by torch.

``python -m benchmarks.s2d --videos folder`` times a run on real clips instead, against decoding
alone and generation alone.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, Trainer
from transformers.utils.logging import disable_progress_bar

from benchmarks.common import flops, report
from vrts.callbacks.densify import SparseToDense
from vrts.data.datamodule import VideoQADataModule
from vrts.data.decoding import Decoder
from vrts.data.readers import Reader, VideoR1Reader
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler, NestedPairSampler, UniformSampler
from vrts.demo.videos import make_dataset
from vrts.models.module import VideoQAModule
from vrts.models.policy import Policy
from vrts.models.qwen import QwenPolicy
from vrts.models.sampling import row_seed
from vrts.prompts import PromptTemplate, parse_answer
from vrts.types import Clip, Prediction, Question, Sample, Sampling
from vrts.voting import is_unanimous, majority

MODEL = Path(__file__).parents[1] / "assets/tiny"
CLIPS = ("nasa_13013.mp4", "flipping_a_pancake.mkv", "odd_size_vp9.mp4", "nasa_13013_hdr.mp4")
NUM_VIDEOS, MAX_NEW_TOKENS, SEED = 2, 48, 0
LEVELS = [4, 8, 16]
SAMPLING = [
    Sampling(0.8 + 0.15 * i, min(0.95, 0.7 + 0.05 * i), 50, 0.4, 0.2, ("</answer>",))
    for i in range(5)
]
NUM_SAMPLES = len(SAMPLING)


class Given(Reader):
    """Questions that are at hand."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = list(questions)

    def read(self) -> list[Question]:
        """Return them."""
        return self.questions


class InMemory(Decoder):
    """Clips that are decoded already, by path and number of frames asked for."""

    def __init__(self, clips: dict[tuple[str, int], Clip]) -> None:
        self.clips = clips

    def decode(
        self, path: str, num_frames: int, sampler: FrameSampler, resolution: Resolution
    ) -> Clip:
        """Return a clip at once."""
        return self.clips[path, num_frames]


def make_policy() -> QwenPolicy:
    """Load the embedded model."""
    template = PromptTemplate(preamble="", multiple_choice="")
    policy = QwenPolicy(str(MODEL), prompt=template, dtype="float32")
    policy.load()
    return policy.eval()


def make_data(questions: Sequence[Question], side: int, **options: Any) -> VideoQADataModule:
    """Make a data module for frames of about `side` pixels a side."""
    resolution = Resolution(min_pixels=side * side, max_pixels=side * side)
    return VideoQADataModule(predict=Given(questions), resolution=resolution, **options)


def predict(
    policy: Policy, data: VideoQADataModule, levels: list[int], max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, Prediction]:
    """Run `SparseToDense`; predictions by question."""
    module = VideoQAModule(policy, max_new_tokens=max_new_tokens, seed=SEED)
    callbacks: list[Callback] = [SparseToDense(levels, sampling=SAMPLING)]
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
    )  # fmt: skip
    batches = cast(list[list[Prediction]], trainer.predict(module, datamodule=data))
    return {p.question.id: replace(p, clip=None) for batch in batches for p in batch}


def published(policy: Policy, data: VideoQADataModule) -> dict[str, tuple[str | None, int]]:
    """Ask as the published evaluation script does; answers and frames by question."""
    found: dict[str, tuple[str | None, int]] = {}
    for question in data.questions("predict"):
        for level in LEVELS:
            (sample,) = data.load([question], level)
            answers = [ask_once(policy, sample, m) for m in range(NUM_SAMPLES)]
            if is_unanimous(answers):
                break
        found[question.id] = (majority(answers), level)
    return found


def ask_once(policy: Policy, sample: Sample, m: int) -> str | None:
    """One answer, by a vision pass, a prefill and a generation of its own."""
    assert sample.clip is not None
    prompts = policy.encode([sample], MAX_NEW_TOKENS)
    seed = row_seed(SEED, sample.question.id, sample.clip.num_frames, m)
    (text,) = policy.rollout(prompts, [SAMPLING[m]], [seed], MAX_NEW_TOKENS).texts
    return parse_answer(text, sample.question)


def count(
    policy: Policy, questions: Sequence[Question], side: int, sampler: FrameSampler
) -> dict[str, Any]:
    """Compare the operations of both procedures on the same questions.

    Raises:
        RuntimeError: an answer differs, which would make the comparison void.
    """
    answers: dict[str, dict[str, tuple[str | None, int]]] = {}
    predictions: dict[str, Prediction] = {}
    data = make_data(questions, side, sampler=sampler, num_workers=0, eval_batch_size=4)
    data.setup("predict")

    def ours() -> None:
        predictions.update(predict(policy, data, LEVELS))

    def theirs() -> None:
        answers["theirs"] = published(policy, data)

    ours_flops, theirs_flops = flops(ours), flops(theirs)
    got = {id: (p.answer, p.num_frames) for id, p in predictions.items()}
    if got != answers["theirs"]:
        different = [id for id in got if got[id] != answers["theirs"][id]]
        raise RuntimeError(f"other answers to {different}")
    rounds = [r for p in predictions.values() for r in p.rounds]
    return {
        "frames": "/".join(map(str, LEVELS)),
        "sampler": type(sampler).__name__,
        "side": side,
        "questions": len(got),
        "same answers": len(got),
        "rounds": len(rounds),
        "given up": sum(sum(r.abandoned) for r in rounds) / (len(rounds) * NUM_SAMPLES),
        "published GFLOP": theirs_flops / 1e9,
        "ours GFLOP": ours_flops / 1e9,
        "ratio": ours_flops / theirs_flops,
    }


@dataclass(frozen=True, slots=True)
class Timing:
    """A prediction run on real clips."""

    side: int = 112
    levels: tuple[int, ...] = (8, 16, 32)
    num_questions: int = 24
    max_new_tokens: int = 48
    num_workers: int = 1


def overlap(policy: Policy, videos: Path, timing: Timing) -> dict[str, Any]:
    """Time a run, the decoding that it needs, and its generation with all clips at hand."""
    paths = [str(videos / CLIPS[i % len(CLIPS)]) for i in range(timing.num_questions)]
    questions = [
        Question(f"q{i}", "What colour is the flash?", path, options=("red", "blue", "green"))
        for i, path in enumerate(paths)
    ]
    levels = list(timing.levels)

    def run(**options: Any) -> tuple[float, dict[str, Prediction]]:
        data = make_data(questions, timing.side, **options)
        start_s = time.perf_counter()
        found = predict(policy, data, levels, timing.max_new_tokens)
        return time.perf_counter() - start_s, found

    run(num_workers=timing.num_workers)  # files and kernels are warm for all alike
    together_s, found = run(num_workers=timing.num_workers)
    needed = [(p.question, levels[n]) for p in found.values() for n in range(len(p.rounds))]
    data = make_data(questions, timing.side, num_workers=timing.num_workers)
    data.load(questions[:1], levels[0])  # as in a run, workers are started once
    start_s = time.perf_counter()
    futures = [(q, level, data.submit([q], level)[0]) for q, level in needed]
    samples = {(q.video, level): future.result() for q, level, future in futures}
    decoding_s = time.perf_counter() - start_s
    every = {(p, level): c for (p, level), s in samples.items() if (c := s.clip) is not None}
    data.close()
    generation_s, again = run(num_workers=0, decoder=InMemory(every))
    if again != found:
        raise RuntimeError("other answers with clips at hand")
    return {
        "questions": len(questions),
        "rounds": len(needed),
        "decoding s": decoding_s,
        "generation s": generation_s,
        "together s": together_s,
        "ratio to the larger": together_s / max(decoding_s, generation_s),
        "ratio to the sum": together_s / (decoding_s + generation_s),
    }


def main() -> None:
    """Count operations, or time overlapped decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, help="folder that has " + ", ".join(CLIPS))
    videos: Path | None = parser.parse_args().videos
    torch.set_num_threads(1)
    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    policy = make_policy()
    if videos is not None:
        timing = Timing()
        report("s2d_overlap", [overlap(policy, videos, timing)], **asdict(timing))
        return
    with tempfile.TemporaryDirectory() as folder:
        annotations = make_dataset(Path(folder), NUM_VIDEOS, seed=11)
        questions = VideoR1Reader(str(annotations)).read()
        cases = [(56, UniformSampler()), (112, UniformSampler()), (112, NestedPairSampler(16))]
        rows = [count(policy, questions, side, sampler) for side, sampler in cases]
    report("s2d", rows, sampling=[asdict(s) for s in SAMPLING], max_new_tokens=MAX_NEW_TOKENS)


if __name__ == "__main__":
    main()
