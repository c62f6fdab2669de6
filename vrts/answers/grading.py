"""The canonical answer of a completion, whether it is right, and its score from 0 to 1.

Scores follow Video-R1's accuracy reward (arXiv 2503.21776): 1 minus the relative error for
regression, 1 minus the word error rate for OCR, the mean of ROUGE-1, -2 and -L for free-form
answers. Time spans are scored by their intersection over union, as in Time-R1 (arXiv 2503.13377).
Chinese and Japanese are compared by character, since they have no spaces.
"""

from __future__ import annotations

import re

from vrts.answers.choices import extract_choice
from vrts.answers.numbers import (
    canonical_number,
    canonical_span,
    extract_number,
    extract_span,
    numbers_match,
    span_iou,
)
from vrts.answers.tags import final_answer, strip_lead_in
from vrts.types import InputError, ProblemType, Question, letters

DEFAULT_TOLERANCE = 1e-2  # of numerical answers, see `vrts.answers.numbers.numbers_match`

MAX_RELATIVE_ERROR = 0.05
"""A regression answer with a smaller error is right (the top step of VSI-Bench's accuracy)."""

MIN_IOU = 0.5  # a time span with this IoU is right (recall at 1 of temporal grounding)

_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|textbf)\s?\{([^{}]{0,2000})\}")
_TERM = re.compile(r"(?:(?<!\w)[-+])?\d+(?:[.,/]\d+)*%?|[^\W_]+(?:\+\+|\#)?")
# scripts without spaces between words: Chinese and Japanese
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CHARACTER = re.compile(f"([{_UNSPACED}])")
_GAP = re.compile(f"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")
_ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = frozenset(["a", "an", "the"])
_NO_TEXT = " \t\r\n.,;:!?'\"…_*`"


def parse_answer(text: str, question: Question) -> str | None:
    """Return the canonical answer of a completion: equal answers are equal strings.

    A letter (`extract_choice`), a number (`extract_number`), a time span (`extract_span`) or a text
    (`normalise_text`), by the question's problem type; None if the completion has no answer.

    Example:
        >>> question = Question("1", "How long?", "a.mp4", ProblemType.NUMERICAL)
        >>> parse_answer("<answer>1/2 s</answer>", question)
        '0.5'
    """
    match question.problem_type:
        case ProblemType.MULTIPLE_CHOICE:
            return extract_choice(text, question.options)
        case ProblemType.NUMERICAL | ProblemType.REGRESSION:
            value = extract_number(text)
            return None if value is None else canonical_number(value)
        case ProblemType.TEMPORAL_GROUNDING:
            span = extract_span(text)
            return None if span is None else canonical_span(span)
    answer = _WRAPPED.sub(r"\1", final_answer(text))
    if question.problem_type is ProblemType.OCR:
        return normalise_text(answer, keep_articles=True)
    return normalise_text(strip_lead_in(answer))


def is_correct(
    answer: str | None, question: Question, tolerance: float = DEFAULT_TOLERANCE
) -> bool | None:
    """Whether a canonical answer is right; None if the gold answer is not known.

    Letters and texts must be equal, numbers by `numbers_match`, regression by `MAX_RELATIVE_ERROR`,
    time spans by `MIN_IOU`. A gold value in percent also allows the fraction: 50% allows 0.5.

    No answer is wrong.

    Raises:
        InputError: the gold answer is not a valid answer to the question.

    Example:
        >>> question = Question("1", "Which?", "a.mp4", options=("red", "blue"), gold="B")
        >>> is_correct("B", question), is_correct(None, question)
        (True, False)
    """
    if question.gold is None:
        return None
    match question.problem_type:
        case ProblemType.MULTIPLE_CHOICE:
            return answer == gold_letter(question)
        case ProblemType.NUMERICAL:
            right, value = gold_numbers(question), extract_number(answer or "")
            return value is not None and any(numbers_match(value, r, tolerance) for r in right)
        case ProblemType.REGRESSION:
            return _relative_error(answer, question) < MAX_RELATIVE_ERROR
        case ProblemType.TEMPORAL_GROUNDING:
            return _iou(answer, question) >= MIN_IOU
    return answer is not None and answer == parse_answer(question.gold, question)


