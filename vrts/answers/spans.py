"""Time spans in answers: parsing, canonical form, comparison."""

from __future__ import annotations

import re

from vrts.answers.numbers import canonical_number
from vrts.answers.tags import final_answer

# A clock time or a number of seconds. Possessive quantifiers: digits are scanned once.
_TIME = re.compile(
    r"""
    (?<![\w.:]) (?:(?:(?P<hours>\d{1,2}):)?(?P<minutes>\d{1,3}):)?
    (?P<seconds>\d{1,9}+(?:\.\d{1,9}+)?) (?:\s?(?:s|secs?|seconds?)(?!\w))?
    (?![\w:%]|\.\d|\s?(?:m|mins?|minutes?|h|hrs?|hours?)(?!\w))
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


def extract_span(text: str) -> tuple[float, float] | None:
    """Return the start and end in seconds that a completion gives as its answer, or None.

    The answer (`vrts.answers.tags.final_answer`) must contain two times, in order, in seconds or as
    ``mm:ss`` or ``hh:mm:ss``, with any words or brackets around them; "5 minutes" is no such time.

    Example:
        >>> extract_span("<answer>from 12.5 s to 01:20</answer>")
        (12.5, 80.0)
    """
    times = [_seconds(match) for match in _TIME.finditer(final_answer(text))]
    if len(times) != 2 or times[0] > times[1]:
        return None
    return times[0], times[1]


def canonical_span(span: tuple[float, float]) -> str:
    """Return the canonical form of a span: ``12.5 to 80``."""
    return f"{canonical_number(span[0])} to {canonical_number(span[1])}"


def span_iou(span: tuple[float, float], gold: tuple[float, float]) -> float:
    """Intersection over union of two spans.

    Example:
        >>> span_iou((0.0, 10.0), (5.0, 20.0))
        0.25
    """
    union = max(span[1], gold[1]) - min(span[0], gold[0])
    if union == 0:
        return 1.0  # the same moment
    return max(min(span[1], gold[1]) - max(span[0], gold[0]), 0.0) / union


def _seconds(match: re.Match[str]) -> float:
    hours, minutes = int(match["hours"] or 0), int(match["minutes"] or 0)
    return 3600 * hours + 60 * minutes + float(match["seconds"])
