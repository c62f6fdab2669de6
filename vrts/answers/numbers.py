"""Numbers and time spans in answers: parsing, canonical form, comparison."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import islice

from vrts.answers.mentions import corrected
from vrts.answers.numerals import MORE_WORDS, SCALES, spoken_number
from vrts.answers.tags import final_answer, strip_lead_in

_MAX_DIGITS = 400  # longer than any finite float; keeps float() cheap

_VULGAR = {
    chr(code): unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
    for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F))
}
_VULGAR_FRACTION = re.compile(rf"(?:(?P<integer>\d)\s?)?(?P<fraction>[{''.join(_VULGAR)}])")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_FRAC = re.compile(r"(\w?)\\[dt]?frac\s?\{(-?[\d.,]{1,40})\}\s?\{([\d.,]{1,40})\}", re.ASCII)
_BOXED = re.compile(r"\\boxed\s?\{([^{}]{0,400})\}")
_ANNOUNCED = re.compile(r"\banswer\s*+(?:is\b|would\s+be\b|should\s+be\b|[:=])\s*+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\Z)|\n")
_ASIDE = re.compile(r"\(|\b(?:because|since|as|given)\b", re.IGNORECASE)

_DASHES = str.maketrans(dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013"), "-"))
_LONG_DASH = re.compile(r"(?<![^\s=:(])\u2014\s{0,2}(?=[\d.])")
_PLUS_OR_MINUS = re.compile(r"\+\s?/\s?-|\+-|\bplus[\s-](?:or[\s-])?minus\b", re.IGNORECASE)
_MINUS_WORD = re.compile(
    r"(?:\b(?:minus|negative)\s{1,2}|负\s?|零下\s?)(?=[\d.$\u20ac\u00a3\u00a5])", re.IGNORECASE
)
_SPACED_MINUS = re.compile(
    r"(?P<before>[A-Za-z]{1,20}|[^\sA-Za-z]|\A)(?P<space>\s{0,3})-\s{1,3}"
    r"(?=[\d.$\u20ac\u00a3\u00a5])"
)
_LABELS = frozenset("answer result total count number value".split())
_VERBS = frozenset("is be was are equals of about approximately around".split())
_SPACED_THOUSANDS = re.compile(
    r"(?<![\d.,/^])([1-9]\d{0,2})((?:[ '_]\d{3})++)(?![\d,/^]|\s?/)", re.ASCII
)

# Possessive quantifiers: a run of digits is scanned once, wherever the match fails after it.
_NUMBER = re.compile(
    r"""
    (?<![\w.^]) (?<![A-Za-z]-) (?<!\d/) (?<!\d:)  # not within a word, version, date or time
    (?P<sign>[-+]?) (?P<currency>[$€£¥]?)
    (?P<value>\d[\d,]*+(?:\.\d++)?|\.\d++)
    (?: (?P<exponent>e[-+]?\d{1,4}(?!\w))
      | \s?(?:[x\u00d7*\u00b7]|\\times|\\cdot)\s?10\s?\^\s?[({]?(?P<power>[-+]?\d{1,4}(?!\d))[)}]?
      | \s{1,2}(?P<numerator>\d++)\s?/\s?(?P<denominator>\d++)
      | \s?/\s?(?P<divisor>\d++(?:\.\d++)?)
      | \^\s?[({]?(?P<raised>[-+]?\d{1,4}(?!\d))[)}]?
    )?
    (?!\.?\d|/\d|:\d|\^)  # nor cut off within one
    (?P<half>\s+and\s+a\s+half\b)?
    (?: \s?(?P<scale>(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore|mln|mn|bn)\b
                     (?:\s(?:thousand|million|billion|trillion)\b)?)
      | (?P<kilo>k(?!\w)|\s(?-i:k)(?!\w))
      | (?P<letter>(?-i:[MBT])(?!\w))
      | \s?(?P<chinese>[百千万亿]{1,3}(?<!千(?=[米克瓦卡帕赫焦伏安字])))(?!分)
    )?
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_SCALES = {
    **SCALES,
    **{"hundred": 1e2, "dozen": 12.0, "lakh": 1e5, "crore": 1e7, "mln": 1e6, "mn": 1e6, "bn": 1e9},
    **{"百": 1e2, "千": 1e3, "万": 1e4, "亿": 1e8, "M": 1e6, "B": 1e9, "T": 1e12},
}
# What would make the value another one, or a bound on it
_UNREADABLE_BEFORE = re.compile(
    r"""(?: (?<![-=])> | [<\u2264\u2265\u00b1\u221a] | \\(?:sqrt|leq?|geq?|pm)\s?\{?
      | \b(?:less|fewer|more|greater|smaller|larger|higher|lower)\s+than | \bat\s+(?:least|most)
      | \b(?:below|above|under|up\s+to) | \b(?:log|ln|sin|cos|tan|sqrt|exp)\s?\(?
      | 大于|小于|超过|少于|多于|至少|至多|不到|不足|最多|最少|高于|低于
    ) \s? (?:about\s)? \Z""",
    re.IGNORECASE | re.VERBOSE,
)
_UNREADABLE_AFTER = re.compile(
    r"""\s?[x\u00d7]\s?\d | \s\d++\s?/ | \.{2,3}\d | \s?(?:\u03c0|pi\b|\\pi\b|\u221a|\\sqrt)
      | \s(?:halves|thirds|quarters|fourths|fifths|sixths|eighths|tenths|hundredths)\b
      | \s?\u00b1 | \s?\\pm\b | \s(?:or|and)\s(?:more|fewer|less)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_OTHER_BASE = re.compile(r"[xob][0-9a-f]", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"""(?: \b(?:not|never|cannot|neither|nor) | n't | \b(?:rather\s+than|instead\s+of)
      | 不是|并非|不等于|不会是 )
    \s? (?:be\s|the\s|about\s|exactly\s|equal\s+to\s|only\s){0,2} \Z""",
    re.IGNORECASE | re.VERBOSE,
)
_DENIED_AFTER = re.compile(
    r"""\s? (?:[A-Za-z%\u00b0]{1,12}\s)?
    (?: (?:is|was|are)\s(?:not\s(?:correct|right|it|the)|wrong|incorrect|false) | (?:is|was)n't\b
      | (?:个|秒)?(?:不对|错误|不正确|是错) )""",
    re.IGNORECASE | re.VERBOSE,
)
_BELOW_ZERO = re.compile(
    r"\s?(?:\u00b0|degrees?|deg)?\s?[A-Za-z]{0,10}\s(?:below|under)\szero\b", re.IGNORECASE
)
_CONTEXT = 40
_MAX_NUMBERS = 1000  # a text with more is not an answer

# A clock time or a number of seconds. Possessive quantifiers: digits are scanned once.
_TIME = re.compile(
    r"""
    (?<![\w.:]) (?:(?:(?P<hours>\d{1,2}):)?(?P<minutes>\d{1,3}):)?
    (?P<seconds>\d{1,9}+(?:\.\d{1,9}+)?) (?:\s?(?:s|secs?|seconds?)(?!\w))?
    (?![\w:%]|\.\d|\s?(?:m|mins?|minutes?|h|hrs?|hours?)(?!\w))
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


def extract_number(text: str) -> float | None:
    r"""Return the one finite number that a completion gives as its answer, or None.

    1. The answer is found as for every completion (`vrts.answers.tags.final_answer`).
    2. Of it, the first of these counts: the last ``\boxed{…}``; the sentence after the last "answer
       is"; what follows the only ``=`` or ``≈``; all of it. Words in brackets or after "because",
       "since", "as", "given" are left out if a number comes before them.
    3. Accepted are ``1,234.5`` (groups of three, or of two before the last), ``1 234``, ``1'000``,
       ``.5``, ``1e-3``, ``2 x 10^3``, ``10³``, ``1/2``, ``1 1/2``, ``½``, ``\frac{1}{2}``,
       ``2 and a half``; with a sign (``-3``, ``- 3``, ``minus 3``, ``负3``, ``3 degrees below
       zero``) and a magnitude (``5k``, ``3.5 bn``, ``$5M``, ``2 hundred``, ``3万``).
    4. Numbers in words count if they are the complete answer but for one word after them:
       ``thirteen``, ``two hundred and five cars``, ``三千``, see `vrts.answers.numerals`.
    5. Units are ignored, and the percent sign is one: ``50%`` is 50. Digits within a word or a
       version (``CO2``, ``m^2``, ``covid-19``, ``1.2.3``), times and dates are not numbers.
    6. A number that is denied ("not 5", 不是5, "5 is wrong") or corrected ("5. Wait, no, 6")
       does not count.
    7. Two different values, a range, a list, a bound (``<5``, "at least 5"), ``±5``, ``2π``,
       ``0x10``, ``3x4`` or a malformed number are no answer.

    Example:
        >>> extract_number("<answer>about 1,250 km/h</answer>")
        1250.0
        >>> extract_number(r"\boxed{-\frac{1}{2}}"), extract_number("minus three thousand")
        (-0.5, -3000.0)
        >>> extract_number("12 or 13") is None
        True
    """
    answer = _simplify(final_answer(text))
    answer = corrected(answer, lambda part: bool(_values(part)) or _in_words(part) is not None)
    boxed = _BOXED.findall(answer)
    if boxed:
        return _only_value(boxed[-1])
    announced = list(_ANNOUNCED.finditer(answer))
    if announced:
        answer = _SENTENCE_END.split(answer[announced[-1].end() :], maxsplit=1)[0]
    sides = re.split("[=≈]", answer)
    return _only_value(sides[1] if len(sides) == 2 else answer)


def numbers_match(value: float, gold: float, tolerance: float) -> bool:
    """Whether two numbers differ by at most ``tolerance * min(1, |gold|)``.

    Absolute for gold values of 1 and more, so that large counts must be exact; relative below.
    """
    if not (math.isfinite(value) and math.isfinite(gold)):
        return False
    # 1e-9 keeps the limit itself inside: 0.505 - 0.5 is a little above 0.005 in floats
    return abs(value - gold) <= tolerance * min(1.0, abs(gold)) * (1 + 1e-9)


def canonical_number(value: float) -> str:
    """Return the canonical form of a number: ``13``, ``0.5``, ``1e+20``."""
    text = f"{value:.12g}"
    return "0" if text == "-0" else text


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


def _simplify(answer: str) -> str:
    """Rewrite fractions, powers, signs and groups of thousands in one ASCII form."""
    answer = _VULGAR_FRACTION.sub(
        lambda match: f"{match['integer'] or ''} {_VULGAR[match['fraction']]}".strip(), answer
    )
    answer = _RAISED.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), answer)
    answer = _FRAC.sub(lambda match: f"{match[1]} {match[2]}/{match[3]}".strip(), answer)
    answer = _LONG_DASH.sub("-", answer.translate(_DASHES))
    answer = _PLUS_OR_MINUS.sub("\u00b1", answer)
    answer = _MINUS_WORD.sub("-", answer)
    answer = _SPACED_MINUS.sub(_join_sign, answer)
    return _SPACED_THOUSANDS.sub(lambda match: match[1] + re.sub("[ '_]", "", match[2]), answer)


