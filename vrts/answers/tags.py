"""The only parser of the tags ``<think>`` and ``<answer>``.

Everything here takes linear time in the length of the text: a model may write anything.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Whitespace within a tag is bounded: an unbounded run would be scanned again from every "<".
_THINK_OPEN = re.compile(r"<\s{0,3}think\s{0,3}>", re.IGNORECASE)
_THINK_CLOSE = re.compile(r"<\s{0,3}/\s{0,3}think\s{0,3}>", re.IGNORECASE)
_ANSWER_OPEN = re.compile(r"<\s{0,3}answer\s{0,3}>", re.IGNORECASE)
_ANSWER_CLOSE = re.compile(r"<\s{0,3}/\s{0,3}answer\s{0,3}>", re.IGNORECASE)
_ANY_TAG = re.compile(r"<\s{0,3}/?\s{0,3}(?:think|answer)\s{0,3}>", re.IGNORECASE)
_CUT_TAG = re.compile(r"</?[a-z]{0,6}\Z", re.IGNORECASE)
_MARKUP = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,15}(?:\s[\w\-]{1,30}=[^<>]{0,200})?\s?/?>")
_SEAM = re.compile(r"</think>\s*<answer>")

_LEAD_IN = re.compile(
    r"""\s*+(?:(?:so|thus|hence|therefore|then)\b,?\s*+)?
    (?:the\s++|my\s++)?(?:(?:final|correct|right|best|most\s+likely)\s++){0,3}
    (?:answer|option|choice)\s*+(?:(?:is|was|would\s+be|should\s+be|must\s+be)\b|[:=])[\s:=]*+""",
    re.IGNORECASE | re.VERBOSE,
)

_ANSWER_KEYS = ("answer", "final_answer", "final answer", "choice", "option", "letter", "result")

# Not NFKC, which takes quadratic time (it sorts combining marks) and would change option texts such
# as "①". In order: full-width ASCII, circled letters, wide spaces, invisible characters, quotes,
# brackets, minus signs, full stops, a comma.
_FOLD: dict[int, str | None] = {
    **{0xFF01 + i: chr(0x21 + i) for i in range(94)},
    **{0x24B6 + i: chr(ord("A") + i) for i in range(26)},
    **{0x24D0 + i: chr(ord("a") + i) for i in range(26)},
    **dict.fromkeys(map(ord, "\u3000\u00a0\u202f\u2009"), " "),
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufe0f\ufeff")),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u300c\u300d\u300e\u300f\u300a\u300b"), '"'),
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a"), "'"),
    **dict.fromkeys(map(ord, "\u3010\u3014\u3016"), "["),
    **dict.fromkeys(map(ord, "\u3011\u3015\u3017"), "]"),
    **dict.fromkeys(map(ord, "\u2212\ufe63"), "-"),
    **dict.fromkeys(map(ord, "\u3002\uff61"), "."),
    ord("\u3001"): ",",
}


def split_completion(text: str) -> tuple[str | None, str]:
    """Split a completion into its reasoning and its answer.

    1. The answer follows the last ``</think>``: the content of the last ``<answer>`` there, or all
       of the text there if it has no such tag.
    2. If nothing follows, or there is no ``</think>``, the last ``<answer>`` of the text counts.
    3. Without any ``<answer>``, reasoning that was never closed has no answer, and a text without
       reasoning is all answer.

    Tags match in any case. An ``<answer>`` that is not closed ends at the next ``<answer>`` or at
    the end of the text. An empty tag after another one is skipped.

    Returns:
        The reasoning, or None without any, and the answer, which may be empty.

    Example:
        >>> split_completion("<think>It is <answer>A</answer>? No.</think> <ANSWER>B</ANSWER>")
        ('It is <answer>A</answer>? No.', 'B')
    """
    opened = _THINK_OPEN.search(text)
    closings = list(_THINK_CLOSE.finditer(text))
    if not closings:
        answer = _last_answer(text)
        if opened is None:
            return None, (text if answer is None else answer).strip()
        tag = _ANSWER_OPEN.search(text, opened.end())
        reasoning = text[opened.end() : tag.start() if tag else None]
        return reasoning.strip(), (answer or "").strip()
    closing = closings[-1]
    start = opened.end() if opened and opened.end() <= closing.start() else 0
    reasoning, tail = text[start : closing.start()].strip(), text[closing.end() :]
    answer = _last_answer(tail)
    if answer is None:
        answer = _drop_cut_tag(_ANY_TAG.sub(" ", tail)).strip() or _last_answer(text) or ""
    return reasoning, answer.strip()


def has_format(text: str, strict: bool = True) -> bool:
    r"""Whether a completion follows the think/answer template.

    Strict is the full match of ``<think>.*?</think>\s*<answer>.*?</answer>`` (Video-R1's
    ``format_reward``), up to surrounding whitespace. Lenient requires the four tags in this order,
    in any case, with anything between and around them.

    Example:
        >>> has_format("<think>A car stops.</think><answer>B</answer>")
        True
        >>> has_format("Well. <think>A car stops.</think> So: <answer>B</answer>")
        False
        >>> has_format("Well. <think>A car stops.</think> So: <answer>B</answer>", strict=False)
        True
    """
    if not strict:
        position = 0
        for tag in (_THINK_OPEN, _THINK_CLOSE, _ANSWER_OPEN, _ANSWER_CLOSE):
            match = tag.search(text, position)
            if match is None:
                return False
            position = match.end()
        return True
    # The same language as the regular expression, which takes quadratic time on repeated tags.
    text = text.strip()
    head, tail = "<think>", "</answer>"
    if len(text) < len(head) + len(tail) or not (text.startswith(head) and text.endswith(tail)):
        return False
    return _SEAM.search(text, len(head), len(text) - len(tail)) is not None


def final_answer(text: str) -> str:
    """Return the answer of a completion as plain text.

    Full-width forms, typographic quotes and dashes become ASCII, a code fence is removed, of a JSON
    object the answer's field is taken, and markup (``<b>``) is removed if something is left then.

    Example:
        >>> final_answer('<answer>{"reason": "It is red.", "answer": "Ｃ"}</answer>')
        'C'
    """
    _, answer = split_completion(fold_forms(text))
    if answer.startswith("```") and answer.endswith("```") and len(answer) > 6:
        answer = re.sub(r"\A(?:json|text|python)?\s", "", answer[3:-3]).strip()
    if answer[:1] in ("{", "["):
        answer = _json_answer(answer)
    return (_MARKUP.sub("", answer).strip() if "<" in answer else "") or answer.strip()


def fold_forms(text: str) -> str:
    """Convert full-width and circled forms, typographic quotes and wide spaces to ASCII."""
    return text.translate(_FOLD)


def strip_lead_in(text: str) -> str:
    """Remove words that introduce an answer: ``The answer is: red`` becomes ``red``."""
    match = _LEAD_IN.match(text)
    return text[match.end() :] if match else text


def _last_answer(text: str) -> str | None:
    """Content of the last ``<answer>``, or None without such a tag."""
    answer = None
    end = len(text)
    for tag in reversed(list(_ANSWER_OPEN.finditer(text))):
        segment = text[tag.end() : end]
        closing = _ANSWER_CLOSE.search(segment)
        answer = segment[: closing.start()] if closing else _drop_cut_tag(segment)
        if answer.strip():
            return answer
        end = tag.start()
    return answer


def _drop_cut_tag(text: str) -> str:
    """Remove a closing tag that the token limit cut off: ``C</ans`` becomes ``C``."""
    return _CUT_TAG.sub("", text.rstrip())


def _json_answer(text: str) -> str:
    """Return the answer's field of a JSON object, or the item of a list of one; else the text."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        fields = {str(key).casefold(): item for key, item in value.items()}
        value = next((fields[key] for key in _ANSWER_KEYS if key in fields), value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if is_plain else text
