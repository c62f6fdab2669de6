"""Numbers in answers: reading them, writing them in one way, comparing them."""

from __future__ import annotations

import math
import re
import unicodedata

from vrts.answers.tags import final_answer, strip_lead_in

_MAX_DIGITS = 400  # longer than any finite float; keeps float() cheap

_VULGAR = {
    code: " " + unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
    for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F))
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_FRAC = re.compile(r"\\[dt]?frac\s?\{([\d.,]{1,40})\}\s?\{([\d.,]{1,40})\}")
_BOXED = re.compile(r"\\boxed\s?\{([^{}]{0,400})\}")
_ANNOUNCED = re.compile(r"\banswer\s*+(?:is\b|would\s+be\b|should\s+be\b|[:=])\s*+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\Z)|\n")
_ASIDE = re.compile(r"\(|\b(?:because|since|as|given)\b", re.IGNORECASE)

# Possessive quantifiers: a run of digits is scanned once, wherever the match fails behind it.
_NUMBER = re.compile(
    r"""
    (?<![\w.^]) (?<![A-Za-z]-) (?<!\d/) (?<!\d:)
    (?P<sign>[-+]?) [$€£¥]?
    (?P<value>\d[\d,]*+(?:\.\d++)?|\.\d++)
    (?: (?P<exponent>e[-+]?\d{1,4}(?!\w))
      | \s?(?:[x\u00d7*\u00b7]|\\times|\\cdot)\s?10\s?\^\s?[({]?(?P<power>[-+]?\d{1,4}(?!\d))[)}]?
      | \s{1,2}(?P<numerator>\d++)\s?/\s?(?P<denominator>\d++)
      | \s?/\s?(?P<divisor>\d++(?:\.\d++)?)
      | \^\s?[({]?(?P<raised>[-+]?\d{1,4}(?!\d))[)}]?
    )?
    (?!\.?\d|/\d|:\d|\^)
    (?:\s?(?P<scale>thousand|million|billion|trillion)\b)?
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_NAMES = "zero one two three four five six seven eight nine ten eleven twelve"
_WORDS = {name: float(value) for value, name in enumerate(_NAMES.split())}
_WORD_ANSWER = re.compile(r"([a-z]{2,7})(?:\s[a-z]{1,30})?[.!]?", re.IGNORECASE)


def extract_number(text: str) -> float | None:
    r"""Read the one number that a completion gives as its answer.

    1. The answer is found as for every completion (:func:`vrts.answers.tags.final_answer`).
    2. In it, the first of these that is there counts: the last ``\boxed{…}``; the sentence after
       the last "answer is"; what follows the only ``=`` or ``≈``; all of it. Words in brackets
       or after "because", "since", "as", "given" are left out if a number comes before them.
    3. Read are ``1,234.5`` (groups of three, or of two before the last), ``-3``, ``.5``, ``1e-3``,
       ``2 x 10^3``, ``10³``, ``1/2``, ``1 1/2``, ``½``, ``\frac{1}{2}``, ``3 million``, and the
       words zero to twelve alone or with one word behind them.
    4. Units are ignored, and the percent sign is one: ``50%`` is 50. Digits within a word or a
       version (``CO2``, ``m^2``, ``covid-19``, ``1.2.3``), times and dates are no numbers.
    5. Two different values, a range, a list or a malformed number are no answer.

    Returns:
        A finite number, or None.

    Example:
        >>> extract_number("<answer>about 1,250 km/h</answer>")
        1250.0
        >>> extract_number("12 or 13") is None
        True
    """
    answer = final_answer(text).translate(_VULGAR)
    answer = _RAISED.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), answer)
    answer = _FRAC.sub(r" \1/\2", answer)
    boxed = _BOXED.findall(answer)
    if boxed:
        return _only_value(boxed[-1])
    announced = list(_ANNOUNCED.finditer(answer))
    if announced:
        answer = _SENTENCE_END.split(answer[announced[-1].end() :], maxsplit=1)[0]
    sides = re.split("[=≈]", answer)
    return _only_value(sides[1] if len(sides) == 2 else answer)


def numbers_match(value: float, gold: float, tolerance: float) -> bool:
    """Whether a value is right.

    The difference may be ``tolerance * min(1, |gold|)``: absolute for gold values of 1 and more, so
    that large counts must be exact, relative below, so that small values are not all alike.
    """
    if not (math.isfinite(value) and math.isfinite(gold)):
        return False
    # 1e-9 keeps the limit itself inside: 0.505 - 0.5 is a little above 0.005 in floats
    return abs(value - gold) <= tolerance * min(1.0, abs(gold)) * (1 + 1e-9)


def canonical_number(value: float) -> str:
    """Write a number so that equal values give equal strings: ``13``, ``0.5``, ``1e+20``."""
    text = f"{value:.12g}"
    return "0" if text == "-0" else text


def _only_value(text: str) -> float | None:
    """Give the one value that a text names, None where it names none or several."""
    text = text.strip()
    aside = _ASIDE.search(text)
    if aside and _NUMBER.search(text, 0, aside.start()):
        text = text[: aside.start()]
    values = {_value(match) for match in _NUMBER.finditer(text)}
    if values:
        value = values.pop()
        return value if not values else None
    word = _WORD_ANSWER.fullmatch(strip_lead_in(text))
    return _WORDS.get(word[1].casefold()) if word else None


def _value(match: re.Match[str]) -> float | None:
    """Value of a match of ``_NUMBER``, None where it is malformed or not finite."""
    value = _plain(match["value"], match["exponent"] or "")
    if value is None or len(match[0]) > _MAX_DIGITS:
        return None
    try:
        if match["power"]:
            value *= 10.0 ** int(match["power"])
        elif match["denominator"]:
            value += float(match["numerator"]) / float(match["denominator"])
        elif match["divisor"]:
            value /= float(match["divisor"])
        elif match["raised"]:
            value = 10.0 ** int(match["raised"]) if value == 10 else math.nan
    except (ZeroDivisionError, OverflowError):
        return None
    value *= _SCALES.get((match["scale"] or "").casefold(), 1.0)
    value = -value if match["sign"] == "-" else value
    return value if math.isfinite(value) else None


def _plain(text: str, exponent: str) -> float | None:
    """Value of digits with separators, None where the groups are no thousands."""
    whole, point, fraction = text.rstrip(",").partition(".")
    first, *groups = whole.split(",")
    if groups:
        *inner, last = groups
        if not (1 <= len(first) <= 3 and len(last) == 3 and all(len(g) in (2, 3) for g in inner)):
            return None
    digits = first + "".join(groups) + point + fraction
    return float(digits + exponent) if len(digits) <= _MAX_DIGITS else None
