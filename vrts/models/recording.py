"""What an earlier prediction run recorded, to be looked up by question and number of frames."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from vrts.types import InputError

KEPT_QUESTIONS = 256
"""Questions whose completions are kept in memory, more than a batch has: some 20 kB each."""


@dataclass(frozen=True, slots=True)
class RecordedRound:
    """What was sampled for one question at one number of frames; see `vrts.types.Round`."""

    num_frames: int
    texts: tuple[str, ...]
    times_s: tuple[float, ...]
    num_tokens: tuple[int, ...]
    mean_logprobs: tuple[float, ...]
    abandoned: tuple[bool, ...]
    is_last: bool
    """Whether the video is known to have no more frames to show."""
    num_damaged: int = 0


@dataclass(frozen=True, slots=True)
class RecordedQuestion:
    """What became of one question."""

    rounds: tuple[RecordedRound, ...]
    error: str | None


class Recording:
    """A ``predictions.jsonl`` with the ``settings.json`` beside it.

    Completions of long runs take more memory than anything else: they stay in the file, and lines
    are read again when they are asked for.

    Args:
        path: of the former.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, int] = {}
        self._levels: list[int] = []
        self._consensus: int | None = None
        self._question = lru_cache(KEPT_QUESTIONS)(self._read_question)

    @property
    def is_read(self) -> bool:
        """Whether `read` has been called."""
        return bool(self._levels)

    def read(self) -> None:
        """Read both files.

        Raises:
            InputError: one is missing or is not what ``vrts predict`` writes.
        """
        levels, self._consensus = read_settings(self.path.with_name("settings.json"))
        offset = 0
        with self._open() as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                    parse_question(line, levels, self._consensus)
                    self._offsets[line["id"]] = offset
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    raise InputError(
                        f"{self.path}:{number}: not a line of vrts predict that can be replayed "
                        f"({error!r}); record the run again, or remove the line"
                    ) from error
                offset += len(text)
        self._levels = levels

    def find(self, id: str, num_frames: int) -> RecordedRound | str:
        """The round of a question at a number of frames asked for, or why there is none."""
        if id not in self._offsets:
            return f"{self.path}: question {id} is not recorded; predict it with the model first"
        question = self._question(id)
        for found in question.rounds:
            if found.num_frames == num_frames or (found.is_last and found.num_frames < num_frames):
                return found
        seen = [found.num_frames for found in question.rounds]
        failed_here = self._levels[len(seen) : len(seen) + 1] == [num_frames]
        if question.error is not None and (failed_here or not seen):
            return question.error
        return (
            f"{self.path}: question {id} is recorded at {seen} frames and not at {num_frames}; "
            "predict it at that level with the model first"
        )

    def checksum(self) -> str:
        """SHA-256 of the file.

        Raises:
            InputError: it cannot be read.
        """
        with self._open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _read_question(self, id: str) -> RecordedQuestion:
        with self._open() as file:
            file.seek(self._offsets[id])
            return parse_question(json.loads(file.readline()), self._levels, self._consensus)

    def _open(self) -> BufferedReader:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InputError(
                f"model.policy.path: cannot read {self.path} ({error.strerror}); give the "
                "predictions.jsonl of an earlier run"
            ) from error


def read_settings(path: Path) -> tuple[list[int], int | None]:
    """Frames that a run asked for in each round, and how many answers had to agree.

    Raises:
        InputError: the file is missing or is not what ``vrts predict`` writes.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        levels = [int(level) for level in settings["levels"]]
        if not levels:
            raise ValueError("levels is empty")
        return levels, settings.get("consensus")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot read what the recorded run asked for ({error!r}); keep this file "
            "beside its predictions.jsonl"
        ) from error


def parse_question(
    line: dict[str, Any], levels: Sequence[int], consensus: int | None
) -> RecordedQuestion:
    """Take a question from its line.

    Args:
        line: of ``predictions.jsonl``.
        levels: frames that were asked for in each round.
        consensus: answers that had to agree, all where it is None.
    """
    rounds = line["rounds"]
    flags = [
        found["num_frames"] < asked or found.get("is_last", False) is True
        for found, asked in zip(rounds, levels, strict=False)
    ]
    ended = line["error"] is None and len(rounds) < len(levels)
    if ended and "is_last" not in rounds[-1]:
        # an older version did not write why it ended before the last level: its answers agreed,
        # or there were no more frames
        answers = rounds[-1]["answers"]
        votes = Counter(answer for answer in answers if answer is not None)
        agreed = max(votes.values(), default=0) >= (consensus or len(answers))
        flags[-1] = flags[-1] or not agreed
    return RecordedQuestion(
        tuple(_parse_round(found, flag) for found, flag in zip(rounds, flags, strict=True)),
        line["error"],
    )


def _parse_round(found: dict[str, Any], is_last: bool) -> RecordedRound:
    texts = tuple(found["completions"])
    return RecordedRound(
        num_frames=found["num_frames"],
        texts=texts,
        times_s=tuple(found.get("times_s") or ()),
        num_tokens=tuple(found.get("num_tokens") or [1] * len(texts)),
        mean_logprobs=tuple(found.get("mean_logprobs") or [0.0] * len(texts)),
        abandoned=tuple(found.get("abandoned") or [False] * len(texts)),
        is_last=is_last,
        num_damaged=found.get("damaged", 0),
    )
