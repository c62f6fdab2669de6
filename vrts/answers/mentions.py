"""Single letters that a sentence names as an answer: rules 5 and 6 of :mod:`vrts.answers.choices`."""

from __future__ import annotations

import re

# Words with inner hyphens, apostrophes or full stops are one token, so their letters do not stand
# alone. The letters of other scripts need no space before a Latin letter and are tokens of one.
_TOKEN = re.compile(
    r"(?:[A-Za-z]\.){2,}+(?![A-Za-z]{2})"
    r"|[A-Za-z0-9À-ɏ_]++(?:['\-][A-Za-z0-9À-ɏ]++)*+[+#]*+"
    r"|\n|[^\s]"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPENERS = _words("( [ { < \" '")
_CLOSERS = _words(") ] } > \" '")
_LIST = _words(", / & + ; | and or nor option choice") | _OPENERS | _CLOSERS
_PUNCTUATION = _words(". , ; : ! ? - = > \u2013 \u2014 \u2192") | {"\n"}
_FILLERS = _words(
    """: = - > " ' ( [ { is was be would should must to the my correct right best final most likely
    probably definitely clearly therefore thus either letter option choice number indeed 是 为"""
)
_LABEL_KEYWORDS = _words("option options choice choices letter 项 选")
_KEYWORDS = _LABEL_KEYWORDS | _words("answer answers choose chose pick picked select selected 案")
_BEFORE = _KEYWORDS | _words(
    """is was be it's that's with say so then thus hence therefore either probably likely
    definitely clearly to and or nor / & + | 是 为"""
)
_AFTER = _words(
    """because since as if but which while where due based on in from and or nor / & + | fits
    matches describes best"""
)
_VERDICTS = _words("correct right true best answer closest likely option choice")
_CERTAIN = frozenset("BCDEFGHJKLMNOPQRSTUVWXYZ")  # neither an article nor a pronoun
_MAX_FILLERS = 8
_MAX_BETWEEN = 6


def named_letters(text: str, options: str) -> set[str]:
    """Find the letters that a text names as its answer.

    Args:
        text: Plain text, without emphasis.
        options: The letters that options have, such as ``"ABCD"``.

    Returns:
        Capital letters, among them perhaps one that no option has.

    Example:
        >>> sorted(named_letters("I choose B, not (C).", "ABCD"))
        ['B', 'C']
    """
    tokens = _Tokens(text)
    named: set[str] = set()
    index = 0
    while index < len(tokens):
        if not tokens.is_letter(index):
            index += 1
            continue
        end = tokens.list_end(index)
        found = {tokens.words[i].upper() for i in range(index, end) if tokens.is_letter(i)}
        certain = tokens.in_brackets(index) or tokens.is_declared(index, end)
        if certain or (tokens.stands_alone(index, end) and (found & set(options))):
            named |= found
        index = end
    return named


class _Tokens:
    """Tokens of a text with the questions that the rules ask about them."""

    def __init__(self, text: str) -> None:
        matches = list(_TOKEN.finditer(text))
        self.words = [match[0] for match in matches]
        self._lower = [word.lower() for word in self.words]
        self._glued = [match.start() > 0 and text[match.start() - 1].isalnum() for match in matches]

    def __len__(self) -> int:
        return len(self.words)

    def is_letter(self, index: int) -> bool:
        word = self.words[index]
        return len(word) == 1 and word.isascii() and word.isalpha()

    def list_end(self, index: int) -> int:
        """End of the list of letters that begins here: ``A or B``, ``A, (B) and C``, ``A B``."""
        end = index + 1
        while True:
            after = end
            while after < len(self) and after - end < _MAX_BETWEEN and self._lower[after] in _LIST:
                after += 1
            # "c or a man", "A, I think": the last letter is a word of its own
            if after >= len(self) or not self.is_letter(after) or self._is_word(after):
                return end
            end = after + 1

    def in_brackets(self, index: int) -> bool:
        """``(C)``, but not the plural in ``car(s)``."""
        before = self.words[index - 1] if index else ""
        after = self.words[index + 1] if index + 1 < len(self) else ""
        if after in (".", ":") and index + 2 < len(self):
            after = self.words[index + 2]
        pairs = {"(": ")", "[": "]", "{": "}"}
        return pairs.get(before) == after and not self._glued[index - 1]

    def is_declared(self, index: int, end: int) -> bool:
        """``the answer is C``, ``option c``."""
        position = index - 1
        while position >= 0 and index - position <= _MAX_FILLERS:
            word = self._lower[position]
            if word in _LABEL_KEYWORDS and position == index - 1 and self.words[index].isupper():
                return True
            if word in _KEYWORDS:
                certain = self.words[index] in _CERTAIN
                return certain or self._may_follow(end)
            if word not in _FILLERS and word != "\n":
                return False
            position -= 1
        return False

    def stands_alone(self, index: int, end: int) -> bool:
        """The letter is all that stands between punctuation, line ends or words like "so"."""
        before = index - 1
        while before >= 0 and self.words[before] in _OPENERS:
            before -= 1
        if before < 0 and self._starts_title(index, end):
            return True
        if before >= 0 and self.words[before] not in _PUNCTUATION:
            led = self._lower[before] in _BEFORE and self.words[index].isupper()
            if not led:
                return False
        return self._may_follow(end)

    def _starts_title(self, index: int, end: int) -> bool:
        """``C The man`` at the very start; ``A Man`` and ``I`` are words there."""
        is_certain = self.words[index] in _CERTAIN
        return is_certain and end < len(self) and self.words[end][:2].istitle()

    def _is_word(self, index: int) -> bool:
        """An article or a pronoun."""
        return self._lower[index] in ("a", "i") and not self._may_follow(index + 1)

    def _may_follow(self, end: int) -> bool:
        """Whether the token at ``end`` may follow a letter that is an answer."""
        while end < len(self) and self.words[end] in _CLOSERS:
            end += 1
        if end >= len(self):
            return True
        word = self._lower[end]
        if word in _PUNCTUATION or word in _OPENERS or word in _AFTER:
            return True
        if word in ("is", "was", "seems", "appears"):
            return any(later in _VERDICTS for later in self._lower[end + 1 : end + 4])
        return False
