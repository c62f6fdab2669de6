"""The canonical answer of a completion, and whether it is right.

Reward, vote and score use these two functions and no others, so an answer cannot be right for one
and wrong for another.
"""

from __future__ import annotations

import re

from vrts.choices import extract_choice
from vrts.completions import final_answer, strip_lead_in
from vrts.numbers import canonical_number, extract_number, numbers_match
from vrts.types import InputError, ProblemType, Question, letters

DEFAULT_TOLERANCE = 1e-2
"""Of numerical answers, see :func:`vrts.numbers.numbers_match`."""

_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|textbf)\s?\{([^{}]{0,2000})\}")
_TERM = re.compile(r"(?:(?<!\w)[-+])?\d+(?:[.,/]\d+)*%?|[^\W_]+(?:\+\+|\#)?")
_ARTICLES = frozenset(["a", "an", "the"])
_NO_TEXT = " \t\r\n.,;:!?'\"…_*`"


def parse_answer(text: str, question: Question) -> str | None:
    """Give the canonical answer of a completion. Equal answers give equal strings.

    Returns:
        The letter for multiple choice (:func:`vrts.choices.extract_choice`), the number as text
        (:func:`vrts.numbers.extract_number`), or the text as :func:`normalise_text` leaves it;
        None where the completion has no answer.

    Example:
        >>> question = Question("1", "How long?", "a.mp4", ProblemType.NUMERICAL)
        >>> parse_answer("<answer>1/2 s</answer>", question)
        '0.5'
    """
    return _PARSERS[question.problem_type](text, question)


def is_correct(
    answer: str | None, question: Question, tolerance: float = DEFAULT_TOLERANCE
) -> bool | None:
    """Whether a canonical answer is right. No answer is wrong.

    Letters and texts must be equal, numbers by :func:`vrts.numbers.numbers_match`. A gold value
    with a percent sign is met by the percentage and by the fraction: 50% by 50 and by 0.5.

    Args:
        answer: What :func:`parse_answer` gave.
        question: The question with its gold answer.
        tolerance: Of numbers.

    Returns:
        True or False, or None where the right answer is not known.

    Raises:
        InputError: the gold answer is no letter of an option, or no number.

    Example:
        >>> question = Question("1", "Which?", "a.mp4", options=("red", "blue"), answer="B")
        >>> is_correct("B", question), is_correct(None, question)
        (True, False)
    """
    if question.answer is None:
        return None
    return _CHECKS[question.problem_type](answer, question, question.answer, tolerance)


def normalise_text(text: str) -> str | None:
    """Normalise free-form text: case, whitespace, punctuation and articles do not count.

    Signs and decimal points of numbers, ``%``, ``C++`` and ``C#`` are kept. A text of symbols alone
    stays as it is.

    Returns:
        The text, or None where nothing is left.

    Example:
        >>> normalise_text("The  Third-person (view).")
        'third person view'
    """
    folded = text.casefold().replace("'", "").replace("\u2019", "")
    terms = [
        term.replace(",", "") if term[-1].isdigit() else term for term in _TERM.findall(folded)
    ]
    kept = [term for term in terms if term not in _ARTICLES] or terms
    return " ".join(kept) or "".join(folded.split()).strip(_NO_TEXT) or None


def _parse_choice(text: str, question: Question) -> str | None:
    return extract_choice(text, question.options)


def _parse_number(text: str, _question: Question) -> str | None:
    value = extract_number(text)
    return None if value is None else canonical_number(value)


def _parse_text(text: str, _question: Question) -> str | None:
    return normalise_text(strip_lead_in(_WRAPPED.sub(r"\1", final_answer(text))))


def _check_choice(answer: str | None, question: Question, gold: str, _tolerance: float) -> bool:
    letter = gold.strip().upper()
    known = letters(question.options)
    if len(letter) != 1 or letter not in known:
        raise InputError(
            f"{_where(question)}: the gold answer {gold!r} is not one of the option letters "
            f"{known or '(no options)'}; correct the record"
        )
    return answer == letter


def _check_number(answer: str | None, question: Question, gold: str, tolerance: float) -> bool:
    right = extract_number(gold)
    if right is None:
        raise InputError(
            f"{_where(question)}: the gold answer {gold!r} of a numerical question is not one "
            "number; correct it or make the question free-form"
        )
    value = None if answer is None else extract_number(answer)
    if value is None:
        return False
    if "%" in gold and numbers_match(value, right / 100, tolerance):
        return True
    return numbers_match(value, right, tolerance)


def _check_text(answer: str | None, question: Question, gold: str, _tolerance: float) -> bool:
    return answer is not None and answer == _parse_text(gold, question)


def _where(question: Question) -> str:
    return question.source or f"question {question.id}"


_PARSERS = {
    ProblemType.MULTIPLE_CHOICE: _parse_choice,
    ProblemType.NUMERICAL: _parse_number,
    ProblemType.FREE_FORM: _parse_text,
}
_CHECKS = {
    ProblemType.MULTIPLE_CHOICE: _check_choice,
    ProblemType.NUMERICAL: _check_number,
    ProblemType.FREE_FORM: _check_text,
}
