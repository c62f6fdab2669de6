"""How votes are weighed and counted, and from when on the missing ones do not matter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

from vrts.answers import is_correct, parse_answer
from vrts.types import Clip, InputError, Prediction, Question, Round


class VoteError(RuntimeError):
    """A vote that raised or gave no weight. The message names its class, and the question."""


@contextmanager
def naming(question: Question) -> Iterator[None]:
    """Let errors of a vote name the question that is voted on."""
    try:
        yield
    except VoteError as error:
        raise VoteError(f"question {question.id}: {error}") from error.__cause__


class Vote(ABC):
    """Says what a completion's vote weighs. Plug-in point ``SparseToDense.vote``."""

    @abstractmethod
    def weight(self, mean_logprob: float) -> float:
        """Return a weight from 0 to 1; the bound is what an early stop counts on.

        Args:
            mean_logprob: of the completion's tokens, as in `Round.mean_logprobs`.
        """


class MajorityVote(Vote):
    """Every completion that gives an answer counts the same."""

    def weight(self, mean_logprob: float) -> float:
        """Return 1."""
        return 1.0


class LogProbVote(Vote):
    """Completions count as much as the model was sure of them: the exp of their mean log-prob.

    That is the geometric mean of the probabilities of its tokens, so that long completions weigh
    no less than short ones. Log-probs are those of `Round.mean_logprobs`, at each completion's own
    temperature: completions sampled at a higher one weigh less.
    """

    def weight(self, mean_logprob: float) -> float:
        """Return the geometric mean of the tokens' probabilities."""
        return min(math.exp(mean_logprob), 1.0)