def _join_sign(match: re.Match[str]) -> str:
    """``- 5`` is ``-5``; after "Answer" the dash is punctuation, after another word it may be."""
    before, space = match["before"], match["space"]
    if not before[:1].isalpha() or before.casefold() in _VERBS:
        return f"{before}{space}-"
    return f"{before} " if before.casefold() in _LABELS else f"{before} \u00b1"


def _only_value(text: str) -> float | None:
    """Return the one value in a text, None if there are none or several."""
    text = text.strip()
    aside = _ASIDE.search(text)
    if aside and _NUMBER.search(text, 0, aside.start()):
        text = text[: aside.start()]
    values = _values(text)
    if values:
        value = values.pop()
        return value if not values else None
    return _in_words(text)


def _in_words(text: str) -> float | None:
    # unparsed digits are not a number in words
    return None if any(map(str.isdecimal, text)) else spoken_number(strip_lead_in(text))


def _values(text: str) -> set[float | None]:
    """Values of all numbers in a text that are not denied, None for an ambiguous one."""
    values: set[float | None] = set()
    for match in islice(_NUMBER.finditer(text), _MAX_NUMBERS):
        before = text[max(match.start() - _CONTEXT, 0) : match.start()]
        after = text[match.end() : match.end() + _CONTEXT]
        if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
            continue
        # a bound, an unevaluated expression, two signs, another base, or half a number in words
        unreadable = (
            _UNREADABLE_BEFORE.search(before)
            or _UNREADABLE_AFTER.match(after)
            or (match["sign"] and before[-1:] in ("+", "-"))
            or (match["value"] == "0" and _OTHER_BASE.match(after))
            or (match["scale"] and MORE_WORDS.match(after))
        )
        value = None if unreadable else _value(match)
        if value is not None and _BELOW_ZERO.match(after):
            value = -abs(value)
        values.add(value)
    return values


