"""Predicting: each question is asked on few frames first, and on more where its votes disagree.

A question's way::

    submit ──> waiting for room ──> sampled by the engine ──> vote ──> Prediction
                      ^                                        │ disagrees
                      └────────── frames of the next level <───┘

Questions of all levels are in flight together. What is decided depends neither on what else is in
flight nor on the order in which completions end.
"""

from __future__ import annotations

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
    Sampling,
)
from vrts.voting import VotingRule, decide, fail, make_round, naming

AHEAD_BYTES = 512 * 2**20
"""Bytes of frames, estimated, that are decoded before it is known whether they are needed."""

FrameSource = Callable[[Question, int, bool], "Future[Sample]"]
"""From a question, a number of frames, and whether they are needed now (or else may be needed
soon) to where its sample will be."""

Refuses = Callable[[Sample, int], str | None]
"""See `vrts.models.Policy.refuses`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How questions are asked: how often, on how many frames, and when that is enough."""

    sampling: tuple[Sampling, ...]
    """M of them, one for each completion of a round."""
    rule: VotingRule = field(default_factory=VotingRule)
    """How the M votes decide."""
    levels: tuple[int, ...] = ()
    """Numbers of frames of the rounds, ascending; empty for one round on whatever is submitted."""
    frames: FrameSource | None = None
    """Has the frames of all levels but the first; None where there is no other."""
    decode_ahead: bool = False
    """Whether a question's next level is decoded while it is asked."""
    reuse_features: bool = False
    """Whether pairs of frames that an earlier level has encoded are not encoded again."""

    def is_last(self, level: int, question: Question, clip: Clip) -> bool:
        """Whether a question is not asked again: no level follows, or no more frames.

        False where a custom sampler finds no more frames, which only it can tell.

        Args:
            level: that the clip is of, counted from 0.
            question: its benchmark may give a video no more than so many frames.
            clip: that it is asked on.
        """
        return (
            level + 1 >= len(self.levels)
            or clip.num_frames < self.levels[level]
            or shows_all_frames(question, clip)
        )

    def fingerprint(self) -> dict[str, Any]:
        """How completions are drawn, as plain JSON values."""
        first, *others = self.sampling
        if all(sampling == first for sampling in others):
            return asdict(first)
        return {"sampling": list(map(asdict, self.sampling))}


@runtime_checkable
class TakesPredictions(Protocol):
    """A callback that is given predictions as soon as they are decided, with their frames."""

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Take what was decided, once each, in ``vrts predict`` only."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A question that is not decided yet."""

    question: Question
    clip: Clip | None = None
    """Frames that it is, or was last, asked on."""
    rounds: list[Round] = field(default_factory=list)
    is_exhausted: bool = False
    """Whether a denser clip turned out to have no more frames."""
    known: Prompt | None = None
    """Of the last round, where the next one takes features from it."""
    ahead: Future[Sample] | None = None
    """Frames of the next level, begun before it is known whether they are needed."""
    ahead_bytes: int = 0


