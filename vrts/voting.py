"""From the completions of one question to one answer. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vrts.answers import is_correct, parse_answer
from vrts.types import Clip, Prediction, Question, Round
from vrts.votes import VotingRule, elect, naming


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
    abandoned: Sequence[bool] = (),
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
        abandoned: which completions were cancelled; they have no answer, whatever they say.
        is_last: whether the video has no more frames to show.
        num_damaged: damaged frames, replaced by the nearest sound ones.
    """
    answers = tuple(
        None if given_up else parse_answer(text, question)
        for text, given_up in zip(completions, abandoned or [False] * len(completions), strict=True)
    )
    return Round(
        num_frames,
        tuple(completions),
        answers,
        agreement(answers),
        tuple(times_s),
        tuple(num_tokens),
        tuple(mean_logprobs),
        tuple(abandoned),
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
