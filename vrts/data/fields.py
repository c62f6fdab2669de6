"""Fields that annotation formats share: options, gold answers, paths of videos."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from vrts.data.records import read_text
from vrts.types import InputError, ProblemType, Question, letters

OPTION = re.compile(r"\(?([A-Z])[.):：．]\s*(.*)", re.DOTALL)  # noqa: RUF001 full-width forms
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.):：．].*)?", re.DOTALL)  # noqa: RUF001
MAX_OPTIONS = 26


def strip_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Return option texts without their letters: ``["A. red", "B. blue"]`` gives red and blue.

    Options without letters stay as they are: ``["C. elegans", "E. coli", "yeast"]``.

    Raises:
        InputError: fewer than two options, more than 26, an empty option, letters that do not run
            A, B, C in order, or the right letters at some options only.
    """
    if len(options) < 2 or len(options) > MAX_OPTIONS:
        raise InputError(f"a multiple choice needs 2 to {MAX_OPTIONS} options, got {len(options)}")
    matches = [OPTION.fullmatch(option.strip()) for option in options]
    found = [match for match in matches if match]
    got = "".join(match[1] if match else "-" for match in matches)
    right = [a == b for a, b in zip(got, letters(options), strict=True)]
    if all(right):
        texts = tuple(match[2].strip() for match in found)
    elif any(right) or len(found) == len(options):
        raise InputError(f"options are lettered {got}, expected {letters(options)}")
    else:
        texts = tuple(option.strip() for option in options)
    if not all(texts):
        raise InputError(f"option {letters(options)[texts.index('')]} is empty")
    return texts


def gold_answer(solution: object, problem_type: ProblemType, options: Sequence[str]) -> str | None:
    """Return the canonical gold answer of a ``<answer>…</answer>`` solution.

    Args:
        solution: Text with or without the tag; None where the answer is not known.
        problem_type: Multiple choice gives a capital letter (``G`` for ``G.``), else stripped text.
        options: Option texts, to check the letter against.

    Raises:
        InputError: an empty solution, or a letter that is no option.
    """
    if solution is None:
        return None
    match = ANSWER_TAG.search(str(solution))
    answer = (match[1] if match else str(solution)).strip()
    if not answer:
        raise InputError("field 'solution' is empty; use null where the answer is not known")
    if problem_type is not ProblemType.MULTIPLE_CHOICE:
        return answer
    letter = LETTER.fullmatch(answer)
    if letter is None or letter[1].upper() not in letters(options):
        raise InputError(f"answer {answer!r} is none of the letters {letters(options)}")
    return letter[1].upper()


def check_folder(folder: str | None, key: str) -> None:
    """Raise `InputError` if a folder is given that does not exist."""
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; set {key} to the folder that holds the videos")


def load_video_map(video_map: Mapping[str, str] | str | None) -> dict[str, str]:
    """Return the map from video ids to clip files, read from JSON where a path is given.

    Raises:
        InputError: no such file, or it is not a JSON object of text to text.
    """
    if video_map is None:
        return {}
    if not isinstance(video_map, str):
        return dict(video_map)
    try:
        value = json.loads(read_text(video_map))
    except json.JSONDecodeError as error:
        raise InputError(f"{video_map}: not valid JSON ({error})") from error
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InputError(f"{video_map}: video_map must be a JSON object of video id to clip path")
    return value


def re_root(path: str, root: str | None) -> str:
    """Place a path under a root: a relative one whole, an absolute (foreign) one by its name."""
    if root is None:
        return path
    pure = PurePosixPath(path.replace("\\", "/"))
    return str(Path(root) / (pure.name if pure.is_absolute() else pure))


def check_videos(questions: Sequence[Question], annotations: str, root: str | None) -> None:
    """Raise `InputError` if not a single one of the videos is there.

    One missing video is left to decoding, where it fails by name and the run goes on.
    """
    videos = dict.fromkeys(question.video for question in questions)
    if not any(Path(video).exists() for video in videos):
        raise InputError(
            f"{annotations}: none of its {len(videos)} videos exists; looked for "
            f"{next(iter(videos))} first (video_root is {root!r}); set video_root to the folder "
            "that holds them"
        )
