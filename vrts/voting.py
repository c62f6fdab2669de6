"""Votes: from the completions of one question to one answer. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vrts.prompts import is_correct, parse_answer
from vrts.types import Prediction, Question, Round


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of several leaders the one that came first.

    Args:
        answers: canonical answers; None is no vote.

    Returns:
        An answer, or None where there is no vote.
    """
    # Counter keeps the order of first appearance, and max takes the first of equals.
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)


def is_unanimous(answers: Sequence[str | None]) -> bool:
    """Whether all completions gave one answer; a missing answer breaks unanimity."""
    return len(set(answers)) == 1 and answers[0] is not None


def agreement(answers: Sequence[str | None]) -> float:
    """Share of all completions that gave the leading answer; 0 where none gave any."""
    leader = majority(answers)
    return 0.0 if leader is None else list(answers).count(leader) / len(answers)


def make_round(completions: Sequence[str], question: Question, num_frames: int) -> Round:
    """Parse completions of one question into a round.

    Args:
        completions: texts.
        question: what was asked.
        num_frames: frames that the model saw.
    """
    answers = tuple(parse_answer(text, question) for text in completions)
    return Round(num_frames, tuple(completions), answers, agreement(answers))


def decide(question: Question, rounds: Sequence[Round]) -> Prediction:
    """Answer a question by the vote of its last round.

    Args:
        question: what was asked.
        rounds: at least one.
    """
    answer = majority(rounds[-1].answers)
    return Prediction(question, tuple(rounds), answer, correct=is_correct(answer, question))


def fail(question: Question, error: str | None, rounds: Sequence[Round] = ()) -> Prediction:
    """Give up on a question. It is wrong, not missing, where its right answer is known.

    Args:
        question: what was asked.
        error: why there is no answer.
        rounds: those that were finished before.
    """
    correct = None if question.answer is None else False
    return Prediction(question, tuple(rounds), error=error, correct=correct)
