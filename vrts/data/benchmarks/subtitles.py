"""Subtitles: SubRip files and LongVideoBench's JSON, and which of them are on at given times."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrts.types import InputError

_TIME = r"(\d+):(\d\d):(\d\d(?:[,.]\d{1,9})?)"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}.*")
_CLOCK = re.compile(_TIME)
_MARKUP = re.compile(r"<[^<>\n]{0,200}>|\{\\[^{}\n]{0,200}\}")


@dataclass(frozen=True, slots=True)
class Cue:
    """A text that is on for a while."""

    start_s: float
    end_s: float
    text: str


def read_srt(path: Path) -> list[Cue]:
    """Return the cues of a SubRip file in order, without markup and without empty ones.

    Letters that are not UTF-8 are replaced.

    Raises:
        InputError: the file cannot be read, or holds text but no cue.
    """
    blocks = re.split(r"\n[ \t]*\n", _read(path))
    cues = []
    for block in blocks:
        lines = block.split("\n")
        for i, line in enumerate(lines):
            if match := _TIMES.fullmatch(line):
                text = " ".join(_MARKUP.sub("", " ".join(lines[i + 1 :])).split())
                start_s, end_s = _seconds(match.groups()[:3]), _seconds(match.groups()[3:])
                cues += [Cue(start_s, end_s, text)] if text else []
                break
    if not cues and "-->" not in "".join(blocks) and any(block.strip() for block in blocks):
        raise InputError(f"{path}: holds no subtitle; expected lines like 00:00:01,000 --> …")
    return cues


def read_longvideobench(path: Path, start_s: float, duration_s: float) -> list[Cue]:
    """Return the cues of LongVideoBench's subtitle JSON, in times of the clip.

    A row is ``{"start": "00:00:01.5", "end": …, "line"}`` or ``{"timestamp": [1.5, 3.0 or null],
    "text"}``, in times of the video that the clip was cut from.

    Args:
        path: The file.
        start_s: Where the clip begins in that video.
        duration_s: How long the clip is; a cue without end is on until the clip ends.

    Raises:
        InputError: the file cannot be read or has another form.
    """
    try:
        rows = json.loads(_read(path))
        timed = [_timed(row) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is not LongVideoBench's subtitle JSON ({error!r})") from error
    ends = [start_s + duration_s if end is None else end for _, end, _ in timed]
    cues = [
        Cue(start - start_s, end - start_s, " ".join(text.split()))
        for (start, _, text), end in zip(timed, ends, strict=True)
    ]
    return [cue for cue in cues if cue.text]


def cues_at(cues: Sequence[Cue], times_s: Iterable[float], at_least_s: float = 0.0) -> list[Cue]:
    """Return the cues that are on at one of these times, in order, each text once in a row.

    Args:
        cues: All of them.
        times_s: The times.
        at_least_s: A shorter cue counts as being on for so long, around its middle.
    """
    times = list(times_s)

    def is_on(cue: Cue) -> bool:
        lacking = max(0.0, at_least_s - (cue.end_s - cue.start_s)) / 2
        return any(cue.start_s - lacking <= time < cue.end_s + lacking for time in times)

    return without_repeats([cue for cue in cues if is_on(cue)])


def without_repeats(cues: Sequence[Cue]) -> list[Cue]:
    """Return the cues but those with the text of the one before."""
    pairs = zip([None, *cues[:-1]], cues, strict=True) if cues else ()
    return [cue for before, cue in pairs if before is None or before.text != cue.text]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds = parts
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def _timed(row: dict[str, Any]) -> tuple[float, float | None, str]:
    """Start, end and text of one row of LongVideoBench's subtitles."""
    if "timestamp" in row:
        start, end = row["timestamp"]
        return float(start), None if end is None else float(end), str(row["text"])
    clocks = [_CLOCK.fullmatch(str(row[key])) for key in ("start", "end")]
    if clocks[0] is None or clocks[1] is None:
        raise ValueError(f"times {row['start']!r} to {row['end']!r}")
    return _seconds(clocks[0].groups()), _seconds(clocks[1].groups()), str(row["line"])
