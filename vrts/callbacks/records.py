"""Lines of ``predictions.jsonl``: from a prediction to JSON, and back from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrts.types import InputError, Prediction, Question

Line = dict[str, Any]
"""One line of ``predictions.jsonl``."""


DIGITS = 4
"""Of recorded numbers: a long run's file stays small, and `Round.mean_logprobs` have no more."""


def prediction_line(prediction: Prediction) -> Line:
    """Give a prediction as plain JSON values."""
    return {
        "id": prediction.question.id,
        "answer": prediction.question.answer,
        "prediction": prediction.answer,
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
                "abandoned": list(r.abandoned),
                "is_last": r.is_last,
                "damaged": r.num_damaged,
            }
            for r in prediction.rounds
        ],
        "status": "ok" if prediction.error is None else "failed",
        "error": prediction.error,
        "question": prediction.question.text,
        "options": list(prediction.question.options),
        "problem_type": prediction.question.problem_type.value,
        "video": prediction.question.video,
        "breakdown": _breakdown(prediction.question),
    }


def _breakdown(question: Question) -> dict[str, str]:
    """Category by name, as the reader gives it."""
    found = question.metadata.get("breakdown")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _is_ours(line: Line) -> bool:
    """Whether a JSON object has the fields of a prediction, each of its type."""
    rounds, breakdown = line.get("rounds"), line.get("breakdown")
    return (
        isinstance(line.get("id"), str)
        and isinstance(rounds, list)
        and all(map(_is_round, rounds))
        and (line.get("status") == "failed" or (line.get("status") == "ok" and len(rounds) > 0))
        and line.get("correct", 0) in (True, False, None)
        and {"prediction", "correct"} <= line.keys()
        and isinstance(line["prediction"], str | None)
        and _is_count(line.get("num_frames"))
        and isinstance(line.get("video"), str)
        and isinstance(breakdown, dict)
        and all(isinstance(category, str) for category in breakdown.values())
    )


def _is_round(value: Any) -> bool:
    """Whether a JSON value is a round; what an older version did not write may be absent."""
    if not isinstance(value, dict):
        return False
    agreement = value.get("agreement")
    return (
        _is_count(value.get("num_frames"))
        and isinstance(agreement, int | float)
        and 0 <= agreement <= 1
        and _holds(value.get("completions", []), str)
        and _holds(value.get("answers", []), (str, type(None)))
        and _holds(value.get("abandoned", []), bool)
        and isinstance(value.get("times_s", []), list)
        and isinstance(value.get("is_last", False), bool)
        and _is_count(value.get("damaged", 0))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _holds(value: Any, types: type | tuple[type, ...]) -> bool:
    """Whether a value is a list of these types."""
    return isinstance(value, list) and all(isinstance(item, types) for item in value)


def read_lines(path: Path) -> Iterator[Line]:
    """Read the whole lines of a run's own predictions file one by one, none where there is no file.

    What an interrupted write left behind the last line break is cut off the file.

    Raises:
        InputError: a whole line that is not one of ours.
    """
    if path.exists():
        _cut_torn_line(path)
        yield from _whole_lines(path, "give another output_dir")


def read_other_run(path: Path, option: str) -> Iterator[Line]:
    """Read the whole lines of another run's predictions file, which stays as it is.

    Args:
        path: the file.
        option: that names it, for messages.

    Raises:
        InputError: no such file, or a whole line that is not one of ours.
    """
    if not path.is_file():
        raise InputError(f"{option}: no file {path}; give predictions.jsonl of an earlier run")
    yield from _whole_lines(path, f"give {option} another file")


def without_texts(line: Line) -> Line:
    """Keep of a line what metrics are made of: completions fill most of a long run's file."""
    kept = (
        "id", "status", "error", "correct", "prediction", "video", "breakdown", "num_frames",
        "damaged",
    )  # fmt: skip
    of_round = ("num_frames", "agreement", "abandoned")
    rounds = [{key: r[key] for key in of_round if key in r} for r in line["rounds"]]
    return {key: line.get(key) for key in kept} | {"rounds": rounds}


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        lengths = [len(text) if text.endswith(b"\n") else 0 for text in file]
        file.truncate(sum(lengths))


def _whole_lines(path: Path, remedy: str) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
                complete = isinstance(line, dict) and _is_ours(line)
            except ValueError:
                complete = False
            if not complete:
                raise InputError(
                    f"{path}:{number}: not a line that vrts predict wrote, or an older version of "
                    f"it; repair or remove it, or {remedy}"
                )
            yield line
