"""Sparse-to-dense test-time scaling: look at more frames where the answers disagree."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any, cast

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer

from vrts.data.datamodule import VideoQADataModule
from vrts.data.video.frames import NestedPairSampler
from vrts.data.workers.requests import Priority
from vrts.files.fingerprints import describe
from vrts.models.module import VideoQAModule
from vrts.models.predictor import Plan
from vrts.types import InputError, Question, Sample, Sampling
from vrts.voting import MajorityVote, Vote, VotingRule


class SparseToDense(Callback):
    """Adaptive frame densification at test time (Video-RTS, arXiv 2507.06485, section 3.3).

    Each question is asked M times on the first level's frames. Where `consensus` of them give one
    answer, that decides it; otherwise it is asked again on the next level's frames. At the last
    level, and where a video has no more frames to show, the vote decides: of several leaders the
    one that came first. A completion without an answer is no vote and breaks unanimity.

    With `early_stop`, completions that can no longer change the result are cancelled and recorded
    as such: which questions continue, what is answered and which answers are unanimous is the same
    without. The agreement of such a round counts the votes that were cast.

    With ``data.sampler: NestedPairSampler`` a level encodes only the pairs of frames that the one
    before has not.

    Validation and test are asked as prediction is, also within ``fit``. With one level all
    questions get as many frames, and the vote decides.

    `trainer.callbacks` must name it before those that take what it has decided, such as the writer;
    they check it with `densifiers_before`.

    Args:
        levels: numbers of frames, ascending and even.
        num_samples: M, completions for each question at each level; 5, or as many as `sampling`
            has, where it is null.
        sampling: how each of the M is drawn; all as ``model.evaluation`` says where it is null.
        consensus: completions that have to agree on the answer of a level that is not the last;
            all of them where it is null.
        vote: what each completion's vote weighs; all the same where it is null.
        early_stop: cancel completions that cannot change the result.
        decode_ahead: decode the next level's frames while a question is asked. It costs decoding
            that may not be needed; without decode workers frames are never decoded ahead.

    Raises:
        InputError: levels that are odd, too few or not ascending; options that contradict.
    """

    def __init__(
        self,
        levels: list[PositiveInt] | None = None,
        num_samples: PositiveInt | None = None,
        sampling: list[Sampling] | None = None,
        consensus: PositiveInt | None = None,
        vote: Vote | None = None,
        early_stop: bool = True,
        decode_ahead: bool = True,
    ) -> None:
        self.levels = [32, 64, 128] if levels is None else [int(level) for level in levels]
        self.num_samples = int(num_samples or (len(sampling) if sampling else 5))
        self.sampling = sampling
        self.decode_ahead = decode_ahead
        if not self.levels or any(level % 2 or level <= 0 for level in self.levels):
            raise InputError(
                f"SparseToDense.levels is {self.levels}; give even numbers of frames (two frames "
                "make one temporal patch), for instance [32, 64, 128]"
            )
        if any(a >= b for a, b in pairwise(self.levels)):
            raise InputError(f"SparseToDense.levels is {self.levels}; let them ascend")
        if sampling is not None and len(sampling) != self.num_samples:
            raise InputError(
                f"SparseToDense.sampling has {len(sampling)} entries for {self.num_samples} "
                "samples; give one for each, or leave num_samples out"
            )
        if consensus is not None and consensus > self.num_samples:
            raise InputError(
                f"SparseToDense.consensus is {consensus}, of {self.num_samples} samples; give at "
                "most as many, or null for all of them"
            )
        self.rule = VotingRule(vote or MajorityVote(), consensus and int(consensus), early_stop)

    def fingerprint(self) -> dict[str, Any]:
        """What a prediction run's results depend on, as plain JSON values.

        How completions are drawn is told by the module, which knows it also without this callback.
        """
        return {
            "levels": self.levels,
            "num_samples": self.num_samples,
            "consensus": self.rule.consensus,
            "vote": describe(self.rule.vote),
            "early_stop": self.rule.early_stop,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have prediction, validation and test follow the plan; idempotent."""
        module, data = cast(VideoQAModule, pl_module), _data(trainer)
        data.predict_num_frames = self.levels[0]
        module.plan = Plan(
            tuple(self.sampling or [module.evaluation] * self.num_samples),
            self.rule,
            tuple(self.levels),
            partial(_frames, data),
            self.decode_ahead and data.num_workers > 0,
            isinstance(data.sampler, NestedPairSampler),
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave module and data as they were, for runs without this callback."""
        module = cast(VideoQAModule, pl_module)
        module.plan = Plan((module.evaluation,))
        _data(trainer).predict_num_frames = None


def install_plan(trainer: Trainer, pl_module: LightningModule, stage: str) -> SparseToDense | None:
    """Return the run's `SparseToDense` with its plan in place, wherever it is in the list."""
    for callback in cast(list[Callback], trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, SparseToDense):
            callback.setup(trainer, pl_module, stage)
            return callback
    return None


def _frames(
    data: VideoQADataModule, question: Question, num_frames: int, is_needed: bool
) -> Future[Sample]:
    """Begin to decode a clip of a denser level."""
    (future,) = data.submit([question], num_frames, Priority.NOW if is_needed else Priority.NEXT)
    return future


def _data(trainer: Trainer) -> VideoQADataModule:
    """The run's data module."""
    return cast(VideoQADataModule, trainer.datamodule)  # type: ignore[attr-defined]