def _value(match: re.Match[str]) -> float | None:
    """Value of a match of ``_NUMBER``, None if it is malformed or not finite."""
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
    value += 0.5 if match["half"] else 0
    for scale in (match["scale"] or "").casefold().split() + list(match["chinese"] or ""):
        value *= _SCALES[scale]
    if match["kilo"]:
        value *= 1e3
    if match["letter"] and match["currency"]:
        value *= _SCALES[match["letter"]]  # without a currency these are units: molar, tesla
    value = -value if match["sign"] == "-" else value
    return value if math.isfinite(value) else None


def _plain(text: str, exponent: str) -> float | None:
    """Value of digits with separators, None if the groups are not thousands."""
    integer, point, fraction = text.rstrip(",").partition(".")
    first, *groups = integer.split(",")
    if groups:
        *inner, last = groups
        if not (1 <= len(first) <= 3 and len(last) == 3 and all(len(g) in (2, 3) for g in inner)):
            return None
    digits = first + "".join(groups) + point + fraction
    return float(digits + exponent) if len(digits) <= _MAX_DIGITS else None


def _seconds(match: re.Match[str]) -> float:
    hours, minutes = int(match["hours"] or 0), int(match["minutes"] or 0)
    return 3600 * hours + 60 * minutes + float(match["seconds"])
