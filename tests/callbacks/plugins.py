"""Plug-ins of prediction and training runs on the tiny model; decode workers can import them."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tests.models.scripted_engine import ScriptedEngine, ScriptedPrompt
from vrts.data.readers.base import Reader
from vrts.data.video.frames import WHOLE, UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.models.engines.engine import Engine, Request
from vrts.models.policy import Policy, Prompt, TokenLogprobs
from vrts.models.rewards import Reward
from vrts.types import Completion, Question, Sample, SamplingParams, VideoError

OPTIONS = ("red", "green", "blue")

Script = Mapping[str, Mapping[int, str]]
"""What to answer: by question and number of frames one character for each completion, a letter or
``-`` for a text without an answer."""


def completion(answer: str) -> str:
    """The text that gives an answer of a script."""
    if answer == "-":
        return "<think>I see nothing.</think>"
    return f"<think>I see it.</think><answer>{answer}</answer>"


class ScriptedPolicy(Policy):
    """Answers by a script, one question at a time, and keeps what it was asked.

    Args:
        script: what to answer; questions and numbers of frames that are not in it get "A".
        most_frames: clips with more are refused, as prompts that are too long are.
        stop_after: so many requests are answered; at a further one the process gets `signal`.
        one_by_one: completions end one after the other, in an order that depends on their seeds,
            so that an early stop has something to cancel; otherwise all end at the same time.
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
        self.asked: list[tuple[str, int]] = []
        """Question and number of frames of each request."""
        self.sampling: list[tuple[SamplingParams, ...]] = []
        """How each was sampled."""
        self.autocast: list[bool] = []
        """Whether each was under autocast."""

    @property
    def loaded(self) -> bool:
        return True

    def load(self) -> None:
        pass

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        assert sample.clip is not None
        if sample.clip.num_frames <= self.most_frames:
            return None
        return f"{sample.clip.num_frames} frames are too many"

    def default_engine(self) -> Engine:
        return PolicyScript(self)

    def take(self, request: Request) -> None:
        """Note a request that is about to be answered."""
        assert isinstance(request.prompt, ScriptedPrompt)
        if len(self.asked) == self.stop_after:
            os.kill(os.getpid(), self.signal)
        self.asked.append((request.prompt.question.id, request.prompt.num_frames))
        self.sampling.append(request.sampling)
        self.autocast.append(torch.is_autocast_enabled("cpu"))

    def text(self, id: str, num_frames: int, m: int) -> str:
        answers = self.script.get(id, {}).get(num_frames)
        return completion("A" if answers is None else answers[m])

    def length(self, m: int, seeds: Sequence[int]) -> int:
        return 1 + sorted(seeds).index(seeds[m]) if self.one_by_one else 1

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> TokenLogprobs:
        raise NotImplementedError("a script is not trained")

    def adapter_disabled(self) -> AbstractContextManager[None]:
        raise NotImplementedError("a script has no adapter")

    def save_pretrained(self, folder: Path) -> None:
        raise NotImplementedError("a script has no weights")

    def fingerprint(self) -> dict[str, Any]:
        return {"policy": "ScriptedPolicy"}


class PolicyScript(ScriptedEngine):
    """Samples from a policy that answers by a script: its requests one after the other."""

    def __init__(self, policy: ScriptedPolicy) -> None:
        super().__init__(policy.text, num_rows=1, length=policy.length)
        self._policy = policy

    def add(self, request: Request) -> None:
        self._policy.take(request)
        super().add(request)


class QuestionList(Reader):
    """Questions that are at hand."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = list(questions)

    def read(self) -> list[Question]:
        return self._questions


def ask(id: str, video: str, answer: str | None = "A") -> Question:
    """A multiple choice question; its words depend on its id, so that prompts differ in length."""
    return Question(id, f"What colour {'very ' * (len(id) % 3)}{id}?", video, options=OPTIONS,
                    gold=answer)  # fmt: skip


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
