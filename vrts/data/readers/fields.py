"""Fields that annotation formats share: options, gold answers, paths of videos."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vrts.data.readers.records import Record, as_text
from vrts.types import InputError, ProblemType, Question, letters

OPTION = re.compile(r"\(?([A-Z])[.):：．]\s*(.*)", re.DOTALL)  # noqa: RUF001 full-width forms
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.):：．](.*))?", re.DOTALL)  # noqa: RUF001
MAX_OPTIONS = 26
PROBLEM_TYPES = {kind.value.lower(): kind for kind in ProblemType}
"""By the names of Video-R1's files, in lower case."""


def check_options(options: Sequence[str]) -> tuple[str, ...]:
    """Return option texts; raises `InputError` for less than 2, more than 26 or an empty one."""
    if len(options) < 2 or len(options) > MAX_OPTIONS:
        raise InputError(f"a multiple choice needs 2 to {MAX_OPTIONS} options, got {len(options)}")
    if not all(options):
        raise InputError(f"option {letters(options)[list(options).index('')]} is empty")
    return tuple(options)


def strip_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Return option texts without their letters: ``["A. red", "B. blue"]`` gives red and blue.

    Options without letters stay as they are: ``["C. elegans", "E. coli", "yeast"]``.

    Raises:
        InputError: as `check_options`; letters that do not run A, B, C in order, or the right
            letters for some options only.
    """
    texts = check_options([option.strip() for option in options])
    matches = [OPTION.fullmatch(text) for text in texts]
    found = [match for match in matches if match]
    got = "".join(match[1] if match else "-" for match in matches)
    right = [a == b for a, b in zip(got, letters(options), strict=True)]
    if all(right):
        return check_options([match[2].strip() for match in found])
    if any(right) or len(found) == len(options):
        raise InputError(f"options are lettered {got}, expected {letters(options)}")
    return texts


def bare_options(options: Sequence[str]) -> tuple[str, ...]:
    """Return the option texts of a benchmark, whose own labels are not reliable.

    Letters are removed only if every option has one and they ascend from A. MMVU has a question
    labelled A, B, D, E, F whose gold letter is a position, and VideoMMMU has options that all begin
    with ``M:``, which is text. Raises as `check_options`.
    """
    texts = check_options([option.strip() for option in options])
    labels = [match for text in texts if (match := OPTION.fullmatch(text)) and match[2].strip()]
    found = [match[1] for match in labels]
    if len(labels) == len(texts) and found[0] == "A" and found == sorted(set(found)):
        return tuple(match[2].strip() for match in labels)
    return texts


def keyed_options(record: Record, key: str) -> list[str]:
    """Return option texts of a field like ``{"A": "red", "B": "blue"}``, in the order of letters.

    Empty options at the end are left out, all of them for an open question.

    Raises:
        InputError: the field is not such an object, or its keys do not run A, B, C.
    """
    value = record.fields.get(key)
    if not isinstance(value, dict):
        raise InputError(f"field {key!r} must be an object of letter to text")
    texts = {
        str(name).strip(): "" if text is None else as_text(text, key)
        for name, text in value.items()
    }
    names = sorted(texts)
    while names and not texts[names[-1]]:
        names.pop()
    if "".join(names) != letters(names):
        raise InputError(f"field {key!r} has the letters {', '.join(names)}, expected A, B, C …")
    return [texts[name] for name in names]


def gold_answer(
    solution: object, problem_type: ProblemType, options: Sequence[str], key: str = "solution"
) -> str | None:
    """Return the canonical gold answer: a capital letter (``G`` for ``G.``), or stripped text.

    Args:
        solution: Text with or without ``<answer>…</answer>``; None if the answer is not known.
        problem_type: Of the question.
        options: Option texts, to check the letter against.
        key: Name of the field, for messages.

    Raises:
        InputError: an empty solution, or a letter of no option.
    """
    if solution is None:
        return None
    given = as_text(solution, key)
    match = ANSWER_TAG.search(given)
    answer = (match[1] if match else given).strip()
    if not answer:
        raise InputError(f"field {key!r} is empty; use null where the answer is not known")
    if problem_type is not ProblemType.MULTIPLE_CHOICE:
        return answer
    letter = LETTER.fullmatch(answer)
    if letter is None or letter[1].upper() not in letters(options):
        raise InputError(f"answer {answer!r} is none of the letters {letters(options)}")
    name, text = letter[1].upper(), (letter[2] or "").strip().casefold()
    named = [n for n, o in zip(letters(options), options, strict=True) if o.casefold() == text]
    if named and name not in named:
        raise InputError(f"answer {answer!r} has the letter {name} and the text of {named[0]}")
    return name


def time_window(record: Record) -> tuple[float, float | None]:
    """Return the optional fields ``start_s`` and ``end_s``, in seconds of the video.

    Raises:
        InputError: one is not a number or is negative, or the window is empty or reversed.
    """
    start_s = record.number("start_s") if record.has("start_s") else 0.0
    end_s = record.number("end_s") if record.has("end_s") else None
    if start_s < 0:
        raise InputError(f"start_s is {start_s:g}; give seconds from the video's start, 0 or more")
    if end_s is not None and end_s <= start_s:
        raise InputError(f"the window from start_s {start_s:g} to end_s {end_s:g} is empty")
    return start_s, end_s


def check_frame_rate(record: Record) -> None:
    """Raise `InputError` for a field ``fps``, of a folder of frames, that is not a rate."""
    if record.has("fps") and record.number("fps") <= 0:
        raise InputError(f"fps is {record.number('fps'):g}; give frames per second, above 0")


def check_folder(folder: str | None, key: str, content: str = "videos") -> None:
    """Raise `InputError` if a folder is given that does not exist."""
    if folder is not None and not os.path.isdir(folder):
        raise InputError(
            f"{folder}: no such folder; set {key} to the folder that holds the {content}"
        )


def re_root(path: str, root: str | None) -> str:
    """Append a path to a root, of an absolute (foreign) one only its file name."""
    if root is None:
        return path
    pure = PurePosixPath(path.replace("\\", "/"))
    return str(Path(root) / (pure.name if pure.is_absolute() else pure))


def place_video(path: str, root: str | None, annotations: str) -> str:
    """As `re_root`; without a root, relative to the annotation file."""
    if root is None and not PurePosixPath(path).is_absolute():
        return str(Path(annotations).parent / path)
    return re_root(path, root)


def check_videos(questions: Sequence[Question], annotations: str, root: str | None) -> None:
    """Raise `InputError` if none of the videos exists; a few missing ones fail at decoding."""
    videos = dict.fromkeys(question.video for question in questions)
    if not any(os.path.exists(video) for video in videos):
        raise InputError(
            f"{annotations}: none of its {len(videos)} videos exists; looked for "
            f"{next(iter(videos))} first (video_root is {root!r}); set video_root to the folder "
            "that holds them"
        )


def check_frame_rates(questions: Sequence[Question], option: str) -> None:
    """Raise `InputError` for folders of frames whose rows have no ``fps``, before the long work."""
    videos = dict.fromkeys(q.video for q in questions if not q.metadata.get("fps"))
    found = [video for video in videos if os.path.isdir(video)]
    if found:
        raise InputError(
            f"{option}: {found[0]} is a folder of frames without a frame rate, one of {len(found)}"
            "; give its rows a field 'fps', or set data.frames_fps"
        )
