"""Prediction: a few frames of each question first, and more where its votes disagree.

A question's way::

    submit ──> waiting for room ──> sampled by the engine ──> vote ──> Prediction
                      ^                                        │ disagrees
                      └────────── frames of the next level <───┘

Questions of all levels are in flight together. A decision depends neither on what else is in flight
nor on the order in which completions end.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from lightning import LightningModule, Trainer

from vrts.answers import parse_answer
from vrts.models.engines.engine import Engine, Request, Result, ShouldStop
from vrts.models.engines.sampling import row_seed
from vrts.models.policy import Prompt
from vrts.types import (
    FRAMES_PER_PATCH,
    Clip,
    InputError,
    Prediction,
    Question,
    Round,
    Sample,
    SamplingParams,
)
from vrts.voting import VotingRule, decide, error_context, fail, make_round

_log = logging.getLogger(__name__)

AHEAD_BYTES = 512 * 2**20
"""Estimated bytes of frames that are decoded before it is known whether they are needed."""

FrameSource = Callable[[Question, int, bool], "Future[Sample]"]
"""From a question, a number of frames, and whether they are needed now (or may be needed soon) to
the future of its sample."""

Refuses = Callable[[Sample, int], str | None]
"""See `vrts.models.Policy.refuses`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a question is predicted: completions, frames, and what decides it."""

    sampling: tuple[SamplingParams, ...]
    """Of each of the M completions of a round."""
    rule: VotingRule = field(default_factory=VotingRule)
    """How the M votes decide."""
    levels: tuple[int, ...] = ()
    """Numbers of frames of the rounds, ascending; empty for one round on whatever is submitted."""
    frames: FrameSource | None = None
    """Of all levels but the first; None if there is no other."""
    decode_ahead: bool = False
    """Whether a question's next level is decoded while completions are sampled."""
    reuse_features: bool = False
    """Whether pairs of frames that the level before has encoded are not encoded again."""

    def is_last(self, level: int, question: Question, clip: Clip) -> bool:
        """Whether no level follows that of a clip (counted from 0), or no more frames.

        A custom sampler may find no more frames all the same, which shows on decoding only.
        """
        return (
            level + 1 >= len(self.levels)
            or clip.num_frames < self.levels[level]
            or shows_all_frames(question, clip)
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return how completions are sampled, as plain JSON values."""
        first, *others = self.sampling
        if all(sampling == first for sampling in others):
            return asdict(first)
        return {"sampling": list(map(asdict, self.sampling))}


@runtime_checkable
class TakesPredictions(Protocol):
    """A callback that gets predictions as soon as they are decided, with their frames."""

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Take predictions, each once, in ``vrts predict`` only."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A question that is not decided yet."""

    question: Question
    clip: Clip | None = None
    """Of the present or the last round."""
    sparser: Clip | None = None
    """Of the round before, until the engine has taken the present one."""
    rounds: list[Round] = field(default_factory=list)
    is_exhausted: bool = False
    """Whether a denser clip turned out to have no more frames."""
    known: Prompt | None = None
    """Of the last round, if the next one takes features from it."""
    ahead: Future[Sample] | None = None
    """Frames of the next level, requested before it is known whether they are needed."""
    ahead_bytes: int = 0


class Predictor:
    """Predicts questions by a plan, as many at a time as the engine has room for.

    Args:
        engine: with nothing else pending.
        refuses: the policy's.
        plan: how questions are predicted.
        max_new_tokens: completions are cut off there.
        seed: of the sampling. The random numbers of a completion depend on it, its question, the
            clip's number of frames and its index among the M, and on nothing else.
    """

    def __init__(
        self, engine: Engine, refuses: Refuses, plan: Plan, max_new_tokens: int, seed: int
    ) -> None:
        self._engine = engine
        self._refuses = refuses
        self._has_warned = False
        self._plan = plan
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._waiting: deque[_Pending] = deque()
        self._in_flight: dict[Request, _Pending] = {}
        self._fetching: dict[Future[Sample], _Pending] = {}
        self._decided: list[Prediction] = []

    def submit(self, samples: Sequence[Sample]) -> None:
        """Take questions, with frames of the first level or the reason why there are none."""
        for sample in samples:
            self._enqueue(_Pending(sample.question), sample)

    def run_until_room(self) -> Iterator[list[Prediction]]:
        """Sample until there is room for another question, and yield what is decided meanwhile.

        Raises:
            VoteError: the rule's vote raises, or returns something that is not a weight.
        """
        return self._run(lambda: not self._waiting and self._has_room())

    def drain(self) -> Iterator[list[Prediction]]:
        """Decide everything that was submitted; raises as `run_until_room` does."""
        return self._run(lambda: not (self._waiting or self._in_flight or self._fetching))

    def _run(self, is_done: Callable[[], bool]) -> Iterator[list[Prediction]]:
        while True:
            # questions whose next level is decoded go first, then decisions, then new work
            for future in [future for future in self._fetching if future.done()]:
                self._enqueue(self._fetching.pop(future), future.result())
            if self._decided:
                decided, self._decided = self._decided, []
                yield decided
            while self._waiting and self._has_room():
                self._start(self._waiting.popleft())
            if self._decided:
                continue  # one was too large for the engine
            if is_done():
                return
            if self._in_flight:
                for result in self._engine.step():
                    self._finish(self._in_flight.pop(result.request), result)
            else:
                wait(self._fetching, return_when=FIRST_COMPLETED)

    def _has_room(self) -> bool:
        return not self._engine.num_pending or self._engine.has_room()

    def _enqueue(self, pending: _Pending, sample: Sample) -> None:
        """Let a question wait for room, with the frames of its first or next level."""
        own = checked(sample, self._refuses, self._max_new_tokens)
        is_refused = sample.clip is not None and own.clip is None
        if own.clip is None and not (is_refused and pending.rounds):
            self._decide(pending, fail(pending.question, own.error, pending.rounds))
        elif own.clip is None:
            self._stay_sparser(pending, str(own.error))
        elif pending.clip is None:
            pending.clip = own.clip
            self._waiting.append(pending)
        elif own.clip.num_frames > pending.clip.num_frames:
            pending.clip, pending.sparser = own.clip, pending.clip
            self._waiting.appendleft(pending)  # before new ones: its frames are in memory
        else:
            self._decide_by_last_round(pending)

    def _stay_sparser(self, pending: _Pending, reason: str) -> None:
        """Decide a question by the densest level that the model and the engine take."""
        if not self._has_warned:
            _log.warning(
                "question %s: %s; the level before it decides, here and from now on",
                pending.question.id,
                reason,
            )
            self._has_warned = True
        self._decide_by_last_round(pending)

    def _decide_by_last_round(self, pending: _Pending) -> None:
        """Decide a question for which there are no more frames, or none that the model takes."""
        pending.is_exhausted = True
        last = pending.rounds.pop()
        if any(last.cancelled):
            # These were cancelled since the question was to continue on more frames, and are
            # needed after all. Same seeds, same completions.
            self._waiting.appendleft(pending)
            return
        pending.rounds.append(replace(last, is_last=True))
        self._decide(pending, self._vote(pending))

    def _start(self, pending: _Pending) -> None:
        """Hand a question to the engine."""
        question, clip, plan = pending.question, pending.clip, self._plan
        assert clip is not None
        is_last = self._is_last(pending)
        (prompt,) = self._engine.encode([Sample(question, clip)], pending.known)
        M = len(plan.sampling)
        request = Request(
            prompt,
            plan.sampling,
            tuple(row_seed(self._seed, question.id, clip.num_frames, m) for m in range(M)),
            self._max_new_tokens,
            _should_stop(plan.rule, question, is_last) if plan.rule.early_stop and M > 1 else None,
        )
        try:
            self._engine.add(request)
        except InputError as error:  # would not fit even alone
            if pending.rounds:
                pending.clip = pending.sparser
                self._stay_sparser(pending, str(error))
            else:
                self._decide(pending, fail(question, str(error)))
            return
        self._in_flight[request] = pending
        pending.sparser = None
        pending.known = prompt if plan.reuse_features and not is_last else None
        if plan.decode_ahead and not is_last:
            self._fetch_ahead(pending, clip)

    def _finish(self, pending: _Pending, result: Result) -> None:
        """Count the votes of a round: they decide, or the question continues."""
        question, clip = pending.question, pending.clip
        assert clip is not None
        if result.error is not None:
            self._decide(pending, fail(question, result.error, pending.rounds))
            return
        completions = result.completions
        means = [completion.mean_logprob for completion in completions]
        found = make_round(
            [completion.text for completion in completions],
            question,
            clip.num_frames,
            times_s=clip.times_s or [index / clip.fps for index in clip.frame_indices],
            num_tokens=[completion.num_tokens for completion in completions],
            # some engines do not know them
            mean_logprobs=() if any(c.logprobs is None for c in completions) else means,
            cancelled=[completion.cancelled for completion in completions],
            is_last=pending.is_exhausted or shows_all_frames(question, clip),
            num_damaged=clip.num_damaged,
        )
        is_last = self._is_last(pending)
        pending.rounds.append(found)
        prediction = self._vote(pending)
        with error_context(question):
            if is_last or prediction.error is not None or self._plan.rule.is_settled(found):
                self._decide(pending, prediction)
            else:
                self._fetch(pending)

    def _is_last(self, pending: _Pending) -> bool:
        """Whether the present round decides in any case; before it is among the rounds."""
        assert pending.clip is not None
        level = len(pending.rounds)
        return pending.is_exhausted or self._plan.is_last(level, pending.question, pending.clip)

    def _vote(self, pending: _Pending) -> Prediction:
        return decide(pending.question, pending.rounds, self._plan.rule, pending.clip)

    def _fetch_ahead(self, pending: _Pending, clip: Clip) -> None:
        """Start to decode the next level, unless too much is decoded ahead already."""
        assert self._plan.frames is not None
        num_frames = self._plan.levels[len(pending.rounds) + 1]
        num_bytes = clip.frames[0].nbytes * num_frames
        total = sum(other.ahead_bytes for other in self._in_flight.values())
        if not total or total + num_bytes <= AHEAD_BYTES:
            pending.ahead = self._plan.frames(pending.question, num_frames, False)
            pending.ahead_bytes = num_bytes

    def _fetch(self, pending: _Pending) -> None:
        """Wait for the frames of the next level, which are needed by now."""
        assert self._plan.frames is not None
        future = pending.ahead
        if future is None or not future.done():
            num_frames = self._plan.levels[len(pending.rounds)]
            future = self._plan.frames(pending.question, num_frames, True)
        self._drop_ahead(pending)  # after the new request, so that decoding continues
        self._fetching[future] = pending

    def _decide(self, pending: _Pending, prediction: Prediction) -> None:
        """Decide a question, and cancel what is decoded ahead for it."""
        self._drop_ahead(pending)
        self._decided.append(prediction)

    def _drop_ahead(self, pending: _Pending) -> None:
        if pending.ahead is not None:
            pending.ahead.cancel()
        pending.ahead, pending.ahead_bytes = None, 0


def checked(sample: Sample, refuses: Refuses, max_new_tokens: int) -> Sample:
    """Return a sample; without its clip and with the reason if the policy refuses it."""
    reason = None if sample.clip is None else refuses(sample, max_new_tokens)
    return sample if reason is None else Sample(sample.question, error=reason)


def shows_all_frames(question: Question, clip: Clip) -> bool:
    """Whether a clip has all pairs of frames of its video, as many as the benchmark allows."""
    # the last frame of an odd number is repeated
    available = -(-clip.num_source_frames // FRAMES_PER_PATCH) * FRAMES_PER_PATCH
    if question.max_frames is not None:
        most_pairs = round(question.max_frames / FRAMES_PER_PATCH)
        available = min(available, most_pairs * FRAMES_PER_PATCH)
    return bool(clip.num_frames >= available)


def _should_stop(rule: VotingRule, question: Question, is_last: bool) -> ShouldStop:
    """Return the check whether the completions still running cannot change the round."""

    def should_stop(texts: Sequence[str | None], mean_logprobs: Sequence[float]) -> bool:
        with error_context(question):
            return rule.may_stop(
                [None if text is None else parse_answer(text, question) for text in texts],
                mean_logprobs,
                [text is not None for text in texts],
                is_last=is_last,
            )

    return should_stop
