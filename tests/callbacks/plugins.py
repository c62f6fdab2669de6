"""Plug-ins of prediction and training runs on the tiny model; decode workers can import them."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vrts.data.pyav_decoder import PyAVDecoder
from vrts.data.readers import Reader
from vrts.data.sampling import UniformSampler
from vrts.data.windows import WHOLE
from vrts.models.policy import Policy, Prompts, Scores, StopEarly
from vrts.models.rewards import Reward
from vrts.types import Completion, Question, Rollout, Sample, Sampling, VideoError

OPTIONS = ("red", "green", "blue")

Script = Mapping[str, Mapping[int, str]]
"""What to answer: by question and number of frames one character for each completion, a letter or
``-`` for a text without an answer."""


def completion(answer: str) -> str:
    """The text that gives an answer of a script."""
    if answer == "-":
        return "<think>I see nothing.</think>"
    return f"<think>I see it.</think><answer>{answer}</answer>"


@dataclass(frozen=True, slots=True)
class ScriptedPrompts(Prompts):
    num_frames: tuple[int, ...]


class ScriptedPolicy(Policy):
    """Answers by a script, and keeps what it was asked.

    Args:
        script: what to answer; questions and numbers of frames that are not in it get "A".
        most_frames: clips with more are refused, as prompts that are too long are.
        stop_after: so many rollouts are answered; before a further one the process gets `signal`.
        one_by_one: completions end one after the other, in an order that depends on their seeds,
            so that an early stop has something to give up; otherwise all end at the same time.
        signal: SIGINT raises KeyboardInterrupt here, SIGKILL ends the process.
    """

    def __init__(
        self,
        script: Script | None = None,
        most_frames: int = 1000,
        stop_after: int | None = None,
        one_by_one: bool = False,
        signal: int = signal.SIGINT,
    ) -> None:
        super().__init__()
        self.script = script or {}
        self.most_frames = most_frames
        self.stop_after = stop_after
        self.one_by_one = one_by_one
        self.signal = signal
        self.asked: list[list[tuple[str, int]]] = []
        """Questions and numbers of frames of each rollout."""
        self.sampling: list[tuple[Sampling, ...]] = []
        """How each was sampled."""
        self.autocast: list[bool] = []
        """Whether each rollout was under autocast."""

    @property
    def loaded(self) -> bool:
        return True

    def load(self) -> None:
        pass

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        assert sample.clip is not None
        if sample.clip.num_frames <= self.most_frames:
            return None
        return f"question {sample.question.id}: {sample.clip.num_frames} frames are too many"

    def encode(
        self, samples: Sequence[Sample], max_new_tokens: int, known: Prompts | None = None
    ) -> ScriptedPrompts:
        assert samples
        assert all(self.refuses(sample, max_new_tokens) is None for sample in samples)
        num_frames = tuple(s.clip.num_frames for s in samples if s.clip is not None)
        return ScriptedPrompts(tuple(s.question for s in samples), num_frames)

    def rollout(
        self,
        prompts: Prompts,
        sampling: Sequence[Sampling],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_early: StopEarly | None = None,
    ) -> Rollout:
        assert isinstance(prompts, ScriptedPrompts)
        if len(self.asked) == self.stop_after:
            os.kill(os.getpid(), self.signal)
        asked = [(q.id, T) for q, T in zip(prompts.questions, prompts.num_frames, strict=True)]
        self.asked.append(asked)
        self.sampling.append(tuple(sampling))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        M = len(sampling)
        answers = [self.script.get(id, {}).get(T, "A" * M) for id, T in asked]
        assert all(len(answer) == M for answer in answers), answers
        texts = tuple(completion(letter) for answer in answers for letter in answer)
        N = len(texts)
        assert len(set(seeds)) == len(seeds) == N
        # no two completions are equally likely
        logprobs = -torch.tensor([seed % 997 for seed in seeds])[:, None] / 997
        finished = torch.ones(N, dtype=torch.bool)
        if stop_early is not None and self.one_by_one:
            for b in range(len(asked)):
                self._end_one_by_one(b, M, seeds, texts, logprobs, finished, stop_early)
        return Rollout(
            completion_ids=torch.zeros(N, 1, dtype=torch.int64),
            completion_mask=torch.ones(N, 1, dtype=torch.bool),
            logprobs=logprobs,
            finished=finished,
            texts=texts,
            abandoned=None if stop_early is None else ~finished,
        )

    @staticmethod
    def _end_one_by_one(b, M, seeds, texts, logprobs, finished, stop_early) -> None:
        """Tell of one question's completions until the rest is given up."""
        finished[b * M : (b + 1) * M] = False
        said: list[str | None] = [None] * M
        means = [0.0] * M
        for m in sorted(range(M), key=lambda m: seeds[b * M + m]):
            row = b * M + m
            said[m], means[m], finished[row] = texts[row], round(float(logprobs[row]), 4), True
            if None in said and stop_early(b, said, means):
                break

    def score(self, prompts: Prompts, rollout: Rollout, temperature: float) -> Scores:
        raise NotImplementedError("a script is not trained")

    def adapter_disabled(self) -> AbstractContextManager[None]:
        raise NotImplementedError("a script has no adapter")

    def save_pretrained(self, folder: Path) -> None:
        raise NotImplementedError("a script has no weights")

    def fingerprint(self) -> dict[str, Any]:
        return {"policy": "ScriptedPolicy"}


class QuestionList(Reader):
    """Questions that are at hand."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = list(questions)

    def read(self) -> list[Question]:
        return self._questions


def ask(id: str, video: str, answer: str | None = "A") -> Question:
    """A multiple choice question; its words depend on its id, so that prompts differ in length."""
    return Question(id, f"What colour {'very ' * (len(id) % 3)}{id}?", video, options=OPTIONS,
                    answer=answer)  # fmt: skip


class FragileDecoder(PyAVDecoder):
    """The usual decoder; a video of the name ``fragile`` fails above 4 frames."""

    def decode(self, path, num_frames, sampler, resolution, window=WHOLE):
        if Path(path).stem == "fragile" and num_frames > 4:
            raise VideoError(f"{path}: frame 5 is damaged")
        return super().decode(path, num_frames, sampler, resolution, window)


class SlowDecoder(FragileDecoder):
    """Takes a while for each video.

    Args:
        seconds: to sleep.
    """

    def __init__(self, seconds: float = 0.5) -> None:
        super().__init__()
        self.seconds = seconds

    def decode(self, *args, **kwargs):
        time.sleep(self.seconds)
        return super().decode(*args, **kwargs)


class MarkingDecoder(FragileDecoder):
    """Leaves a file ``<number of frames>-<stem of the video>`` behind for each clip it begins.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def decode(self, path, num_frames, sampler, resolution, window=WHOLE):
        (Path(self.folder) / f"{num_frames}-{Path(path).stem}").touch()
        return super().decode(path, num_frames, sampler, resolution, window)


class AtMostFour(UniformSampler):
    """Finds no more than four frames, as where a question's time window ends early."""

    def indices(self, num_source_frames, num_frames, fps):
        return super().indices(num_source_frames, min(num_frames, 4), fps)


class TextReward(Reward):
    """Something that differs between completions of a random model: a checksum from 0 to 1."""

    @property
    def name(self) -> str:
        return "text"

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        return [sum(map(ord, completion.text)) % 7 / 6 for completion in completions]
