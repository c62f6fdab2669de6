"""The canonical answer of a completion, whether it is right, and how good it is from 0 to 1.

The measures of goodness are those of Video-R1's accuracy reward (Feng et al., 2025, arXiv
2503.21776): right or wrong for choices and numbers, one minus the relative error for regression,
one minus the word error rate for OCR, the mean of ROUGE-1, -2 and -L for free-form answers. A time
span is scored by its intersection over union with the right one, as in Time-R1 (Wang et al., 2025,
arXiv 2503.13377). Chinese and Japanese are compared by character, since they have no spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vrts.answers.choices import extract_choice
from vrts.answers.numbers import canonical_number, extract_number, numbers_match
from vrts.answers.spans import canonical_span, extract_span, span_iou
from vrts.answers.tags import final_answer, strip_lead_in
from vrts.types import InputError, ProblemType, Question, letters

DEFAULT_TOLERANCE = 1e-2
"""Of numerical answers, see :func:`vrts.answers.numbers.numbers_match`."""

MAX_RELATIVE_ERROR = 0.05
"""Below it a regression answer counts as right."""

MIN_IOU = 0.5
"""From it on a time span counts as right."""

_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|textbf)\s?\{([^{}]{0,2000})\}")
_TERM = re.compile(r"(?:(?<!\w)[-+])?\d+(?:[.,/]\d+)*%?|[^\W_]+(?:\+\+|\#)?")
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts that put no spaces between words."""
_CHARACTER = re.compile(f"([{_UNSPACED}])")
_GAP = re.compile(f"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")
_ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = frozenset(["a", "an", "the"])
_NO_TEXT = " \t\r\n.,;:!?'\"…_*`"


def parse_answer(text: str, question: Question) -> str | None:
    """Give the canonical answer of a completion. Equal answers give equal strings.

    Returns:
        The letter for multiple choice (:func:`~vrts.answers.choices.extract_choice`), the number as
        text (:func:`~vrts.answers.numbers.extract_number`), the time span as text
        (:func:`~vrts.answers.spans.extract_span`), or the text as :func:`normalise_text` leaves it;
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

    Letters and texts must be equal, numbers by :func:`~vrts.answers.numbers.numbers_match`. A gold
    value with a percent sign is met by the percentage and by the fraction: 50% by 50 and by 0.5.

    Where an answer can be half right, these are right, as Video-R1's evaluation has it: a
    regression with a relative error below 5% (the highest step of VSI-Bench's mean relative
    accuracy), and OCR without a word error. A time span is right from an intersection over union
    of 0.5 on, the usual recall at 1 of temporal grounding.

    Args:
        answer: What :func:`parse_answer` gave.
        question: The question with its gold answer.
        tolerance: Of numbers.

    Returns:
        True or False, or None where the right answer is not known.

    Raises:
        InputError: the gold answer is no letter of an option, no number or no time span.

    Example:
        >>> question = Question("1", "Which?", "a.mp4", options=("red", "blue"), gold="B")
        >>> is_correct("B", question), is_correct(None, question)
        (True, False)
    """
    if question.gold is None:
        return None
    return _CHECKS[question.problem_type](answer, question, question.gold, tolerance)


def answer_score(
    answer: str | None, question: Question, tolerance: float = DEFAULT_TOLERANCE
) -> float | None:
    """Score a canonical answer. No answer scores 0.

    Args:
        answer: What :func:`parse_answer` gave.
        question: The question with its gold answer.
        tolerance: Of numerical answers, see :func:`vrts.answers.numbers.numbers_match`.

    Returns:
        0 to 1, or None where the right answer is not known.

    Raises:
        InputError: the gold answer cannot be one of its problem type.

    Example:
        >>> question = Question("1", "How far?", "a.mp4", ProblemType.REGRESSION, gold="8")
        >>> round(answer_score("6", question), 6), answer_score("80", question)
        (0.75, 0.0)
    """
    if question.gold is None:
        return None
    graded = _SCORES.get(question.problem_type)
    if graded is None:
        return float(bool(is_correct(answer, question, tolerance)))
    return graded(answer, question)


