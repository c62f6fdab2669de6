"""``predictions.jsonl``: one `vrts.types.Prediction` per line; only this module knows the format.

``gold`` is the right answer, ``answers`` of a round are parsed from its completions, and ``answer``
is what their vote came to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vrts.files.json_lines import append_lines, json_line, whole_lines
from vrts.files.writing import replacing
from vrts.types import InputError, Prediction, ProblemType, Question, Round

FILE_NAME, SETTINGS_NAME, METRICS_NAME = "predictions.jsonl", "settings.json", "metrics.json"
"""Files of a prediction run: its lines, the settings that they depend on, and their summary."""

DIGITS = 4  # of recorded numbers: files stay small, and `Round.mean_logprobs` have no more

CACHED_PREDICTIONS = 256
"""Kept in memory by `StoredPredictions`, more than a batch: some 20 kB each."""


def read_predictions(path: str | Path) -> Iterator[Prediction]:
    """Yield the predictions of a ``predictions.jsonl``; all of them may not fit into memory.

    An incomplete last line of an interrupted run is skipped, and stays in the file.

    Raises:
        InputError: no such file, or a complete line that vrts did not write.
    """
    if not Path(path).is_file():
        raise InputError(f"no file {path}; give the {FILE_NAME} of a run of vrts predict")
    for source, line in whole_lines(Path(path)):
        yield _parse_line(source, line)


def append_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Append predictions and flush them to disk; raises as `append_lines`."""
    append_lines(path, map(prediction_to_json, predictions))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a file of predictions atomically; raises as `replacing`."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.writelines(json_line(prediction_to_json(prediction)) for prediction in predictions)


class StoredPredictions:
    """The predictions of a file by the ids of their questions.

    Lines stay in the file and are read again when needed: completions of a long run take much
    memory.

    Raises:
        InputError: no such file, or a complete line that vrts did not write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[str, int] = {}
        self.num_cut_short = 0  # questions with completions that an early stop cancelled
        self._read = lru_cache(CACHED_PREDICTIONS)(self._read_line)
        offset = 0
        for source, line in whole_lines(path):
            found = _parse_line(source, line)
            self._offsets[found.question.id] = offset
            self.num_cut_short += any(any(r.cancelled) for r in found.rounds)
            offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, id: str) -> Prediction | None:
        """Return the prediction of a question, or None if there is none."""
        return self._read(id) if id in self._offsets else None

    def _read_line(self, id: str) -> Prediction:
        with self._path.open("rb") as file:
            file.seek(self._offsets[id])
            return _parse_line(f"{self._path}: question {id}", file.readline())


def without_texts(prediction: Prediction) -> Prediction:
    """Return a prediction without what metrics do not need: texts take most of the memory."""
    rounds = (
        replace(r, completions=(), answers=(), times_s=(), num_tokens=(), mean_logprobs=())
        for r in prediction.rounds
    )
    question = replace(prediction.question, text="", options=())
    return replace(prediction, question=question, rounds=tuple(rounds))


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as plain JSON values: a line of the file."""
    question = prediction.question
    return {
        "id": question.id,
        "gold": question.gold,
        "answer": prediction.answer,
        "correct": prediction.correct,
        "num_frames": prediction.num_frames,
        "damaged": prediction.num_damaged,
        "rounds": [
            {
                "num_frames": r.num_frames,
                "times_s": [round(time, DIGITS) for time in r.times_s],
                "completions": list(r.completions),
                "answers": list(r.answers),
                "agreement": round(r.agreement, DIGITS),
                "num_tokens": list(r.num_tokens),
                "mean_logprobs": [round(mean, DIGITS) for mean in r.mean_logprobs],
                "cancelled": list(r.cancelled),
                "is_last": r.is_last,
                "damaged": r.num_damaged,
            }
            for r in prediction.rounds
        ],
        "status": "ok" if prediction.error is None else "failed",
        "error": prediction.error,
        "question": question.text,
        "options": list(question.options),
        "problem_type": question.problem_type.value,
        "video": question.video,
        "breakdown": question.breakdown,
    }


