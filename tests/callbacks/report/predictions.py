"""Predictions, and their questions."""

from typing import Any

from tests.callbacks.plugins import completion
from vrts.answers import parse_answer
from vrts.types import Prediction, Question, Round
from vrts.voting import agreement, decide, fail

OPTIONS = ("a red cup", "a blue cup", "a green cup")


def question(id: str, answer: str | None = "A", **options: Any) -> Question:
    return Question(
        id, **({"text": f"What is {id}?", "video": f"{id}.mp4"} | options),
        options=OPTIONS, gold=answer,
    )  # fmt: skip


def make_round(asked: Question, num_frames: int, letters: str) -> Round:
    """A round of answers, ``-`` for none."""
    texts = tuple(completion(letter) for letter in letters)
    answers = tuple(parse_answer(text, asked) for text in texts)
    return Round(num_frames, texts, answers, agreement(answers))


def decided(asked: Question, **votes: str) -> Prediction:
    """A prediction; votes by frames, such as ``f4="AAB"``."""
    rounds = [make_round(asked, int(name[1:]), letters) for name, letters in votes.items()]
    return decide(asked, rounds)


def failed(asked: Question, error: str = "no video", **votes: str) -> Prediction:
    """That of a question that failed after some rounds."""
    rounds = [make_round(asked, int(name[1:]), letters) for name, letters in votes.items()]
    return fail(asked, error, rounds)