def normalise_text(text: str, keep_articles: bool = False) -> str | None:
    """Normalise free-form text: case, whitespace, punctuation and articles do not count.

    Signs and decimal points of numbers, ``%``, ``C++`` and ``C#`` are kept. A text of symbols alone
    stays as it is.

    Args:
        text: Any.
        keep_articles: Whether articles count.

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
    dropped = frozenset() if keep_articles else _ARTICLES
    kept = [term for term in terms if term not in dropped] or terms
    return _GAP.sub("", " ".join(kept)) or "".join(folded.split()).strip(_NO_TEXT) or None


def _parse_choice(text: str, question: Question) -> str | None:
    return extract_choice(text, question.options)


def _parse_number(text: str, _question: Question) -> str | None:
    value = extract_number(text)
    return None if value is None else canonical_number(value)


def _parse_text(text: str, _question: Question) -> str | None:
    return normalise_text(strip_lead_in(_WRAPPED.sub(r"\1", final_answer(text))))


def _parse_ocr(text: str, _question: Question) -> str | None:
    return normalise_text(_WRAPPED.sub(r"\1", final_answer(text)), keep_articles=True)


def _parse_span(text: str, _question: Question) -> str | None:
    span = extract_span(text)
    return None if span is None else canonical_span(span)


def relative_error(value: float, gold: float) -> float:
    """Difference as a share of the gold value, at most 1 (Video-R1's regression reward)."""
    if value == gold:
        return 0.0  # also where both are 0, of which the ratio would be 1
    return min((abs(value - gold) + 1e-9) / (abs(gold) + 1e-9), 1.0)


def gold_numbers(question: Question) -> list[float]:
    """The right number, and for a percentage its fraction too.

    Raises:
        InputError: the gold answer is not one number.
    """
    gold = question.gold or ""
    right = extract_number(gold)
    if right is None:
        raise InputError(
            f"{_where(question)}: the gold answer {gold!r} of a {question.problem_type} question "
            "is not one number; correct it or make the question free-form"
        )
    return [right, right / 100] if "%" in gold else [right]


def gold_span(question: Question) -> tuple[float, float]:
    """The right time span.

    Raises:
        InputError: the gold answer is not one.
    """
    span = extract_span(question.gold or "")
    if span is None:
        raise InputError(
            f"{_where(question)}: the gold answer {question.gold!r} is not a start and an end, "
            "such as '12.5 to 20'; correct the record"
        )
    return span


def canonical_gold(question: Question) -> str:
    """The right answer as :func:`parse_answer` would give it.

    Raises:
        InputError: the gold answer has nothing in it.
    """
    gold = parse_answer(question.gold or "", question)
    if gold is None:
        raise InputError(
            f"{_where(question)}: the gold answer {question.gold!r} is not an answer to a "
            f"{question.problem_type} question; correct the record"
        )
    return gold


def _check_choice(answer: str | None, question: Question, gold: str, _tolerance: float) -> bool:
    letter = gold.strip().upper()
    known = letters(question.options)
    if len(letter) != 1 or letter not in known:
        raise InputError(
            f"{_where(question)}: the gold answer {gold!r} is not one of the option letters "
            f"{known or '(no options)'}; correct the record"
        )
    return answer == letter


def _check_number(answer: str | None, question: Question, _gold: str, tolerance: float) -> bool:
    right = gold_numbers(question)
    value = None if answer is None else extract_number(answer)
    return value is not None and any(numbers_match(value, r, tolerance) for r in right)


def _check_regression(
    answer: str | None, question: Question, _gold: str, _tolerance: float
) -> bool:
    right = gold_numbers(question)
    value = None if answer is None else extract_number(answer)
    return value is not None and any(relative_error(value, r) < MAX_RELATIVE_ERROR for r in right)


def _check_text(answer: str | None, question: Question, gold: str, _tolerance: float) -> bool:
    return answer is not None and answer == parse_answer(gold, question)


def _check_span(answer: str | None, question: Question, _gold: str, _tolerance: float) -> bool:
    right = gold_span(question)
    span = None if answer is None else extract_span(answer)
    return span is not None and span_iou(span, right) >= MIN_IOU


def _where(question: Question) -> str:
    return question.source or f"question {question.id}"


def _regression(answer: str | None, question: Question) -> float:
    right = gold_numbers(question)
    value = None if answer is None else extract_number(answer)
    return 0.0 if value is None else 1 - min(relative_error(value, r) for r in right)


def _ocr(answer: str | None, question: Question) -> float:
    from torchmetrics.functional.text import word_error_rate  # torch only where a score needs it

    gold = _by_character(canonical_gold(question))
    if answer is None:
        return 0.0
    return max(0.0, 1 - float(word_error_rate(_by_character(answer), gold)))


def _free_form(answer: str | None, question: Question) -> float:
    from torchmetrics.functional.text import rouge_score

    gold = canonical_gold(question)
    if answer is None:
        return 0.0
    if answer == gold:
        return 1.0  # a single word has no ROUGE-2
    # Both are normalised already. No stemming: it knows English only.
    scores = rouge_score(
        _by_character(answer),
        _by_character(gold),
        normalizer=str,
        tokenizer=str.split,
        rouge_keys=_ROUGE,
        accumulate="best",
    )
    return sum(float(scores[f"{key}_fmeasure"]) for key in _ROUGE) / len(_ROUGE)


def _by_character(text: str) -> str:
    """Text whose characters of unspaced scripts are words of their own."""
    return " ".join(_CHARACTER.sub(r" \1 ", text).split())


def _temporal_grounding(answer: str | None, question: Question) -> float:
    gold = gold_span(question)
    span = None if answer is None else extract_span(answer)
    return 0.0 if span is None else span_iou(span, gold)


_PARSERS = {
    ProblemType.MULTIPLE_CHOICE: _parse_choice,
    ProblemType.NUMERICAL: _parse_number,
    ProblemType.REGRESSION: _parse_number,
    ProblemType.OCR: _parse_ocr,
    ProblemType.FREE_FORM: _parse_text,
    ProblemType.TEMPORAL_GROUNDING: _parse_span,
}
_CHECKS = {
    ProblemType.MULTIPLE_CHOICE: _check_choice,
    ProblemType.NUMERICAL: _check_number,
    ProblemType.REGRESSION: _check_regression,
    ProblemType.OCR: _check_text,
    ProblemType.FREE_FORM: _check_text,
    ProblemType.TEMPORAL_GROUNDING: _check_span,
}
_SCORES: dict[ProblemType, Callable[[str | None, Question], float]] = {
    ProblemType.REGRESSION: _regression,
    ProblemType.OCR: _ocr,
    ProblemType.FREE_FORM: _free_form,
    ProblemType.TEMPORAL_GROUNDING: _temporal_grounding,
}
"""Problem types that can be answered half right; the others are right or wrong."""
