"""A policy without a model: it says again what an earlier run recorded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from vrts.models.policy import Policy, Prompts, Scores, StopEarly
from vrts.models.recording import RecordedRound, Recording
from vrts.types import Clip, InputError, Question, Rollout, Sample, Sampling


@dataclass(frozen=True, slots=True)
class ReplayPrompts(Prompts):
    """Which recorded rounds are asked for."""

    rounds: tuple[RecordedRound, ...]


class ReplayPolicy(Policy):
    """Takes completions of an earlier ``predictions.jsonl`` in place of a model.

    Another vote, threshold, extractor or set of levels is scored in seconds, without a GPU and
    without videos: the callback `vrts.callbacks.replay.Replay` has samples made by `sample`.
    A round is found by its question and its number of frames; where a video has fewer frames than
    were asked for, the recorded run knows it. With fewer samples than recorded, the first ones are
    taken. Completions that an early stop gave up are given up again where the replay's own stop
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
        frames = torch.zeros(T, 3, 0, 0, dtype=torch.uint8)
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

    def encode(
        self, samples: Sequence[Sample], max_new_tokens: int, known: Prompts | None = None
    ) -> ReplayPrompts:
        """Look up the recorded rounds; what is known of earlier ones saves nothing here.

        Raises:
            InputError: one is not recorded.
        """
        rounds = []
        for sample in samples:
            assert sample.clip is not None
            found = self._recording.find(sample.question.id, sample.clip.num_frames)
            if isinstance(found, str):
                raise InputError(found)
            rounds.append(found)
        return ReplayPrompts(tuple(s.question for s in samples), tuple(rounds))

    def rollout(
        self,
        prompts: Prompts,
        sampling: Sequence[Sampling],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_early: StopEarly | None = None,
    ) -> Rollout:
        """Give the recorded completions, the first G of each question; tokens are blank.

        Fewer that were recorded, and given up ones that are needed, are an error of the question.
        """
        assert isinstance(prompts, ReplayPrompts)
        G = len(sampling)
        errors = tuple(
            self._lacks(b, question, found, G, stop_early)
            for b, (question, found) in enumerate(
                zip(prompts.questions, prompts.rounds, strict=True)
            )
        )
        rounds = [
            found if error is None else _blank(G)
            for found, error in zip(prompts.rounds, errors, strict=True)
        ]
        lengths = torch.tensor([n for found in rounds for n in found.num_tokens[:G]])
        means = [mean for found in rounds for mean in found.mean_logprobs[:G]]
        abandoned = torch.tensor([a for found in rounds for a in found.abandoned[:G]])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Rollout(
            completion_ids=torch.zeros(mask.shape, dtype=torch.int64),
            completion_mask=mask,
            # every token has the mean, in float64, so that their mean is the recorded one again
            logprobs=torch.tensor(means, dtype=torch.float64)[:, None] * mask,
            finished=~abandoned,
            texts=tuple(text for found in rounds for text in found.texts[:G]),
            abandoned=None if stop_early is None else abandoned,
            errors=errors,
        )

    def score(self, prompts: Prompts, rollout: Rollout, temperature: float) -> Scores:
        """Refuse; raises `InputError`."""
        self._refuse()

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Refuse; raises `InputError`."""
        self._refuse()

    def save_pretrained(self, folder: Path, merge: bool = False) -> None:
        """Refuse; raises `InputError`."""
        self._refuse()

    def fingerprint(self) -> dict[str, Any]:
        """Which predictions are replayed: a checksum of the file's content."""
        return {"policy": "ReplayPolicy", "replayed": self._recording.checksum()}

    def _lacks(
        self,
        index: int,
        question: Question,
        found: RecordedRound,
        num_samples: int,
        stop_early: StopEarly | None,
    ) -> str | None:
        """Which of the completions that are needed were not recorded, or None."""
        where = f"{self._recording.path}: question {question.id} at {found.num_frames} frames"
        if len(found.texts) < num_samples:
            return (
                f"{where} has {len(found.texts)} completions, and {num_samples} are asked for; "
                "give SparseToDense.num_samples no more than were recorded"
            )
        gone = found.abandoned[:num_samples]
        known = [None if g else text for text, g in zip(found.texts, gone, strict=False)]
        means = found.mean_logprobs[:num_samples]
        if any(gone) and (stop_early is None or not stop_early(index, known, means)):
            return (
                f"{where} has {sum(gone)} completions that an early stop gave up and that are "
                "needed here; record the run with SparseToDense.early_stop: false"
            )
        return None

    def _refuse(self) -> NoReturn:
        raise InputError(
            "ReplayPolicy holds recorded completions and no weights: it predicts, and cannot be "
            "trained or exported; give model.policy a model"
        )


def _blank(num_samples: int) -> RecordedRound:
    """Rows in place of completions that cannot be had."""
    return RecordedRound(
        num_frames=0,
        texts=("",) * num_samples,
        times_s=(),
        num_tokens=(1,) * num_samples,
        mean_logprobs=(0.0,) * num_samples,
        abandoned=(True,) * num_samples,
        is_last=False,
    )
