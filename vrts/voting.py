"""How votes are weighed and counted, and when the missing ones no longer matter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

from vrts.answers import is_correct, parse_answer
from vrts.types import Clip, InputError, Prediction, Question, Round


class VoteError(RuntimeError):
    """A vote that raised or returned no valid weight. The message names its class."""


@contextmanager
def error_context(question: Question) -> Iterator[None]:
    """Name the question in errors of a vote."""
    try:
        yield
    except VoteError as error:
        raise VoteError(f"question {question.id}: {error}") from error.__cause__


class Vote(ABC):
    """Weighs the vote of a completion. Plug-in point ``SparseToDense.vote``."""

    @abstractmethod
    def weight(self, mean_logprob: float) -> float:
        """Return a weight from 0 to 1; early stopping relies on this bound.

        Args:
            mean_logprob: of the completion's tokens, as in `Round.mean_logprobs`.
        """


class MajorityVote(Vote):
    """Every completion that gives an answer counts the same."""

    def weight(self, mean_logprob: float) -> float:
        """Return 1."""
        return 1.0


class LogProbVote(Vote):
    """Weighs completions by the geometric mean of their tokens' probabilities.

    So long completions weigh no less than short ones. Log-probs are taken at each completion's own
    temperature: completions sampled at a higher one weigh less.
    """

    def weight(self, mean_logprob: float) -> float:
        """Return the exp of the mean log-prob."""
        return min(math.exp(mean_logprob), 1.0)


@dataclass(frozen=True, slots=True)
class VotingRule:
    """What M completions decide: an answer, or that more frames are needed."""

    vote: Vote = field(default_factory=MajorityVote)
    consensus: int | None = None  # completions that must agree before the last level; None is all
    early_stop: bool = True  # whether completions that cannot change the result are cancelled

    def __post_init__(self) -> None:
        """Raise `InputError` for a consensus below 1."""
        if self.consensus is not None and self.consensus < 1:
            raise InputError(f"consensus is {self.consensus}; give 1 or more, or null for all")

    def answer(self, round: Round) -> str | None:
        """Return the answer with the most weight in a round, None without any vote.

        Raises:
            VoteError: the vote raises, or returns something other than a weight from 0 to 1.
        """
        return elect(round.answers, self._weights(round.answers, round.mean_logprobs))

    def is_settled(self, round: Round) -> bool:
        """Whether a round decides its question, at a level that is not the last."""
        answer = self.answer(round)
        needed = self.consensus or len(round.answers)
        return answer is not None and round.answers.count(answer) >= needed

    def may_stop(
        self,
        answers: Sequence[str | None],
        mean_logprobs: Sequence[float],
        finished: Sequence[bool],
        *,
        is_last: bool,
    ) -> bool:
        """Whether the unfinished completions of a round cannot change what it decides.

        That is whether the question continues with the next level, the answer if it does not, and
        whether that answer is unanimous. With u completions unfinished:

        - The question continues for certain if u more votes cannot make any answer a consensus.
        - Its answer is certain if the question does not continue, or this is the last level, and no
          other answer (one not yet given included) can catch up with the leader by u votes of
          weight 1. Of equals the one that came first leads.
        - A round whose finished completions all agree may still be unanimous and is not stopped.

        Args:
            answers: M; those of unfinished completions are ignored.
            mean_logprobs: M, or none.
            finished: M flags.
            is_last: whether no level with more frames follows.

        Returns:
            Also False if `early_stop` is off, or log-probs are not finite: such a round fails.

        Raises:
            VoteError: as in `answer`.
        """
        if not self.early_stop:
            return False
        if not all(math.isfinite(m) for m, f in zip(mean_logprobs, finished, strict=False) if f):
            return False
        known = [a if f else None for a, f in zip(answers, finished, strict=True)]
        done = [a for a, f in zip(answers, finished, strict=True) if f]
        votes = Counter(a for a in done if a is not None)
        num_open = len(answers) - len(done)
        needed = self.consensus or len(answers)
        if not is_last and max(votes.values(), default=0) + num_open < needed:
            return True
        if len(set(done)) < 2:
            return False
        leader = elect(known, weights := self._weights(known, mean_logprobs))
        if leader is None or (not is_last and votes[leader] < needed):
            return False
        return cannot_be_caught(leader, known, weights, [not f for f in finished])

    def _weights(
        self, answers: Sequence[str | None], mean_logprobs: Sequence[float]
    ) -> list[float]:
        """M weights, 0 for completions without an answer."""
        logprobs = mean_logprobs or [math.nan] * len(answers)
        return [
            0.0 if answer is None else self._weight(logprob)
            for answer, logprob in zip(answers, logprobs, strict=True)
        ]

    def _weight(self, mean_logprob: float) -> float:
        name = type(self.vote).__name__
        remedy = "correct it, or set SparseToDense.vote to null"
        try:
            weight = self.vote.weight(mean_logprob)
        except Exception as error:
            raise VoteError(
                f"{name} raised {type(error).__name__} at the mean log-prob {mean_logprob}: "
                f"{error}; {remedy}"
            ) from error
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            lacking = "; its completions lack mean log-probs" if math.isnan(mean_logprob) else ""
            raise VoteError(
                f"{name} gives a vote the weight {weight!r} at the mean log-prob {mean_logprob}, "
                f"expected a float from 0 to 1{lacking}; {remedy}"
            )
        return weight


def tally(answers: Sequence[str | None], weights: Sequence[float]) -> dict[str, Fraction]:
    """Sum up the weight of each answer, exactly, in the order of first appearance."""
    votes: dict[str, Fraction] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, Fraction(0)) + Fraction(weight)
    return votes


def elect(answers: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The answer with the most weight, of equals the first; None without a vote."""
    votes = tally(answers, weights)
    # dicts keep the order of first appearance, and max takes the first of equals
    return max(votes, key=votes.__getitem__, default=None)