def answer_score(
    answer: str | None, question: Question, tolerance: float = DEFAULT_TOLERANCE
) -> float | None:
    """Score a canonical answer from 0 to 1; None if the gold answer is not known.

    No answer scores 0.

    Raises:
        InputError: the gold answer is not a valid answer to the question.

    Example:
        >>> question = Question("1", "How far?", "a.mp4", ProblemType.REGRESSION, gold="8")
        >>> round(answer_score("6", question), 6), answer_score("80", question)
        (0.75, 0.0)
    """
    if question.gold is None:
        return None
    match question.problem_type:
        case ProblemType.REGRESSION:
            return 1 - _relative_error(answer, question)
        case ProblemType.TEMPORAL_GROUNDING:
            return _iou(answer, question)
        case ProblemType.OCR | ProblemType.FREE_FORM:
            gold = parse_answer(question.gold, question)
            if gold is None:
                raise _bad_gold(question, "only punctuation")
            if answer is None:
                return 0.0
            score = _word_accuracy if question.problem_type is ProblemType.OCR else _rouge
            return score(_by_character(answer), _by_character(gold))
    return float(bool(is_correct(answer, question, tolerance)))


def normalise_text(text: str, keep_articles: bool = False) -> str | None:
    """Normalise text: case, whitespace, punctuation and articles do not count.

    Signs and decimal points of numbers, ``%``, ``C++`` and ``C#`` are kept. A text of symbols alone
    stays as it is; None if nothing is left.

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


def gold_letter(question: Question) -> str:
    """The letter of the right option; raises `InputError` if no option has it."""
    gold, known = question.gold or "", letters(question.options)
    letter = gold.strip().upper()
    if len(letter) != 1 or letter not in known:
        raise _bad_gold(question, f"not one of the option letters {known or '(no options)'}")
    return letter


def gold_numbers(question: Question) -> list[float]:
    """The right number, of a percentage also its fraction; raises `InputError` without one."""
    gold = question.gold or ""
    right = extract_number(gold)
    if right is None:
        remedy = "correct it or make the question free-form"
        raise _bad_gold(question, "not one number", remedy)
    # 0.5 answers a question whose gold answer is 50%, too
    return [right, right / 100] if "%" in gold else [right]


def _bad_gold(question: Question, reason: str, remedy: str = "correct the record") -> InputError:
    where = question.source or f"question {question.id}"
    gold = f"gold answer {question.gold!r} ({question.problem_type})"
    return InputError(f"{where}: the {gold} is {reason}; {remedy}")


def _relative_error(answer: str | None, question: Question) -> float:
    """Difference as a fraction of the gold value, at most 1 (Video-R1's regression reward)."""
    right, value = gold_numbers(question), extract_number(answer or "")
    if value is None:
        return 1.0
    if value in right:
        return 0.0  # also if both are 0, where the ratio would be 1
    return min(1.0, *((abs(value - gold) + 1e-9) / (abs(gold) + 1e-9) for gold in right))


def _iou(answer: str | None, question: Question) -> float:
    """Intersection over union with the right time span, 0 without an answer."""
    right, span = extract_span(question.gold or ""), extract_span(answer or "")
    if right is None:
        raise _bad_gold(question, "not a start and an end, such as '12.5 to 20'")
    return 0.0 if span is None else span_iou(span, right)


def _word_accuracy(answer: str, gold: str) -> float:
    from torchmetrics.functional.text import word_error_rate  # torch only where a score needs it

    return max(0.0, 1 - float(word_error_rate(answer, gold)))


def _rouge(answer: str, gold: str) -> float:
    from torchmetrics.functional.text import rouge_score

    if answer == gold:
        return 1.0  # a single word has no ROUGE-2
    # both are normalised already; no stemming, which knows English only
    scores = rouge_score(
        answer, gold, normalizer=str, tokenizer=str.split, rouge_keys=_ROUGE, accumulate="best"
    )
    return sum(float(scores[f"{key}_fmeasure"]) for key in _ROUGE) / len(_ROUGE)


def _by_character(text: str) -> str:
    """Text whose characters of unspaced scripts are words of their own."""
    return " ".join(_CHARACTER.sub(r" \1 ", text).split())
