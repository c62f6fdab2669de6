"""A policy without a model, and the engine that repeats what an earlier run recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.files.fingerprints import file_digest
from vrts.files.predictions import SETTINGS_NAME, StoredPredictions
from vrts.models.engines.engine import Engine, Request, Result
from vrts.models.policy import Policy, Prompt, TokenLogprobs
from vrts.types import (
    Clip,
    Completion,
    InputError,
    Question,
    Round,
    Sample,
)

REQUESTS_AT_ONCE = 64
"""Whose texts are in memory."""


class Recording:
    """A ``predictions.jsonl`` with the ``settings.json`` beside it.

    Args:
        path: of the former.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._levels: list[int] = []
        self._stored: StoredPredictions | None = None

    @property
    def is_read(self) -> bool:
        """Whether `read` has been called."""
        return self._stored is not None

    def read(self) -> None:
        """Read both files.

        Raises:
            InputError: one is missing or is not what ``vrts predict`` writes.
        """
        self._levels = _read_levels(self.path.with_name(SETTINGS_NAME))
        try:
            self._stored = StoredPredictions(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def warning(self) -> str | None:
        """What a replay is to know of the recording beforehand, if anything."""
        assert self._stored is not None
        if not self._stored.num_cut_short:
            return None
        return (
            f"{self.path}: {self._stored.num_cut_short} of {len(self._stored)} questions have "
            "completions that an early stop cancelled; those whose vote needs them here fail by "
            "name. For any vote record with --config configs/record.yaml after the others"
        )

    def find(self, id: str, num_frames: int) -> Round | str:
        """The round of a question at a number of frames asked for, or why there is none.

        A round that saw fewer frames than were asked for is its video's last.
        """
        assert self._stored is not None
        prediction = self._stored.get(id)
        if prediction is None:
            return f"{self.path}: question {id} is not recorded; predict it with the model first"
        rounds = prediction.rounds
        for found, asked in zip(rounds, self._levels, strict=False):
            is_last = found.is_last or found.num_frames < asked
            if found.num_frames == num_frames or (is_last and found.num_frames < num_frames):
                return replace(found, is_last=is_last)
        failed_here = self._levels[len(rounds) : len(rounds) + 1] == [num_frames]
        if prediction.error is not None and (failed_here or not rounds):
            return prediction.error
        return (
            f"{self.path}: question {id} is recorded at {[r.num_frames for r in rounds]} frames "
            f"and not at {num_frames}; predict it at that level with the model first"
        )

    def checksum(self) -> str:
        """SHA-256 of the file.

        Raises:
            InputError: it cannot be read.
        """
        try:
            return file_digest(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(
            f"model.policy.path: cannot read {self.path} ({error.strerror}); give the "
            "predictions.jsonl of an earlier run"
        )


@dataclass(frozen=True, slots=True)
class ReplayPrompt(Prompt):
    """Which recorded round is asked for."""

    found: Round

    @property
    def num_tokens(self) -> int:
        """0: nothing is encoded."""
        return 0


class ReplayEngine(Engine):
    """Gives the recorded completions, the first G of each question; tokens are blank.

    Fewer that were recorded, and cancelled ones that are needed, are an error of the question.

    Args:
        recording: that was read.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._requests: list[Request] = []

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """Do nothing: the recording is the policy's."""

    def sync(self, policy: Policy) -> None:
        """Do nothing: a recording does not change."""

    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """Look up the recorded rounds; what is known of earlier ones saves nothing here.

        Raises:
            InputError: one is not recorded.
        """
        prompts: list[Prompt] = []
        for sample in samples:
            assert sample.clip is not None
            found = self._recording.find(sample.question.id, sample.clip.num_frames)
            if isinstance(found, str):
                raise InputError(found)
            prompts.append(ReplayPrompt(sample.question, found))
        return prompts

    def has_room(self) -> bool:
        """Whether there are not too many texts in memory."""
        return len(self._requests) < REQUESTS_AT_ONCE

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._requests.append(request)

    @property
    def num_pending(self) -> int:
        """Requests that were added and have not come out."""
        return len(self._requests)

    def step(self) -> list[Result]:
        """Give everything that was asked for."""
        results = [self._replay(request) for request in self._requests]
        self._requests = []
        return results

    def cancel(self) -> None:
        """Drop all that is pending."""
        self._requests = []

    def release(self) -> None:
        """Do nothing: nothing is kept."""

    def _replay(self, request: Request) -> Result:
        assert isinstance(request.prompt, ReplayPrompt)
        error = self._lacks(request, request.prompt)
        if error is not None:
            return Result(request, (), error)
        found = request.prompt.found
        G = len(request.sampling)
        means = found.mean_logprobs or (None,) * len(found.completions)
        rows = zip(found.completions, found.num_tokens, means, found.cancelled, strict=True)
        return Result(
            request,
            tuple(
                Completion(
                    text,
                    num_tokens,
                    request.max_new_tokens,
                    finished=not gone,
                    # every token has the mean, so that their mean is the recorded one again
                    logprobs=None
                    if mean is None
                    else torch.full((num_tokens,), mean, dtype=torch.float64, device="cpu"),
                    cancelled=gone,
                )
                for text, num_tokens, mean, gone in islice(rows, G)
            ),
        )

    def _lacks(self, request: Request, prompt: ReplayPrompt) -> str | None:
        """Which of the completions that are needed were not recorded, or None."""
        found, G = prompt.found, len(request.sampling)
        where = (
            f"{self._recording.path}: question {prompt.question.id} at {found.num_frames} frames"
        )
        if len(found.completions) < G:
            return (
                f"{where} has {len(found.completions)} completions, and {G} are asked for; "
                "give SparseToDense.num_samples no more than were recorded"
            )
        gone = found.cancelled[:G]
        known = [None if g else text for text, g in zip(found.completions, gone, strict=False)]
        stop = request.should_stop
        if any(gone) and (stop is None or not stop(known, found.mean_logprobs[:G])):
            return (
                f"{where} lacks {sum(gone)} of {G} completions, which an early stop cancelled and "
                "this vote needs; record the run with configs/record.yaml for any vote"
            )
        return None


class ReplayPolicy(Policy):
    """Takes completions of an earlier ``predictions.jsonl`` in place of a model.

    Another vote, threshold, extractor or set of levels is scored in seconds, without a GPU and
    without videos: the callback `vrts.callbacks.Replay` has samples made by `sample`.
    A round is found by its question and its number of frames; where a video has fewer frames than
    were asked for, the recorded run knows it. With fewer samples than recorded, the first ones are
    taken. Completions that an early stop cancelled are cancelled again where the replay's own stop
    says so. Where one is needed, or more samples than were recorded, the question fails by name.

    Args:
        path: ``predictions.jsonl``, with the run's ``settings.json`` beside it.
    """

    is_recorded = True

    def __init__(self, path: str) -> None:
        super().__init__()
        self._recording = Recording(Path(path))

    @property
    def loaded(self) -> bool:
        """Whether `load` has been called."""
        return self._recording.is_read

    def load(self) -> None:
        """Read what was recorded. Does nothing when called again.

        Raises:
            InputError: a file is missing or is not what ``vrts predict`` writes.
        """
        if not self._recording.is_read:
            self._recording.read()
            if warning := self._recording.warning():
                rank_zero_warn(warning)

    def train(self, mode: bool = True) -> Self:
        """Be in evaluation mode, the only one there is.

        Raises:
            InputError: training is asked for.
        """
        if mode:
            self._refuse()
        return super().train(mode)

    def sample(self, question: Question, num_frames: int) -> Sample:
        """Make a sample whose clip has as many frames as the recorded run saw, and no pixels.

        Args:
            question: to ask again.
            num_frames: that are asked for.

        Returns:
            The sample, with an error where the recorded run failed here too, or where what is
            needed is not recorded.
        """
        found = self._recording.find(question.id, num_frames)
        if isinstance(found, str):
            return Sample(question, error=found)
        T = found.num_frames
        frames = torch.zeros(T, 3, 0, 0, dtype=torch.uint8, device="cpu")
        indices = tuple(range(T))
        # more source frames than were seen say that a denser level would have some to show
        num_source_frames = T if found.is_last else 2 * T
        clip = Clip(frames, indices, 1.0, num_source_frames, found.times_s, found.num_damaged)
        return Sample(question, clip)

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        """Why a sample cannot be answered: its round is not recorded."""
        assert sample.clip is not None
        found = self._recording.find(sample.question.id, sample.clip.num_frames)
        return found if isinstance(found, str) else None

    def default_engine(self) -> ReplayEngine:
        """Return the engine that gives what was recorded."""
        return ReplayEngine(self._recording)

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> TokenLogprobs:
        """Refuse; raises `InputError`."""
        self._refuse()

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Refuse; raises `InputError`."""
        self._refuse()

    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
        """Refuse; raises `InputError`."""
        self._refuse()

    def fingerprint(self) -> dict[str, Any]:
        """Which predictions are replayed: a checksum of the file's content."""
        return {"policy": "ReplayPolicy", "replayed": self._recording.checksum()}

    def _refuse(self) -> NoReturn:
        raise InputError(
            "ReplayPolicy holds recorded completions and no weights: it predicts, and cannot be "
            "trained or exported; give model.policy a model"
        )


def _read_levels(path: Path) -> list[int]:
    """Frames that a run asked for in each round.

    Raises:
        InputError: the file is missing or is not what ``vrts predict`` writes.
    """
    try:
        levels = [int(level) for level in json.loads(path.read_text(encoding="utf-8"))["levels"]]
        if not levels:
            raise ValueError("levels is empty")
        return levels
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot read what the recorded run asked for ({error!r}); keep this file "
            "beside its predictions.jsonl"
        ) from error
