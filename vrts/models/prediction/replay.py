"""A policy without a model, and the engine that repeats what an earlier run recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.files.fingerprints import file_digest
from vrts.files.predictions import SETTINGS_NAME, StoredPredictions
from vrts.models.engines.engine import Engine, Request, Result
from vrts.models.policy import Policy, Prompt, WeightlessPolicy
from vrts.types import Clip, Completion, InputError, Question, Round, Sample

REQUESTS_AT_ONCE = 64
"""Requests whose texts are in memory."""


@dataclass(frozen=True, slots=True)
class ReplayPrompt(Prompt):
    """The recorded round that is replayed."""

    found: Round

    @property
    def num_tokens(self) -> int:
        """0: nothing is encoded."""
        return 0


class ReplayEngine(Engine):
    """Returns the recorded completions, the first G of each question; their tokens are not known.

    A question fails if fewer were recorded, or if one that is needed was cancelled.
    """

    def __init__(self, policy: ReplayPolicy) -> None:
        self._policy = policy
        self._requests: list[Request] = []

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """Do nothing: there are no weights."""

    def sync(self, policy: Policy) -> None:
        """Do nothing: a recording does not change."""

    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """Look up the recorded rounds; raises `InputError` if one is missing."""
        prompts: list[Prompt] = []
        for sample in samples:
            assert sample.clip is not None
            found = self._policy.find(sample.question.id, sample.clip.num_frames)
            if isinstance(found, str):
                raise InputError(found)
            prompts.append(ReplayPrompt(sample.question, found))
        return prompts

    def has_room(self) -> bool:
        """Whether there are fewer than `REQUESTS_AT_ONCE` requests."""
        return len(self._requests) < REQUESTS_AT_ONCE

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._requests.append(request)

    @property
    def num_pending(self) -> int:
        """Requests that were added and have not come out."""
        return len(self._requests)

    def step(self) -> list[Result]:
        """Return the results of all requests."""
        results = [self._replay(request) for request in self._requests]
        self._requests = []
        return results

    def cancel(self) -> None:
        """Drop all requests."""
        self._requests = []

    def release(self) -> None:
        """Do nothing: nothing is kept."""

    def _replay(self, request: Request) -> Result:
        assert isinstance(request.prompt, ReplayPrompt)
        error = self._missing(request, request.prompt)
        if error is not None:
            return Result(request, (), error)
        found = request.prompt.found
        means = found.mean_logprobs or (None,) * len(found.completions)
        rows = zip(found.completions, found.num_tokens, means, found.cancelled, strict=True)
        return Result(
            request,
            tuple(
                Completion(
                    text,
                    num_tokens,
                    request.max_new_tokens,
                    finished=not cancelled,
                    # each token gets the recorded mean, so that this is their mean again
                    logprobs=None
                    if mean is None
                    else torch.full((num_tokens,), mean, dtype=torch.float64, device="cpu"),
                    cancelled=cancelled,
                )
                for text, num_tokens, mean, cancelled in islice(rows, len(request.sampling))
            ),
        )

    def _missing(self, request: Request, prompt: ReplayPrompt) -> str | None:
        """Which of the G completions are needed and were not recorded, or None."""
        found, G = prompt.found, len(request.sampling)
        where = f"{self._policy.path}: the round at {found.num_frames} frames"
        if len(found.completions) < G:
            return (
                f"{where} has {len(found.completions)} completions, and {G} are asked for; "
                "give SparseToDense.num_samples no more than were recorded"
            )
        cancelled = found.cancelled[:G]
        known = [None if c else text for text, c in zip(found.completions, cancelled, strict=False)]
        stop = request.should_stop
        if any(cancelled) and (stop is None or not stop(known, found.mean_logprobs[:G])):
            return (
                f"{where} lacks {sum(cancelled)} of {G} completions, which an early stop cancelled "
                "and this vote needs; record the run with configs/record.yaml for any vote"
            )
        return None


class ReplayPolicy(WeightlessPolicy):
    """Takes completions of an earlier ``predictions.jsonl`` in place of a model.

    It scores another vote, threshold, extractor or set of levels in seconds, without a GPU and
    without videos; the callback `vrts.callbacks.Replay` has samples made by `sample`. A round is
    found by its question and its number of frames. With fewer samples than recorded, the first ones
    are taken. Completions that an early stop cancelled are cancelled again if the replay's own stop
    agrees. If one is needed, or more samples than were recorded, the question fails with an error.

    Args:
        path: ``predictions.jsonl``, with the run's ``settings.json`` next to it.
    """

    no_weights = (
        "holds recorded completions and no weights: it predicts, and cannot be trained or "
        "exported; give model.policy a model"
    )

    is_recorded = True

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._levels: list[int] = []
        self._stored: StoredPredictions | None = None

    @property
    def loaded(self) -> bool:
        """Whether `load` has been called."""
        return self._stored is not None

    def load(self) -> None:
        """Read the recording, once.

        Raises:
            InputError: one of its files is missing or is not what ``vrts predict`` writes.
        """
        if self.loaded:
            return
        self._levels = _read_levels(self.path.with_name(SETTINGS_NAME))
        try:
            self._stored = StoredPredictions(self.path)
        except OSError as error:
            raise self._unreadable(error) from error
        if cancelled := self._stored.num_cut_short:
            rank_zero_warn(
                f"{self.path}: {cancelled} of {len(self._stored)} questions have completions that "
                "an early stop cancelled; questions whose vote needs them will fail. To replay "
                "any vote, record with --config configs/record.yaml after the others"
            )

    def find(self, id: str, num_frames: int) -> Round | str:
        """Return the round of a question at a level of so many frames, or why there is none.

        A round with fewer frames than its level is the last one of its video.
        """
        assert self._stored is not None
        prediction = self._stored.get(id)
        if prediction is None:
            return f"{self.path}: the question is not recorded; predict it with the model first"
        rounds = prediction.rounds
        for found, level in zip(rounds, self._levels, strict=False):
            is_last = found.is_last or found.num_frames < level
            if found.num_frames == num_frames or (is_last and found.num_frames < num_frames):
                return replace(found, is_last=is_last)
        failed_here = self._levels[len(rounds) : len(rounds) + 1] == [num_frames]
        if prediction.error is not None and (failed_here or not rounds):
            return prediction.error
        return (
            f"{self.path}: the question is recorded at {[r.num_frames for r in rounds]} frames and "
            f"not at {num_frames}; predict it at that level with the model first"
        )

    def sample(self, question: Question, num_frames: int) -> Sample:
        """Make a sample whose clip has as many frames as the recorded run saw, and no pixels.

        It has an error if the recorded run failed at a level of so many frames or lacks it.
        """
        found = self.find(question.id, num_frames)
        if isinstance(found, str):
            return Sample(question, error=found)
        T = found.num_frames
        frames = torch.zeros(T, 3, 0, 0, dtype=torch.uint8, device="cpu")
        # more source frames than were seen: a denser level has some to show
        num_source_frames = T if found.is_last else 2 * T
        indices = tuple(range(T))
        clip = Clip(frames, indices, 1.0, num_source_frames, found.times_s, found.num_damaged)
        return Sample(question, clip)

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        """Why a sample cannot be replayed: its round is not recorded."""
        assert sample.clip is not None
        found = self.find(sample.question.id, sample.clip.num_frames)
        return found if isinstance(found, str) else None

    def default_engine(self) -> ReplayEngine:
        """Return the engine that replays the recording."""
        return ReplayEngine(self)

    def fingerprint(self) -> dict[str, Any]:
        """Return a checksum of the file's content; raises `InputError` if it cannot be read."""
        try:
            return {"policy": "ReplayPolicy", "replayed": file_digest(self.path)}
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(
            f"model.policy.path: cannot read {self.path} ({error.strerror}); give the "
            "predictions.jsonl of an earlier run"
        )


def _read_levels(path: Path) -> list[int]:
    """Numbers of frames of a run's rounds; raises `InputError`."""
    try:
        levels = [int(level) for level in json.loads(path.read_text(encoding="utf-8"))["levels"]]
        if not levels:
            raise ValueError("levels is empty")
        return levels
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot read the levels of the recorded run ({error!r}); keep this file next "
            "to its predictions.jsonl"
        ) from error
