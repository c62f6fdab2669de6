"""What the report shows of each question: from a prediction to plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vrts.answers import is_correct
from vrts.terminal import shorten
from vrts.types import Prediction, Question, Round, letters
from vrts.voting import majority

Entry = dict[str, Any]
"""A question of the report, as plain JSON values."""

TAGS = {
    "right": "right",
    "wrong": "wrong answer",
    "failed": "failed",
    "unscored": "right answer not known",
    "undecided": "not unanimous at the end",
    "agreed-wrong": "unanimous and wrong",
    "no-answer": "without an answer",
    "damaged": "with damaged frames",
}
"""What questions can be filtered by, and its label."""

NEW_ANSWER = "\0"
"""Stands for a wrong answer that no completion gave."""


def report_entry(prediction: Prediction, most_characters: int) -> Entry:
    """Return what the report shows of one question.

    The middle of a completion with more than `most_characters` is left out.
    """
    question = prediction.question
    rounds = [_round(r, question, most_characters) for r in prediction.rounds]
    if rounds and prediction.error is None:
        rounds[-1]["right"] = prediction.correct
    return {
        "id": question.id,
        "question": question.text,
        "video": question.video,
        # pairs of letter and text
        "options": [list(p) for p in zip(letters(question.options), question.options, strict=True)],
        "gold": question.gold,
        "answer": prediction.answer,
        "error": prediction.error,
        "tags": entry_tags(prediction),
        # category by breakdown
        "groups": {"problem type": question.problem_type.value} | question.breakdown,
        "rounds": rounds,
    }


def summary(entry: Entry) -> Entry:
    """Return what is needed of all questions at once: no texts, which fill most of a report."""
    rounds = [{"frames": r["frames"], "right": r["right"]} for r in entry["rounds"]]
    return {"id": entry["id"], "tags": entry["tags"], "groups": entry["groups"], "rounds": rounds}


def entry_tags(prediction: Prediction) -> list[str]:
    """Return its `TAGS`. A failed question is not a wrong answer here; both are scored as wrong."""
    failed, correct = prediction.error is not None, prediction.correct
    agreed = bool(prediction.rounds) and prediction.rounds[-1].agreement == 1
    found = {
        "right": correct is True,
        "wrong": correct is False and not failed,
        "failed": failed,
        "unscored": correct is None,
        "undecided": not failed and not agreed,
        "agreed-wrong": correct is False and not failed and agreed,
        "no-answer": not failed and prediction.answer is None,
        "damaged": not failed and prediction.num_damaged > 0,
    }
    return [tag for tag in TAGS if found[tag]]


def completion_limit(predictions: Iterable[Prediction], most_characters: int, budget: int) -> int:
    """Return how many characters of each completion fit into a budget of all together."""
    lengths = [len(text) for p in predictions for r in p.rounds for text in r.completions]
    if sum(min(length, most_characters) for length in lengths) <= budget:
        return most_characters
    return budget // len(lengths)


def by_priority(entries: Sequence[Entry]) -> list[Entry]:
    """Sort entries or summaries by whose frames are worth showing: wrong, undecided, others."""

    def rank(entry: Entry) -> int:
        tags = entry["tags"]
        return 0 if "wrong" in tags or "failed" in tags else 1 if "undecided" in tags else 2

    return sorted(entries, key=rank)


def _round(found: Round, question: Question, most_characters: int) -> Entry:
    cancelled = _cancelled(found)
    votes = Counter(a for a, gone in zip(found.answers, cancelled, strict=True) if not gone)
    times = [time for time in found.times_s if math.isfinite(time)]
    return {
        "frames": found.num_frames,
        "damaged": found.num_damaged,
        "span_s": [round(min(times), 2), round(max(times), 2)] if times else None,
        "agreement": found.agreement,
        # pairs of answer and count, the leader first; None is no answer
        "votes": sorted(votes.most_common(), key=lambda vote: vote[0] is None),
        "right": _is_right(found, question),
        "completions": [
            {"text": shorten(text, most_characters), "answer": answer, "cancelled": gone}
            for text, answer, gone in zip(found.completions, found.answers, cancelled, strict=True)
        ],
    }


def _cancelled(found: Round) -> Sequence[bool]:
    return found.cancelled or (False,) * len(found.answers)


def _is_right(found: Round, question: Question) -> bool | None:
    """Whether a round's majority is right; None if that depends on votes that were cancelled."""
    outcomes = set()
    for missing in (None, NEW_ANSWER, question.gold, *found.answers):
        # all cancelled votes for one answer: no mixture of answers could do more for it
        pairs = zip(found.answers, _cancelled(found), strict=True)
        winner = majority([missing if gone else answer for answer, gone in pairs])
        outcomes.add(winner != NEW_ANSWER and is_correct(winner, question))
    return outcomes.pop() if len(outcomes) == 1 else None
