"""Numbers in words: ``thirteen``, ``minus two hundred and five``, ``三千``, ``一百零五个``."""

from __future__ import annotations

import re

_UNITS = "zero one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {
    **{name: (value, "unit") for value, name in enumerate(_UNITS)},
    **{name: (value, "teen") for value, name in enumerate(_TEENS, 10)},
    **{name: (10 * value, "tens") for value, name in enumerate(_TENS, 2)},
}
_MAY_FOLLOW = {
    "unit": ("", "tens", "hundred", "scale", "and"),
    "teen": ("", "hundred", "scale", "and"),
    "tens": ("", "hundred", "scale", "and"),
}
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4}
MORE_WORDS = re.compile(rf"\s(?:and\s)?(?:{'|'.join(_SMALL)})\b", re.IGNORECASE)
"""What would be lost after "5 hundred"."""
_ABOUT = re.compile(r"(?:about|around|approximately|roughly|nearly|exactly|only|just)\s")
_PART = re.compile(
    r"hundred|dozen|halves|thirds?|quarters?"
    r"|(?:four|fif|six|seven|eigh|nin|ten|twelf|hundred|thousand)ths?"
)
_WORD = re.compile(r"([a-z]{1,20})(\s|-|\Z)")
_MAX_WORDS = 24

_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")}
_DIGITS |= {"\u3007": 0, "两": 2}
_POWERS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(
    r"(?:(?:大约|大概|约|总共|一共|共|有|是)\s?)?(?P<sign>负|零下)?(?P<percent>百分之)?"
    r"(?P<value>[零〇一二两三四五六七八九十百千万亿点半]{1,20})"
    r"(?P<rest>[个只辆人次秒名位条张件本台把种米岁元块年月天楼层匹头架艘座棵朵双对杯瓶片步分小公度]\w{0,3})?"
)


def spoken_number(text: str) -> float | None:
    """Return the number in words that is a complete text, but for one word after it; or None.

    Example:
        >>> spoken_number("two hundred and five cars"), spoken_number("负三点五")
        (205.0, -3.5)
        >>> spoken_number("five or six") is None
        True
    """
    text = text.strip(" .!\n").casefold()
    chinese = _CHINESE.fullmatch(text)
    return _chinese(chinese) if chinese else _english(text)


def _english(text: str) -> float | None:
    negative = re.match(r"(?:minus|negative)\s", text) is not None
    text = text.split(None, 1)[1] if negative else text
    about = _ABOUT.match(text)
    text = text[about.end() :] if about else text
    words = _WORD.findall(text)
    # fewer characters than the text: it has something other than words
    if len(words) > _MAX_WORDS or sum(len(a) + len(b) for a, b in words) < len(text):
        return None
    value, length = _read_words([word for word, _ in words])
    rest = words[length:]
    unread = any(word in SCALES or _PART.fullmatch(word) for word, _ in rest)
    joined = length > 0 and words[length - 1][1] == "-" and bool(rest)
    if value is None or len(rest) > 1 or joined or unread:
        return None
    return -value if negative else value


def _read_words(words: list[str]) -> tuple[float | None, int]:
    """Value of the number at the start of the words, and how many words it has."""
    total, group, last, scale = 0.0, 0.0, "", float("inf")
    for position, word in enumerate(words):
        following = words[position + 1 : position + 3]
        if word in _SMALL:
            value, kind = _SMALL[word]
            if last not in _MAY_FOLLOW[kind] or (last == "tens" and value == 0):
                return None, 0
            group, last = group + value, kind
        elif word == "hundred" and last in ("unit", "teen", "article") and group < 100:
            group, last = 100 * (group or 1), "hundred"
        elif word in SCALES and group and SCALES[word] < scale and last != "and":
            total, group, last, scale = total + group * SCALES[word], 0.0, "scale", SCALES[word]
        elif word == "dozen" and last in ("", "unit", "teen", "tens", "article") and not total:
            return 12 * (group or 1), position + 1
        elif word in _PARTS and not total and (last in ("unit", "article") or word == "half"):
            # "a third of it", "half of them" are more than a number
            return ((group or 1) / _PARTS[word], position + 1) if not following else (None, 0)
        elif word in ("a", "an") and last == "" and following:
            group, last = float(following[0] in SCALES), "article"
        elif word == "and" and following == ["a", "half"]:
            return total + group + 0.5, position + 3
        elif word == "and" and last in ("hundred", "scale") and following[:1]:
            if following[0] not in _SMALL:
                return None, 0
            last = "and"
        elif word == "point" and following and last in _MAY_FOLLOW:
            digits = [_UNITS.index(name) for name in words[position + 1 :] if name in _UNITS]
            if len(digits) < min(len(words) - position - 1, 1):
                return None, 0
            fraction = float("0." + "".join(map(str, digits)))
            return total + group + fraction, position + 1 + len(digits)
        else:
            is_number = last not in ("", "article", "and")
            return (total + group, position) if is_number else (None, 0)
    return (total + group, len(words)) if last not in ("", "article", "and") else (None, 0)


def _chinese(match: re.Match[str]) -> float | None:
    text, rest = match["value"], match["rest"] or ""
    if text == "半":
        return 0.5
    if text.endswith("千") and rest[:1] in ("米", "公"):
        return None  # three kilometres or three thousand metres
    integer, point, fraction = text.partition("点")
    value = _chinese_integer(integer)
    if value is None or "半" in text:
        return None
    if point:
        if not fraction or any(character not in _DIGITS for character in fraction):
            return None
        value += float("0." + "".join(str(_DIGITS[character]) for character in fraction))
    return -value if match["sign"] else value


def _chinese_integer(text: str) -> float | None:
    """``一万二千三百``; "一百五" is 150, as in speech."""
    total, section, digit, last_power = 0.0, 0.0, None, 0
    for character in text:
        if character in _DIGITS:
            if digit:
                return None  # "两三个": two or three
            digit = _DIGITS[character]
            if digit == 0:
                last_power = 0
        elif character in _POWERS:
            power = _POWERS[character]
            if digit is None and power != 10:
                return None  # "百": hundreds
            if digit == 0 or (last_power and power >= last_power):
                return None
            section += (1 if digit is None else digit) * power
            digit, last_power = None, power
        else:
            power = 10**4 if character == "万" else 10**8
            section += digit or 0
            if not section and not total:
                return None
            total = (total + section) * power if power == 10**8 else total + section * power
            section, digit, last_power = 0.0, None, power
    if digit is None:
        return total + section
    spoken = last_power // 10 if last_power >= 100 else 1
    return total + section + digit * spoken