@dataclass(frozen=True, slots=True)
class VotingRule:
    """What M completions decide: an answer, or that more frames are needed to give one.

    Raises:
        InputError: a consensus of no completion at all.
    """

    vote: Vote = field(default_factory=MajorityVote)
    consensus: int | None = None
    """Completions that have to give the answer for it to stand before the last level; None is
    all of them."""
    early_stop: bool = True
    """Whether completions that cannot change the result are cancelled."""

    def __post_init__(self) -> None:
        """Check the consensus."""
        if self.consensus is not None and self.consensus < 1:
            raise InputError(f"consensus is {self.consensus}; give 1 or more, or null for all")

    def answer(self, round: Round) -> str | None:
        """Return the answer that the vote of a round gives, None where there is no vote.

        Raises:
            VoteError: the vote raises, or gives something that is no weight from 0 to 1.
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

        What must stay: whether the question goes to the next level, the answer if it does not,
        and whether that answer was unanimous. With u completions unfinished, a round

        - continues for certain where not even u more votes make a consensus of any answer, and has
          an answer for certain where it continues for none, or is the last one, and nobody can
          catch up with the leader: any other answer, a new one too, has less than the leader's
          weight with u more; where votes of weight 1 make it a tie, the leader also comes first;
        - can be unanimous as long as all finished completions agree, and is then not stopped.

        Args:
            answers: M; those of unfinished completions are not looked at.
            mean_logprobs: M, or none.
            finished: M flags.
            is_last: whether no level with more frames follows.

        Returns:
            False too where `early_stop` is off, and where log-probs are no numbers: such a round
            fails.

        Raises:
            VoteError: as in `answer`.
        """
        if not self.early_stop:
            return False
        if mean_logprobs and not all(
            math.isfinite(mean) for mean, f in zip(mean_logprobs, finished, strict=True) if f
        ):
            return False
        known = [a if f else None for a, f in zip(answers, finished, strict=True)]
        done = [a for a, f in zip(answers, finished, strict=True) if f]
        u = len(answers) - len(done)
        most = max((done.count(a) for a in set(done) if a is not None), default=0)
        needed = self.consensus or len(answers)
        if not is_last and most + u < needed:
            return True
        if len(set(done)) < 2:
            return False
        leader = elect(known, weights := self._weights(known, mean_logprobs))
        if leader is None or (not is_last and done.count(leader) < needed):
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
        """What the vote of one completion weighs, known to be a weight."""
        name = type(self.vote).__name__
        try:
            weight = self.vote.weight(mean_logprob)
        except Exception as error:
            raise VoteError(
                f"{name} raised {type(error).__name__} at the mean log-prob {mean_logprob}: "
                f"{error}; correct it, or set SparseToDense.vote to null"
            ) from error
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            lacking = "; its completions lack mean log-probs" if math.isnan(mean_logprob) else ""
            raise VoteError(
                f"{name} gives a vote the weight {weight!r} at the mean log-prob {mean_logprob}, "
                f"and not a float from 0 to 1{lacking}; correct it, or set SparseToDense.vote to "
                "null"
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
    """The answer with the most weight; of several leaders the one that came first.

    Args:
        answers: canonical answers; None is no vote.
        weights: as many.

    Returns:
        An answer, or None where there is no vote.
    """
    votes = tally(answers, weights)
    # dicts keep the order of first appearance, and max takes the first of equals
    return max(votes, key=votes.__getitem__, default=None)


def cannot_be_caught(
    leader: str,
    answers: Sequence[str | None],
    weights: Sequence[float],
    is_open: Sequence[bool],
) -> bool:
    """Whether a leader wins whatever votes of weight 0 to 1 are still to come.

    Args:
        leader: one of the answers.
        answers: None where no vote is, or none yet.
        weights: as many.
        is_open: as many; where a vote may still come.
    """
    votes = tally(answers, weights)
    places = [place for place, flag in enumerate(is_open) if flag]
    first = {answer: answers.index(answer) for answer in votes}
    next_place = min(places, default=len(answers))
    for rival in [*(votes.keys() - {leader}), None]:
        # None stands for an answer that nobody has given yet
        reach = len(places) + (Fraction(0) if rival is None else votes[rival])
        comes = next_place if rival is None else min(first[rival], next_place)
        if reach > votes[leader] or (reach == votes[leader] and comes < first[leader]):
            return False
    return True


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of several leaders the one that came first.

    Args:
        answers: canonical answers; None is no vote.

    Returns:
        An answer, or None where there is no vote.
    """
    return elect(answers, [1.0] * len(answers))


def is_unanimous(answers: Sequence[str | None]) -> bool:
    """Whether all completions gave one answer; a missing answer breaks unanimity."""
    return len(set(answers)) == 1 and answers[0] is not None


def agreement(answers: Sequence[str | None]) -> float:
    """Share of all completions that gave the leading answer; 0 where none gave any."""
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
    """Parse completions of one question into a round.

    Args:
        completions: texts.
        question: what was asked.
        num_frames: frames that the model saw.
        times_s: when in the video they are.
        num_tokens: of each completion.
        mean_logprobs: of each completion.
        cancelled: which completions were cancelled; they have no answer, whatever they say.
        is_last: whether the video has no more frames to show.
        num_damaged: damaged frames, replaced by the nearest sound ones.
    """
    answers = tuple(
        None if given_up else parse_answer(text, question)
        for text, given_up in zip(completions, cancelled or [False] * len(completions), strict=True)
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
        num_damaged=num_damaged,
    )


def decide(
    question: Question,
    rounds: Sequence[Round],
    rule: VotingRule | None = None,
    clip: Clip | None = None,
) -> Prediction:
    """Answer a question by the vote of its last round.

    It fails where the model's log-probs are not finite.

    Args:
        question: what was asked.
        rounds: at least one.
        rule: how votes are counted; by majority where none is given.
        clip: frames of the last round.

    Raises:
        VoteError: the rule's vote raises, or gives something that is no weight.
    """
    if not all(map(math.isfinite, rounds[-1].mean_logprobs)):
        # what is sampled from such a model is no answer, not even a wrong one
        reason = (
            f"question {question.id} at {rounds[-1].num_frames} frames: the model's log-probs are "
            "no finite numbers; its weights are damaged or overflow, see model.policy"
        )
        return fail(question, reason, rounds[:-1])
    with naming(question):
        answer = (rule or VotingRule()).answer(rounds[-1])
    correct = is_correct(answer, question)
    return Prediction(question, tuple(rounds), answer, correct=correct, clip=clip)


def fail(question: Question, error: str | None, rounds: Sequence[Round] = ()) -> Prediction:
    """Give up on a question. It is wrong, not missing, where its right answer is known.

    Args:
        question: what was asked.
        error: why there is no answer.
        rounds: those that were finished before.
    """
    correct = None if question.gold is None else False
    return Prediction(question, tuple(rounds), error=error, correct=correct)