class Predictor:
    """Asks questions by a plan, as many at a time as the engine has room for.

    Args:
        engine: samples; nothing else is pending in it.
        refuses: the policy's reason why a sample cannot be asked.
        plan: how questions are asked.
        max_new_tokens: completions are cut off there.
        seed: of the sampling. The random numbers of a completion depend on it, its question, the
            clip's number of frames and its place among the M, and on nothing else.
    """

    def __init__(
        self, engine: Engine, refuses: Refuses, plan: Plan, max_new_tokens: int, seed: int
    ) -> None:
        self._engine = engine
        self._refuses = refuses
        self._plan = plan
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._waiting: deque[_Pending] = deque()
        self._asked: dict[Request, _Pending] = {}
        self._fetching: dict[Future[Sample], _Pending] = {}
        self._decided: list[Prediction] = []
        self._ahead_bytes = 0

    def submit(self, samples: Sequence[Sample]) -> None:
        """Take questions, with frames of the first level or the reason why there are none."""
        for sample in samples:
            self._join(_Pending(sample.question), sample)

    def run_until_room(self) -> Iterator[list[Prediction]]:
        """Sample until a further question could begin, and yield what is decided meanwhile.

        Raises:
            VoteError: the rule's vote raises, or gives something that is no weight.
        """
        return self._run(lambda: not self._waiting and self._has_room())

    def drain(self) -> Iterator[list[Prediction]]:
        """Decide everything that was submitted; raises as `run_until_room` does."""
        return self._run(lambda: not (self._waiting or self._asked or self._fetching))

    def _run(self, is_done: Callable[[], bool]) -> Iterator[list[Prediction]]:
        while True:
            for future in [future for future in self._fetching if future.done()]:
                self._join(self._fetching.pop(future), future.result())
            if self._decided:
                decided, self._decided = self._decided, []
                yield decided
            while self._waiting and self._has_room():
                self._ask(self._waiting.popleft())
            if self._decided:
                continue  # too large for the engine
            if is_done():
                return
            if self._asked:
                for result in self._engine.step():
                    self._finish(self._asked.pop(result.request), result)
            else:
                wait(self._fetching, return_when=FIRST_COMPLETED)

    def _has_room(self) -> bool:
        return not self._engine.num_pending or self._engine.has_room()

    def _join(self, pending: _Pending, sample: Sample) -> None:
        """Let a question wait for room, with the frames of its first or next level."""
        sample = checked(sample, self._refuses, self._max_new_tokens)
        if sample.clip is None:
            self._decide(pending, fail(pending.question, sample.error, pending.rounds))
        elif pending.clip is None:
            pending.clip = sample.clip
            self._waiting.append(pending)
        elif sample.clip.num_frames > pending.clip.num_frames:
            pending.clip = sample.clip
            self._waiting.appendleft(pending)  # before new ones: its frames are in memory
        else:
            self._end(pending)

    def _end(self, pending: _Pending) -> None:
        """Decide by the last round: the model has seen all frames that the sampler finds."""
        pending.is_exhausted = True
        last = pending.rounds.pop()
        if any(last.cancelled):
            # These were cancelled since the question seemed to need more frames, and are needed
            # after all. Same seeds, same completions.
            self._waiting.appendleft(pending)
            return
        pending.rounds.append(replace(last, is_last=True))
        self._decide(pending, self._vote(pending))

    def _ask(self, pending: _Pending) -> None:
        """Hand a question over to the engine."""
        question, clip, plan = pending.question, pending.clip, self._plan
        assert clip is not None
        is_last = self._is_last(pending, len(pending.rounds))
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
            self._decide(pending, fail(question, str(error), pending.rounds))
            return
        self._asked[request] = pending
        pending.known = prompt if plan.reuse_features and not is_last else None
        if plan.decode_ahead and not is_last:
            self._fetch_ahead(pending, clip)

    def _finish(self, pending: _Pending, result: Result) -> None:
        """Count the votes of a round: they decide, or the next level is asked."""
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
        is_last = self._is_last(pending, len(pending.rounds))
        pending.rounds.append(found)
        prediction = self._vote(pending)
        with naming(question):
            if is_last or prediction.error is not None or self._plan.rule.is_settled(found):
                self._decide(pending, prediction)
            else:
                self._fetch(pending)

    def _is_last(self, pending: _Pending, level: int) -> bool:
        assert pending.clip is not None
        return pending.is_exhausted or self._plan.is_last(level, pending.question, pending.clip)

    def _vote(self, pending: _Pending) -> Prediction:
        return decide(pending.question, pending.rounds, self._plan.rule, pending.clip)

    def _fetch_ahead(self, pending: _Pending, clip: Clip) -> None:
        """Begin to decode the next level, unless too much is decoded ahead already."""
        assert self._plan.frames is not None
        num_frames = self._plan.levels[len(pending.rounds) + 1]
        num_bytes = clip.frames[0].nbytes * num_frames
        if not self._ahead_bytes or self._ahead_bytes + num_bytes <= AHEAD_BYTES:
            pending.ahead = self._plan.frames(pending.question, num_frames, False)
            pending.ahead_bytes = num_bytes
            self._ahead_bytes += num_bytes

    def _fetch(self, pending: _Pending) -> None:
        """Wait for the frames of the next level, which are needed from now on."""
        assert self._plan.frames is not None
        future = pending.ahead
        if future is None or not future.done():
            num_frames = self._plan.levels[len(pending.rounds)]
            future = self._plan.frames(pending.question, num_frames, True)
        self._drop_ahead(pending)  # after asking again, so that decoding is not cancelled between
        self._fetching[future] = pending

    def _decide(self, pending: _Pending, prediction: Prediction) -> None:
        """Settle a question, and cancel what is decoded ahead for it."""
        self._drop_ahead(pending)
        self._decided.append(prediction)

    def _drop_ahead(self, pending: _Pending) -> None:
        if pending.ahead is not None:
            pending.ahead.cancel()
        pending.ahead = None
        self._ahead_bytes -= pending.ahead_bytes
        pending.ahead_bytes = 0


def checked(sample: Sample, refuses: Refuses, max_new_tokens: int) -> Sample:
    """Give a sample back, without its clip and with the reason where it cannot be asked."""
    if sample.clip is None:
        return sample
    reason = refuses(sample, max_new_tokens)
    return sample if reason is None else Sample(sample.question, error=reason)


def shows_all_frames(question: Question, clip: Clip) -> bool:
    """Whether a clip has all pairs of frames that its question may be asked on.

    Args:
        question: its benchmark may give a video no more than so many frames.
        clip: of its video.
    """
    # the last frame of an odd number is repeated
    available = -(-clip.num_source_frames // FRAMES_PER_PATCH) * FRAMES_PER_PATCH
    if question.max_frames is not None:
        most_pairs = round(question.max_frames / FRAMES_PER_PATCH)
        available = min(available, most_pairs * FRAMES_PER_PATCH)
    return bool(clip.num_frames >= available)


def _should_stop(rule: VotingRule, question: Question, is_last: bool) -> ShouldStop:
    """What tells the engine that the other completions of a question cannot change its round."""

    def should_stop(texts: Sequence[str | None], mean_logprobs: Sequence[float]) -> bool:
        with naming(question):
            return rule.may_stop(
                [None if text is None else parse_answer(text, question) for text in texts],
                mean_logprobs,
                [text is not None for text in texts],
                is_last=is_last,
            )

    return should_stop