def prediction_from_json(line: dict[str, Any], source: str = "") -> Prediction:
    """Return the prediction that `prediction_to_json` turned into this line.

    Raises:
        InputError: a field is missing or of another type; the message names it.
    """
    if "prediction" in line:  # of an older version, which called the right answer "answer"
        line = line | {"gold": line.get("answer"), "answer": line["prediction"]}
    breakdown = _field(line, "breakdown", dict)
    if not all(isinstance(category, str) for category in breakdown.values()):
        raise InputError("field 'breakdown' must be an object of name to category")
    problem_type = _field(line, "problem_type", str)
    if problem_type not in set(ProblemType):
        raise InputError(f"unknown problem_type {problem_type!r}; one of {', '.join(ProblemType)}")
    rounds = tuple(map(_round_from_json, _items(line, "rounds", dict)))
    status = _field(line, "status", str)
    if status not in ("ok", "failed") or (status == "ok" and not rounds):
        raise InputError(f"status {status!r} with {len(rounds)} rounds")
    error = _field(line, "error", str | None)
    return Prediction(
        question=Question(
            id=_field(line, "id", str),
            text=_field(line, "question", str),
            video=_field(line, "video", str),
            problem_type=ProblemType(problem_type),
            options=_items(line, "options", str),
            gold=_field(line, "gold", str | None),
            source=source,
            metadata={"breakdown": breakdown},
        ),
        rounds=rounds,
        answer=_field(line, "answer", str | None),
        error=None if status == "ok" else error or "not recorded",
        correct=_field(line, "correct", bool | None),
    )


def _round_from_json(found: dict[str, Any]) -> Round:
    agreement = _field(found, "agreement", int | float)
    if not 0 <= agreement <= 1:
        raise InputError(f"field 'agreement' must be from 0 to 1, got {agreement}")
    completions = _items(found, "completions", str)
    lists: dict[str, Any] = {
        "answers": _items(found, "answers", str | None),
        "num_tokens": _items(found, "num_tokens", int),
        "mean_logprobs": _items(found, "mean_logprobs", int | float),
        "cancelled": _items(found, "cancelled", bool),
    }
    for key, values in lists.items():
        if len(values) not in (0, len(completions)):
            raise InputError(f"field {key!r} has {len(values)} of {len(completions)} completions")
    return Round(
        num_frames=_field(found, "num_frames", int),
        completions=completions,
        agreement=agreement,
        times_s=_items(found, "times_s", int | float),
        is_last=_field(found, "is_last", bool),
        num_damaged=_field({"damaged": 0} | found, "damaged", int),
        **lists,
    )


def _parse_line(source: str, line: bytes) -> Prediction:
    try:
        found = json.loads(line)
        if not isinstance(found, dict):
            raise InputError("expected a JSON object")
        return prediction_from_json(found, source)
    except (ValueError, RecursionError) as error:  # an InputError is a ValueError
        raise InputError(
            f"{source}: not a line that vrts predict wrote, or one of an older version ({error}); "
            "repair or remove it"
        ) from error


def _field(values: dict[str, Any], key: str, kind: Any) -> Any:
    """A required value of a type."""
    if key not in values:
        raise InputError(f"field {key!r} is missing")
    if not isinstance(values[key], kind):
        name = getattr(kind, "__name__", str(kind))
        raise InputError(f"field {key!r} must be {name}, got {type(values[key]).__name__}")
    return values[key]


def _items(values: dict[str, Any], key: str, kind: Any) -> tuple[Any, ...]:
    """A required list of values of a type."""
    items = _field(values, key, list)
    if not all(isinstance(item, kind) for item in items):
        raise InputError(f"field {key!r} must be a list of {getattr(kind, '__name__', kind)}")
    return tuple(items)
