"""Subtitles: SubRip files and LongVideoBench's JSON, and which are shown at given times."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import check_folder
from vrts.types import InputError, Question

_TIME = r"(\d+):(\d\d):(\d\d(?:[,.]\d{1,9})?)"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}.*")
_CLOCK = re.compile(_TIME)
_MARKUP = re.compile(r"<[^<>\n]{0,200}>|\{\\[^{}\n]{0,200}\}")


@dataclass(frozen=True, slots=True)
class Cue:
    """A text and when it is shown."""

    start_s: float
    end_s: float
    text: str


@dataclass
class SubtitledReader(RowReader):
    """Reads a benchmark that may be used with subtitles.

    Args:
        subtitles: Folder of the subtitle files; null leaves subtitles out.
        subtitle_frames: Number of frames whose subtitles are shown; null shows all of them.
    """

    subtitles: str | None = None
    subtitle_frames: PositiveInt | None = 128

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`."""
        check_folder(self.subtitles, "subtitles", "subtitles")
        return super().read()


def read_srt(path: Path) -> list[Cue]:
    """Return the cues of a SubRip file in order, without markup and without empty ones.

    Raises:
        InputError: the file cannot be read, or has text but no cue.
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
        raise InputError(f"{path}: has no subtitle; expected lines like 00:00:01,000 --> …")
    return cues


def read_longvideobench(path: Path, start_s: float, duration_s: float) -> list[Cue]:
    """Return the cues of LongVideoBench's subtitle JSON, in times of the clip.

    A row is ``{"start": "00:00:01.5", "end": …, "line"}`` or ``{"timestamp": [1.5, 3.0 or null],
    "text"}``, in times of the video that the clip was cut from.

    The clip starts at ``start_s`` there; a cue without an end lasts until it ends.

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
    """Return the cues that are shown at one of these times, without consecutive repeats."""
    times = list(times_s)

    def is_shown(cue: Cue) -> bool:
        # a shorter cue is extended around its middle
        lacking = max(0.0, at_least_s - (cue.end_s - cue.start_s)) / 2
        return any(cue.start_s - lacking <= time < cue.end_s + lacking for time in times)

    return without_repeats(filter(is_shown, cues))


def without_repeats(cues: Iterable[Cue]) -> list[Cue]:
    """Return the cues without those whose text is that of the one before."""
    return [next(group) for _, group in groupby(cues, lambda cue: cue.text)]


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
