"""Sparse-to-dense test-time scaling: look at more frames where the answers disagree."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import pairwise
from typing import Any, cast

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer

from vrts.callbacks.trainer import data_of
from vrts.data.video.frames import NestedPairSampler
from vrts.data.workers.requests import Priority
from vrts.files.fingerprints import describe
from vrts.models.module import VideoQAModule
from vrts.models.prediction.predictor import Plan
from vrts.types import InputError, Question, Sample, SamplingParams
from vrts.voting import MajorityVote, Vote, VotingRule


class SparseToDense(Callback):
    """Adaptive frame densification at test time (Video-RTS, arXiv 2507.06485, section 3.3).

    M completions of each question are sampled on the first level's frames. If `consensus` of them
    give one answer, it stands; otherwise the question continues on the next level's frames. At the
    last level, or if a video has no more frames, the vote decides: of several leaders the one that
    came first. A completion without an answer is not a vote and breaks unanimity.

    With `early_stop`, completions that can no longer change the result are cancelled and recorded
    as such: which questions continue, their answers and which of these are unanimous stay the same.
    The agreement of such a round counts the votes that were cast.

    With ``data.sampler: NestedPairSampler`` a level encodes only the pairs of frames that the one
    before has not. Validation and test follow the plan too, also within ``fit``. With one level all
    questions get as many frames, and the vote decides.

    Args:
        levels: numbers of frames, ascending and even.
        num_samples: M, completions of each question at each level; 5, or as many as `sampling`
            has, where it is null.
        sampling: parameters of each of the M; all as ``model.eval_sampling`` where it is null.
        consensus: completions that have to agree at a level that is not the last; all of them where
            it is null.
        vote: weight of each completion's vote; all the same where it is null.
        early_stop: cancel completions that cannot change the result.
        decode_ahead: decode the next level's frames while completions are sampled, which may turn
            out not to be needed. Without decode workers frames are never decoded ahead.

    Raises:
        InputError: levels that are odd, too few or not ascending; options that contradict.
    """

    def __init__(
        self,
        levels: list[PositiveInt] | None = None,
        num_samples: PositiveInt | None = None,
        sampling: list[SamplingParams] | None = None,
        consensus: PositiveInt | None = None,
        vote: Vote | None = None,
        early_stop: bool = True,
        decode_ahead: bool = True,
    ) -> None:
        self.levels = [32, 64, 128] if levels is None else [int(level) for level in levels]
        self.num_samples = int(num_samples or (len(sampling) if sampling else 5))
        self.sampling = sampling
        self.decode_ahead = decode_ahead
        is_ascending = all(a < b for a, b in pairwise([0, *self.levels]))
        if not self.levels or not is_ascending or any(level % 2 for level in self.levels):
            raise InputError(
                f"SparseToDense.levels is {self.levels}; give even numbers of frames (two make one "
                "temporal patch) that ascend, for instance [32, 64, 128]"
            )
        if sampling is not None and len(sampling) != self.num_samples:
            raise InputError(
                f"SparseToDense.sampling has {len(sampling)} entries for {self.num_samples} "
                "samples; give one for each, or leave num_samples out"
            )
        if consensus is not None and consensus > self.num_samples:
            raise InputError(
                f"SparseToDense.consensus is {consensus}, of {self.num_samples} samples; give at "
                "most that many, or null for all of them"
            )
        self.rule = VotingRule(vote or MajorityVote(), consensus and int(consensus), early_stop)

    def fingerprint(self) -> dict[str, Any]:
        """Return what a run's results depend on as plain JSON; `Plan.fingerprint` has sampling."""
        return {
            "levels": self.levels,
            "num_samples": self.num_samples,
            "consensus": self.rule.consensus,
            "vote": describe(self.rule.vote),
            "early_stop": self.rule.early_stop,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have prediction, validation and test follow the plan; idempotent."""
        module, data = cast(VideoQAModule, pl_module), data_of(trainer)
        data.predict_num_frames = self.levels[0]

        def decode(question: Question, num_frames: int, is_needed: bool) -> Future[Sample]:
            priority = Priority.NOW if is_needed else Priority.NEXT
            (future,) = data.submit([question], num_frames, priority)
            return future

        module.plan = Plan(
            tuple(self.sampling or [module.eval_sampling] * self.num_samples),
            self.rule,
            tuple(self.levels),
            decode,
            self.decode_ahead and data.num_workers > 0,
            isinstance(data.sampler, NestedPairSampler),
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the plan, for runs without this callback."""
        module = cast(VideoQAModule, pl_module)
        module.plan = Plan((module.eval_sampling,))
        data_of(trainer).predict_num_frames = None
