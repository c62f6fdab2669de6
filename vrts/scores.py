"""How good an answer is, from 0 to 1, by the measure of its problem type.

The measures are those of Video-R1's accuracy reward (Feng et al., 2025, arXiv 2503.21776): right or
wrong for choices and numbers, one minus the relative error for regression, one minus the word error
rate for OCR, the mean of ROUGE-1, -2 and -L for free-form answers. A time span is scored by its
intersection over union with the right one, as in Time-R1 (Wang et al., 2025, arXiv 2503.13377).
"""

from __future__ import annotations

from torchmetrics.functional.text import rouge_score, word_error_rate

from vrts.answers import (
    DEFAULT_TOLERANCE,
    canonical_gold,
    gold_numbers,
    gold_span,
    is_correct,
    relative_error,
)
from vrts.numbers import extract_number
from vrts.spans import extract_span, span_iou
from vrts.types import ProblemType, Question

_ROUGE = ("rouge1", "rouge2", "rougeL")


def answer_score(
    answer: str | None, question: Question, tolerance: float = DEFAULT_TOLERANCE
) -> float | None:
    """Score a canonical answer. No answer scores 0.

    Args:
        answer: What :func:`vrts.answers.parse_answer` gave.
        question: The question with its gold answer.
        tolerance: Of numerical answers, see :func:`vrts.numbers.numbers_match`.

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


def _regression(answer: str | None, question: Question) -> float:
    right = gold_numbers(question)
    value = None if answer is None else extract_number(answer)
    return 0.0 if value is None else 1 - min(relative_error(value, r) for r in right)


def _ocr(answer: str | None, question: Question) -> float:
    gold = canonical_gold(question)
    return 0.0 if answer is None else max(0.0, 1 - float(word_error_rate(answer, gold)))


def _free_form(answer: str | None, question: Question) -> float:
    gold = canonical_gold(question)
    if answer is None:
        return 0.0
    if answer == gold:
        return 1.0  # a single word has no ROUGE-2
    # Both are normalised already. No stemming: it knows English only.
    scores = rouge_score(
        answer, gold, normalizer=str, tokenizer=str.split, rouge_keys=_ROUGE, accumulate="best"
    )
    return sum(float(scores[f"{key}_fmeasure"]) for key in _ROUGE) / len(_ROUGE)


def _temporal_grounding(answer: str | None, question: Question) -> float:
    gold = gold_span(question)
    span = None if answer is None else extract_span(answer)
    return 0.0 if span is None else span_iou(span, gold)


_SCORES = {
    ProblemType.REGRESSION: _regression,
    ProblemType.OCR: _ocr,
    ProblemType.FREE_FORM: _free_form,
    ProblemType.TEMPORAL_GROUNDING: _temporal_grounding,
}
"""Problem types that can be answered half right; the others are right or wrong."""
