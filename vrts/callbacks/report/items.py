"""What the report says of each question: from a line of ``predictions.jsonl`` to plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vrts.callbacks.records import Line
from vrts.prompts import is_correct
from vrts.terminal import shorten
from vrts.types import Question, letters
from vrts.voting import majority

Item = dict[str, Any]
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
"""What questions can be filtered by, and how it is called."""


def report_item(line: Line, question: Question | None, most_characters: int) -> Item:
    """Say what the report shows of one question.

    Args:
        line: of ``predictions.jsonl``.
        question: what was asked; None where the reader no longer has it.
        most_characters: of a completion; the middle of a longer one is left out.

    Returns:
        ``id``, ``question``, ``video``, ``options`` (pairs of letter and text), ``gold``,
        ``answer``, ``error``, ``tags`` (keys of `TAGS`), ``groups`` (category by breakdown) and
        ``rounds``: each with its ``frames``, how many are ``damaged``, ``span_s``, ``agreement``,
        ``votes`` (pairs of answer and count, the leader first; None is no answer), whether its
        majority is ``right``, and ``completions`` (``text``, ``answer``, ``abandoned``).
    """
    rounds = [_round(r, question, most_characters) for r in line["rounds"]]
    if rounds and line["status"] == "ok":
        rounds[-1]["right"] = line["correct"]
    options = question.options if question else ()
    return {
        "id": line["id"],
        "question": question.text if question else "",
        "video": question.video if question else "",
        "options": [list(pair) for pair in zip(letters(options), options, strict=False)],
        "gold": line.get("answer"),
        "answer": line["prediction"],
        "error": line.get("error"),
        "tags": item_tags(line),
        "groups": _groups(line, question),
        "rounds": rounds,
    }


def outline(item: Item) -> Item:
    """What is needed of all questions at a time: no texts, which fill most of a report.

    Args:
        item: as `report_item` gives it.

    Returns:
        ``id``, ``tags``, ``groups`` and ``rounds``, these with ``frames`` and ``right``.
    """
    rounds = [{"frames": r["frames"], "right": r["right"]} for r in item["rounds"]]
    return {"id": item["id"], "tags": item["tags"], "groups": item["groups"], "rounds": rounds}


def item_tags(line: Line) -> list[str]:
    """Which of `TAGS` a line has. A failed question is no wrong answer here; both are wrong."""
    failed, correct = line["status"] == "failed", line["correct"]
    agreed = bool(line["rounds"]) and line["rounds"][-1]["agreement"] == 1
    found = {
        "right": correct is True,
        "wrong": correct is False and not failed,
        "failed": failed,
        "unscored": correct is None,
        "undecided": not failed and not agreed,
        "agreed-wrong": correct is False and not failed and agreed,
        "no-answer": not failed and line["prediction"] is None,
        "damaged": bool(line.get("damaged")),
    }
    return [tag for tag in TAGS if found[tag]]


def completion_limit(lines: Iterable[Line], most_characters: int, budget: int) -> int:
    """How long completions may be, so that all of them together stay within a budget.

    Args:
        lines: of ``predictions.jsonl``.
        most_characters: of one completion.
        budget: characters of all completions.
    """
    lengths = [len(text) for line in lines for text in _completions(line)]
    if sum(min(length, most_characters) for length in lengths) <= budget:
        return most_characters
    return budget // len(lengths)


def by_priority(items: Sequence[Item]) -> list[Item]:
    """Items or outlines, those whose frames are most worth showing first: wrong, undecided."""

    def rank(item: Item) -> int:
        tags = item["tags"]
        return 0 if "wrong" in tags or "failed" in tags else 1 if "undecided" in tags else 2

    return sorted(items, key=rank)


def _completions(line: Line) -> Iterable[str]:
    return (text for r in line["rounds"] for text in r.get("completions", ()))


def _round(data: Mapping[str, Any], question: Question | None, most_characters: int) -> Item:
    texts, answers = list(data.get("completions", ())), list(data.get("answers", ()))
    abandoned = list(data.get("abandoned", ())) or [False] * len(texts)
    voted = [a for a, given_up in zip(answers, abandoned, strict=False) if not given_up]
    votes = Counter(voted).most_common()
    times = [t for t in data.get("times_s", ()) if isinstance(t, int | float) and math.isfinite(t)]
    return {
        "frames": data["num_frames"],
        "damaged": data.get("damaged", 0),
        "span_s": [round(min(times), 2), round(max(times), 2)] if times else None,
        "agreement": data["agreement"],
        "votes": sorted(votes, key=lambda vote: vote[0] is None),
        "right": is_correct(majority(answers), question) if question else None,
        "completions": [
            {"text": shorten(text, most_characters), "answer": answer, "abandoned": bool(given_up)}
            for text, answer, given_up in zip(texts, answers, abandoned, strict=False)
        ],
    }


def _groups(line: Line, question: Question | None) -> dict[str, str]:
    """Category of a question in each breakdown of its benchmark, and its problem type."""
    found = line.get("breakdown") or (question.metadata.get("breakdown") if question else None)
    groups = {str(name): str(value) for name, value in dict(found or {}).items()}
    if question and "problem type" not in groups:
        groups["problem type"] = question.problem_type.value
    return groups