def cannot_be_caught(
    leader: str,
    answers: Sequence[str | None],
    weights: Sequence[float],
    is_open: Sequence[bool],
) -> bool:
    """Whether a leader wins whatever votes of weight 0 to 1 are cast where ``is_open``."""
    votes = tally(answers, weights)
    next_place = next((i for i, flag in enumerate(is_open) if flag), len(answers))
    # an answer that has not been given yet has no votes
    rivals = [(votes[a], answers.index(a)) for a in votes if a != leader]
    rivals.append((Fraction(0), next_place))
    # more weight wins, at equal weight the earlier place
    lead = (votes[leader], -answers.index(leader))
    return all((w + sum(is_open), -min(place, next_place)) < lead for w, place in rivals)


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, of equals the first; None without a vote."""
    return elect(answers, [1.0] * len(answers))


def agreement(answers: Sequence[str | None]) -> float:
    """Fraction of all completions that gave the most frequent answer: 1 if they are unanimous."""
    leader = majority(answers)
    return 0.0 if leader is None else list(answers).count(leader) / len(answers)


def make_round(
    completions: Sequence[str],
    question: Question,
    num_frames: int,
    *,
    times_s: Sequence[float] = (),
    num_tokens: Sequence[int] = (),
    mean_logprobs: Sequence[float] = (),
    cancelled: Sequence[bool] = (),
    is_last: bool = False,
    num_damaged: int = 0,
) -> Round:
    """Parse M completions of one question into a `Round`, which documents the arguments."""
    answers = tuple(
        None if is_cancelled else parse_answer(text, question)
        for text, is_cancelled in zip(
            completions, cancelled or [False] * len(completions), strict=True
        )
    )
    return Round(
        num_frames,
        tuple(completions),
        answers,
        agreement(answers),
        tuple(times_s),
        tuple(num_tokens),
        tuple(mean_logprobs),
        tuple(cancelled),
        is_last,
        num_damaged,
    )


def decide(
    question: Question,
    rounds: Sequence[Round],
    rule: VotingRule | None = None,
    clip: Clip | None = None,
) -> Prediction:
    """Answer a question by the vote of its last round, or fail if its log-probs are not finite.

    ``clip`` has the frames of that round. Raises as `VotingRule.answer`; votes are by majority if
    there is no rule.
    """
    if not all(map(math.isfinite, rounds[-1].mean_logprobs)):
        # what such a model samples is not an answer, not even a wrong one
        reason = (
            f"at {rounds[-1].num_frames} frames the model's log-probs are not finite; its weights "
            "are damaged or overflow, see model.policy"
        )
        return fail(question, reason, rounds[:-1])
    with error_context(question):
        answer = (rule or VotingRule()).answer(rounds[-1])
    correct = is_correct(answer, question)
    return Prediction(question, tuple(rounds), answer, correct=correct, clip=clip)


def fail(question: Question, error: str | None, rounds: Sequence[Round] = ()) -> Prediction:
    """Return a failed prediction: wrong, not missing, if the gold answer is known."""
    correct = None if question.gold is None else False
    return Prediction(question, tuple(rounds), error=error, correct=correct)
