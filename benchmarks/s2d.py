"""Sparse-to-dense prediction: what sharing and early stops save, and what overlapped decoding does.

``python -m benchmarks.s2d`` asks a small model whose completions differ in length about synthetic
videos, three times with the same seeds: as the published evaluation does it (every one of the M
samples encodes the video and the prompt again, and is generated to its end), with `SparseToDense`
without its early stop, and with it. All answers must be the same; the operations are counted by
torch.

``python -m benchmarks.s2d --videos folder`` times runs on real clips instead, in batches of one
question and of four, against decoding alone and generation alone.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, Trainer
from transformers.utils.logging import disable_progress_bar

from benchmarks.common import engine_of, report
from benchmarks.operations import operations
from benchmarks.s2d_model import KINDS, LEVELS, load_policy, talkative_policy
from vrts.answers import parse_answer
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.data.datamodule import VideoQADataModule
from vrts.data.readers.base import Reader
from vrts.data.readers.video_rts import VideoR1Reader
from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import WHOLE, FrameSampler, NestedPairSampler, UniformSampler, Window
from vrts.data.video.resolution import Resolution
from vrts.demo.videos import make_dataset
from vrts.models.engines.engine import Engine, Request
from vrts.models.engines.sampling import row_seed
from vrts.models.module import VideoQAModule
from vrts.models.policy import Policy
from vrts.types import Clip, Prediction, Question, Sample, SamplingParams
from vrts.voting import agreement, majority

CPU = torch.device("cpu")
CLIPS = ("nasa_13013.mp4", "flipping_a_pancake.mkv", "odd_size_vp9.mp4", "nasa_13013_hdr.mp4")
NUM_VIDEOS, MAX_NEW_TOKENS, SIDE, SEED = 7, 64, 112, 0
VIDEO_RTS = [
    SamplingParams(0.8 + 0.15 * i, min(0.95, 0.7 + 0.05 * i), 50, 0.4, 0.2, ("</answer>",))
    for i in range(5)
]
"""Each answer less cautious than the one before: most questions of so small a model go on."""
CAUTIOUS = [SamplingParams(0.3, stop=("</answer>",))] * 5
"""All five answers at a low temperature."""


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
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip at once."""
        return self.clips[path, num_frames]


def make_data(questions: Sequence[Question], side: int, **options: Any) -> VideoQADataModule:
    """Make a data module for frames of about `side` pixels a side."""
    resolution = Resolution(min_pixels=side * side, max_pixels=side * side)
    return VideoQADataModule(predict=Given(questions), resolution=resolution, **options)


def predict(
    policy: Policy,
    data: VideoQADataModule,
    densifier: SparseToDense,
    max_new_tokens: int = MAX_NEW_TOKENS,
    engine: Engine | None = None,
) -> dict[str, Prediction]:
    """Run `SparseToDense`; predictions by question."""
    module = VideoQAModule(policy, engine, max_new_tokens=max_new_tokens, seed=SEED)
    callbacks: list[Callback] = [densifier]
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
    )  # fmt: skip
    batches = cast(list[list[Prediction]], trainer.predict(module, datamodule=data))
    return {p.question.id: replace(p, clip=None) for batch in batches for p in batch}


def published(
    policy: Policy, data: VideoQADataModule, sampling: Sequence[SamplingParams]
) -> dict[str, tuple[str | None, int]]:
    """Ask as the published evaluation script does; answers and frames by question."""
    engine = engine_of(policy, CPU)
    found: dict[str, tuple[str | None, int]] = {}
    for question in data.questions("predict"):
        for level in LEVELS:
            (sample,) = data.load([question], level)
            answers = [ask_once(engine, sample, m, one) for m, one in enumerate(sampling)]
            if agreement(answers) == 1:
                break
        found[question.id] = (majority(answers), level)
    return found


def ask_once(engine: Engine, sample: Sample, m: int, sampling: SamplingParams) -> str | None:
    """One answer, by a vision pass, a prefill and a generation of its own."""
    assert sample.clip is not None
    (prompt,) = engine.encode([sample])
    seed = row_seed(SEED, sample.question.id, sample.clip.num_frames, m)
    (result,) = engine.generate([Request(prompt, (sampling,), (seed,), MAX_NEW_TOKENS)])
    return parse_answer(result.completions[0].text, sample.question)


def count(
    policy: Policy,
    questions: Sequence[Question],
    sampler: FrameSampler,
    sampling: list[SamplingParams],
    name: str,
) -> dict[str, Any]:
    """Compare the operations of the procedures on the same questions.

    Args:
        policy: is asked.
        questions: what.
        sampler: chooses the frames.
        sampling: M of them.
        name: of the sampling.

    Raises:
        RuntimeError: an answer differs, which would make the comparison void.
    """
    data = make_data(questions, SIDE, sampler=sampler, num_workers=0, eval_batch_size=4)
    data.setup("predict")
    expected: dict[str, tuple[str | None, int]] = {}
    theirs = operations(lambda: expected.update(published(policy, data, sampling)))
    found: dict[bool, dict[str, Prediction]] = {}

    def ours(early_stop: bool) -> None:
        densifier = SparseToDense(list(LEVELS), sampling=sampling, early_stop=early_stop)
        found[early_stop] = predict(policy, data, densifier)

    ours_by_stop = {stop: operations(partial(ours, stop)) for stop in (False, True)}
    for early_stop, predictions in found.items():
        answers = {id: (p.answer, p.num_frames) for id, p in predictions.items()}
        if different := [id for id in expected if answers.get(id) != expected[id]]:
            raise RuntimeError(f"early_stop={early_stop}: other answers to {different}")
    rounds = {stop: [r for p in found[stop].values() for r in p.rounds] for stop in found}
    levels = [T for _, T in expected.values()]
    tokens = {stop: sum(n for r in rounds[stop] for n in r.num_tokens) for stop in rounds}
    lengths = torch.tensor([n for r in rounds[False] for n in r.num_tokens], dtype=torch.float32)
    return {
        "frames": "/".join(map(str, LEVELS)),
        "decided at": "/".join(str(levels.count(level)) for level in LEVELS),
        "sampler": type(sampler).__name__,
        "sampling": name,
        "questions": len(questions),
        "same answers": len(expected),
        "tokens": f"{lengths.mean():.0f} ± {lengths.std():.0f}",
        "completions cancelled": sum(sum(r.cancelled) for r in rounds[True]) / len(lengths),
        "tokens cancelled": 1 - tokens[True] / tokens[False],
        "published GFLOP": theirs / 1e9,
        "ratio, sharing only": ours_by_stop[False] / theirs,
        "ratio": ours_by_stop[True] / theirs,
    }


