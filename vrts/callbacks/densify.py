"""Sparse-to-dense test-time scaling: look at more frames where the answers disagree."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer

from vrts.callbacks.lookahead import FrameLookahead
from vrts.data.datamodule import VideoQADataModule
from vrts.data.sampling import NestedPairSampler
from vrts.files.fingerprints import describe
from vrts.models.answerer import Answerer
from vrts.models.answering import RoundPlan
from vrts.models.module import VideoQAModule
from vrts.types import Clip, InputError, Prediction, Question, Round, Sample, Sampling
from vrts.votes import MajorityVote, Vote, VotingRule, naming
from vrts.voting import decide, fail

_log = logging.getLogger(__name__)


class SparseToDense(Callback):
    """Adaptive frame densification at test time (Video-RTS, arXiv 2507.06485, section 3.3).

    Each question is asked M times on the first level's frames. Where `consensus` of them give one
    answer, that decides it; otherwise it is asked again on the next level's frames. At the last
    level, and where a video has no more frames to show, the vote decides: of several leaders the
    one that came first. A completion without an answer is no vote and breaks unanimity.

    With `early_stop`, completions that can no longer change the result are given up and recorded
    as such: which questions go on, what is answered and which answers are unanimous is the same
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
        early_stop: give up completions that cannot change the result.
        decode_ahead: decode the next level's frames while a question is answered, and where workers
            would idle also those of the questions that follow. It costs decoding that may not be
            needed; without decode workers frames are never decoded ahead.

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
        """Have the first level streamed and asked, in prediction, validation and test."""
        module = cast(VideoQAModule, pl_module)
        sampling = self.sampling or [module.evaluation] * self.num_samples
        more = [*self.levels[:-1], None]
        reuse = isinstance(_data(trainer).sampler, NestedPairSampler)
        self._plans = [RoundPlan(tuple(sampling), self.rule, level, reuse) for level in more]
        self._ahead = FrameLookahead(
            _data(trainer), self.levels, self._has_more, enabled=self.decode_ahead
        )
        _data(trainer).watcher = self._ahead.watch
        _data(trainer).predict_num_frames = self.levels[0]
        module.answerer.plan = self._plans[0]

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin to decode what the batch's questions may need next."""
        self._ahead.ask(batch, 0)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Replace predictions that are not settled by those of denser levels, in place."""
        predictions: list[Prediction] = outputs
        for level in range(1, len(self.levels)):
            undecided = [i for i, p in enumerate(predictions) if self._needs(p, level)]
            denser = self._densify(
                cast(VideoQAModule, pl_module).answerer, [predictions[i] for i in undecided], level
            )
            for index, prediction in zip(undecided, denser, strict=True):
                predictions[index] = prediction
        self._ahead.drop()
        cast(VideoQAModule, pl_module).answerer.known_prompts = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Densify before the module counts, as in prediction."""
        self.on_predict_batch_end(trainer, pl_module, outputs["predictions"], batch, batch_idx)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what decoding ahead came to."""
        count = self._ahead.count
        _log.info(
            "decoded ahead: %d clips begun, %d used, %d cancelled in time",
            count.begun, count.used, count.cancelled,
        )  # fmt: skip

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave module and data as they were, for runs without this callback."""
        module = cast(VideoQAModule, pl_module)
        module.answerer.plan = RoundPlan((module.evaluation,))
        _data(trainer).predict_num_frames = None
        _data(trainer).watcher = None
        self._ahead.close()

    def _has_more(self, level: int, question: Question, clip: Clip) -> bool:
        """Whether a question that is asked at a level may go on to the next one."""
        return not self._plans[level].is_last(question, clip)

    def _needs(self, prediction: Prediction, level: int) -> bool:
        """Whether a question goes on to a level."""
        if prediction.clip is None or len(prediction.rounds) != level:
            return False
        if self._plans[level - 1].is_last(prediction.question, prediction.clip):
            return False
        with naming(prediction.question):
            return not self.rule.is_settled(prediction.rounds[-1])

    def _densify(
        self, answerer: Answerer, predictions: Sequence[Prediction], level: int
    ) -> list[Prediction]:
        """Ask questions once more, on more frames."""
        loaded = self._ahead.take([p.question for p in predictions], level)
        samples = [answerer.check(sample) for sample in loaded]
        pairs = list(zip(predictions, samples, strict=True))
        asked = [s for p, s in pairs if s.clip is not None and s.clip.num_frames > p.num_frames]
        self._ahead.ask(asked, level)
        # The model has seen all frames that the sampler finds: what was given up, since the
        # question seemed to go on, is needed after all. Same seeds, same completions.
        unfinished = [p for p, s in pairs if s.clip is not None and _is_cut_short(p, s.clip)]
        known = answerer.known_prompts
        repeated = iter(
            answerer.answer([Sample(p.question, p.clip) for p in unfinished], self._plans[-1])
        )
        answerer.known_prompts = known  # of the level before, for the denser clips to build on
        rounds = iter(answerer.answer(asked, self._plans[level]))
        return [self._next(p, s, rounds, repeated) for p, s in pairs]

    def _next(
        self,
        prediction: Prediction,
        sample: Sample,
        rounds: Iterator[Round],
        repeated: Iterator[Round],
    ) -> Prediction:
        """A prediction with one more round, or failed where the denser clip did not come."""
        question, before = prediction.question, prediction.rounds
        if sample.clip is None:
            return fail(question, sample.error, before)
        if sample.clip.num_frames > prediction.num_frames:
            return decide(question, [*before, next(rounds)], self.rule, sample.clip)
        last = next(repeated) if _is_cut_short(prediction, sample.clip) else before[-1]
        seen = [*before[:-1], replace(last, is_last=True)]
        return decide(question, seen, self.rule, prediction.clip)


def _is_cut_short(prediction: Prediction, denser: Clip) -> bool:
    """Whether completions were given up for a denser clip that has no more frames after all."""
    return denser.num_frames <= prediction.num_frames and any(prediction.rounds[-1].abandoned)


def densifiers_before(trainer: Trainer, callback: Callback) -> list[SparseToDense]:
    """Densifiers among the callbacks, for one that takes what they have decided.

    Args:
        trainer: whose callbacks are looked at.
        callback: one of them.

    Raises:
        InputError: a densifier comes after it.
    """
    order = cast(list[Callback], trainer.callbacks)  # type: ignore[attr-defined]
    place = order.index(callback)
    if any(isinstance(later, SparseToDense) for later in order[place:]):
        raise InputError(
            f"trainer.callbacks: {type(callback).__name__} comes before SparseToDense and would "
            "take undecided predictions; put SparseToDense first"
        )
    return [earlier for earlier in order[:place] if isinstance(earlier, SparseToDense)]


def _data(trainer: Trainer) -> VideoQADataModule:
    """The run's data module."""
    return cast(VideoQADataModule, trainer.datamodule)  # type: ignore[attr-defined]