@dataclass(frozen=True, slots=True)
class Timing:
    """A prediction run on real clips."""

    side: int = 112
    levels: tuple[int, ...] = (8, 16, 32)
    num_questions: int = 72
    max_new_tokens: int = 48
    num_workers: int = 1
    eval_batch_size: int = 1


def overlap(policy: Policy, questions: Sequence[Question], timing: Timing) -> dict[str, Any]:
    """Time a run, the decoding that it needs, and its generation with all clips at hand."""
    levels = list(timing.levels)

    def run(**options: Any) -> tuple[float, dict[str, Prediction]]:
        batch = timing.eval_batch_size
        data = make_data(questions, timing.side, eval_batch_size=batch, **options)
        data.load(questions[-1:], 2)  # starting a worker takes seconds, once a run
        densifier = SparseToDense(levels, sampling=VIDEO_RTS)
        start_s = time.perf_counter()
        found = predict(policy, data, densifier, timing.max_new_tokens)
        return time.perf_counter() - start_s, found

    together_s, found = run(num_workers=timing.num_workers)
    needed = [(p.question, levels[n]) for p in found.values() for n in range(len(p.rounds))]
    data = make_data(questions, timing.side, num_workers=timing.num_workers)
    data.load(questions[-1:], 2)
    start_s = time.perf_counter()
    futures = [(q, level, data.submit([q], level)[0]) for q, level in needed]
    samples = {(q.video, level): future.result() for q, level, future in futures}
    decoding_s = time.perf_counter() - start_s
    every = {(p, level): c for (p, level), s in samples.items() if (c := s.clip) is not None}
    every[questions[-1].video, 2] = every[questions[-1].video, levels[0]]  # of the start
    data.close()
    generation_s, again = run(num_workers=0, decoder=InMemory(every))
    if again != found:
        raise RuntimeError("other answers with clips at hand")
    return {
        "batch": timing.eval_batch_size,
        "questions": len(questions),
        "rounds": len(needed),
        "decoding s": decoding_s,
        "generation s": generation_s,
        "together s": together_s,
        "ratio to the larger": together_s / max(decoding_s, generation_s),
        "ratio to the sum": together_s / (decoding_s + generation_s),
    }


def link_clips(videos: Path, folder: Path, count: int) -> list[Question]:
    """Questions about as many videos, each of a name of its own: all of them are decoded.

    Args:
        videos: folder that has `CLIPS`.
        folder: gets the links.
        count: how many.
    """
    questions = []
    for i in range(count):
        clip = videos / CLIPS[i % len(CLIPS)]
        link = folder / f"{i}{clip.suffix}"
        link.symlink_to(clip.resolve())
        options = ("red", "blue", "green")
        questions.append(Question(f"q{i}", "What colour is the flash?", str(link), options=options))
    return questions


def main() -> None:
    """Count operations, or time overlapped decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, help="folder that has " + ", ".join(CLIPS))
    videos: Path | None = parser.parse_args().videos
    torch.set_num_threads(1)
    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if videos is not None:
            time_overlap(videos, Path(folder))
            return
        annotations = make_dataset(Path(folder), NUM_VIDEOS, 11, KINDS)
        questions = VideoR1Reader(str(annotations)).read()
        policy = talkative_policy()
        rows = [
            count(policy, questions, UniformSampler(), VIDEO_RTS, "Video-RTS"),
            count(policy, questions, NestedPairSampler(LEVELS[-1]), CAUTIOUS, "cautious"),
        ]
    samplings = {"Video-RTS": VIDEO_RTS, "cautious": CAUTIOUS}
    plain = {name: [asdict(s) for s in sampling] for name, sampling in samplings.items()}
    report("s2d", rows, sampling=plain, max_new_tokens=MAX_NEW_TOKENS, side=SIDE)


def time_overlap(videos: Path, folder: Path) -> None:
    """Time batches of one question and of four."""
    timing = Timing()
    policy = load_policy()
    questions = link_clips(videos, folder, timing.num_questions)
    warm = make_data(questions[:4], timing.side, num_workers=0)
    predict(policy, warm, SparseToDense(list(timing.levels), sampling=VIDEO_RTS))
    rows = [overlap(policy, questions, replace(timing, eval_batch_size=size)) for size in (1, 4)]
    report("s2d_overlap", rows, **asdict(timing))


if __name__ == "__main__":
    main()
