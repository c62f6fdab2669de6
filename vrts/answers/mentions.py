"""Which letters a text affirms, denies or only discusses: rules 5 to 8 of :mod:`vrts.answers`.

A text is a list of tokens. A letter (or a list such as "A, B and D") is *named* by its position,
and the words before and after it in its clause give its stance. The tables are English and
Chinese; a Chinese word of a table is one token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPENERS = _words("( [ { < \" '")
_CLOSERS = _words(") ] } > \" '")
_BULLETS = _words("- * \u2022")
_LIST = _words(", / & + | and or nor option choice 和 或 与 及") | _OPENERS | _CLOSERS
_SENTENCE_ENDS = _words(". ; ! ?") | {"\n"}
_PUNCTUATION = _words(". , ; : ! ? - = > \u2013 \u2014 \u2192 | \u2713 \u2714 \u2705") | {"\n"}
_SEPARATORS = _words(": - = ( \u2013 \u2014 \u2192 |")
_FILLERS = _words(
    """: = - > " ' ( [ { is was be would should must to the my correct right best final most likely
    probably definitely clearly therefore thus either letter option choice number indeed are both
    options choices answers out 是 为 应 应该 应为 最终 的 了 就 只能 有 选项"""
)
_LABEL_KEYWORDS = _words("option options choice choices letter 项 选项")
_KEYWORDS = _LABEL_KEYWORDS | _words(
    """answer answers choose chose pick picked select selected 案 答案 选 选择"""
)
_LEAD_FILLERS = _FILLERS - _KEYWORDS
_BEFORE = _KEYWORDS | _words(
    """is was be it's that's with say so then thus hence therefore either probably likely
    definitely clearly to and or nor / & + | only believe think guess conclude but actually
    是 为 所以 因此 故 而是 但 我认为 \u2713 \u2714 \u2705"""
)
_REASONS = _words(
    """because since as if but which while where due based on in from given and or nor / & + |
    因为 由于 但 但是 而 所以 因此 故"""
)
_CLAUSE_STARTS = _words(
    """, so therefore thus hence then but because since as while whereas although though which and
    \u2014 \u2013 所以 因此 因而 故 但 但是 而是 因为 由于 不过"""
)
_CLAUSE_ENDS = _SENTENCE_ENDS | _CLAUSE_STARTS | {"|", ":", ""}
_SUFFIXES = _CLOSERS | _words("选项 项")  # "option", after the letter
_VERDICTS = _words(
    """correct right true best answer closest likely option choice fits fit matches match describes
    describe corresponds captures reflects agrees consistent supported accurate it this yes
    正确 对 符合 匹配 吻合 一致 成立 合适 \u2713 \u2714 \u2705"""
)
# what may follow a letter that is an answer: a verdict also without "is"
_AFTER = (
    _words("fits matches describes best instead rather 正确 对 符合 成立")
    | _PUNCTUATION | _OPENERS | _REASONS | {""}
)  # fmt: skip
_DENIERS = _words(
    """not cannot never wrong incorrect false no impossible unlikely less eliminated excluded ruled
    rejected discarded dismissed contradicts contradict contradicted fails fail mismatches
    inaccurate irrelevant untrue out far hardly cant isnt doesnt dont
    不 没 没有 未 非 无 错 错误 排除 被排除 \u2717 \u2718 \u274c \u00d7"""
)
_AUXILIARIES = _words(
    """is are was were be been being can could may might must should would will has have had do does
    did seems seem appears looks also both all clearly definitely probably certainly simply just
    therefore then really obviously actually still partly the a an very most so to shows say says
    likely only one
    是 都 也 就 显然 应该 选项 项 最 的 均 全 被 可 可以 明显 很 并 是因为"""
)
_SHOWN = _words(
    "shown seen visible mentioned present supported correct true right matching possible"
)
_NEGATORS = _words(
    """not cannot never neither nor none except unlike without than instead cant isnt dont doesnt
    disagree doubt hardly avoid far
    不 没 没有 非 未 无 除了"""
)
# these deny what directly follows: "eliminate option B", "the wrong answer is B"
_REMOVERS = _words(
    """eliminate eliminated eliminating exclude excluded excluding reject rejected rejecting discard
    discarded dismiss dismissed wrong incorrect false worst rule ruled ruling cross crossed
    排除 错误 错 不正确"""
)
_BEFORE_COLON = _FILLERS | _KEYWORDS | _NEGATORS | _REMOVERS
_CONSIDERED = _words(
    """thought initially originally tempted tempting consider considering look looking evaluate
    evaluating check checking examine examining compare comparing analyze analyzing
    原本 起初 考虑"""
)
_QUESTION_STARTS = _words(
    """is are was were do does did can could would should what which who how why whether 难道"""
)
_CERTAIN = frozenset("BCDEFGHJKLMNOPQRSTUVWXYZ")  # neither an article nor a pronoun
# how many tokens the rules look ahead or back
_MAX_FILLERS, _MAX_BETWEEN, _MAX_CLAUSE, _BEYOND = 8, 6, 14, 64

_CHINESE = sorted(
    {
        word
        for table in (
            *(_LIST, _FILLERS, _KEYWORDS, _BEFORE, _REASONS, _CLAUSE_STARTS, _VERDICTS, _DENIERS),
            *(_AUXILIARIES, _NEGATORS, _REMOVERS, _CONSIDERED, _QUESTION_STARTS),
        )
        for word in table
        if len(word) > 1 and word[0] > "\u2fff"
    }
    | {"非常", "不过", "对于"},
    key=len,
    reverse=True,
)
# Words with inner hyphens, apostrophes or full stops are one token, so their letters are not alone.
# Letters of other scripts need no space before a Latin letter: each is a token, except in the words
# of the tables.
_TOKEN = re.compile(
    r"(?:[A-Za-z]\.){2,}+(?![A-Za-z]{2})"
    r"|[A-Za-z0-9À-ɏ_]++(?:['\-][A-Za-z0-9À-ɏ]++)*+[+#]*+"
    rf"|{'|'.join(_CHINESE)}"
    r"|\n|[^\s]"
)

_RETRACTION = (
    r"scratch\s+that|correction|my\s+mistake|my\s+bad|sorry|i\s+take\s+(?:it|that)\s+back"
    r"|(?:that(?:'s|\s+is|\s+was)|this\s+is|it's|i\s+was|i\s+am|i'm)\s+"
    r"(?:not\s+(?:right|correct)|wrong|incorrect|mistaken|a\s+mistake)"
    r"|不对|更正|纠正|(?:我|说)?错了"
)
_NO = r"|no(?:pe)?(?=\s?(?:[.,!;\-\u2014\n]|\Z))|不(?=\s?[,.])"
_RECONSIDERED = (
    r"wait|actually|hold\s+on|on\s+second\s+thoughts?|i\s+mean|or\s+rather|in\s+fact"
    r"|let\s+me\s+(?:re-?(?:check|consider|think|examine|evaluate)|correct|double)"
    r"|等等|等一下|再想想|其实|准确地说"
)


def _correction(retraction: str) -> re.Pattern[str]:
    return re.compile(
        r"(?:\A|(?<=[.,!?;\n\u2014]))\s{0,3}"
        r"(?:(?:oh|hm{1,3}|but|well|ah|wait|no|and)\b[\s,.!\u2026\-]{1,4}){0,3}"
        rf"(?:(?P<retracts>{retraction})|{_RECONSIDERED})(?![A-Za-z])",
        re.IGNORECASE,
    )


_CORRECTION = _correction(_RETRACTION + _NO)
_CORRECTION_BUT_NO = _correction(_RETRACTION)
_EDGES = " \t\n.,:;!-"


class Stance(Enum):
    """What a text does with a letter that it names."""

    AFFIRMED = "affirmed"
    DENIED = "denied"
    DESCRIBED = "described"  # "option A shows a red car": an answer only where it is all there is
    DISCUSSED = "discussed"  # "could it be A?": no answer


@dataclass
class Mentions:
    """Capital letters by stance, among them perhaps some that no option has."""

    affirmed: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    described: set[str] = field(default_factory=set)


def read_mentions(text: str, options: str) -> Mentions:
    """Find the letters that a text without emphasis names, and their stance.

    Example:
        >>> found = read_mentions("I choose B, not (C).", "ABCD")
        >>> found.affirmed, found.denied
        ({'B'}, {'C'})
    """
    tokens = _Tokens(text)
    mentions = Mentions()
    known = set(options)
    last = None
    index = 0
    while index < len(tokens) and len(mentions.affirmed) < 2:  # two are no answer, so stop
        if not tokens.is_letter(index):
            index += 1
            continue
        end = tokens.list_end(index)
        found = {tokens.words[i].upper() for i in range(index, end) if tokens.is_letter(i)}
        certain = tokens.in_brackets(index) or tokens.is_declared(index, end)
        named = certain or (tokens.stands_alone(index, end) and bool(found & known))
        if named or tokens.has_predicate(end):
            stance = tokens.stance(index, end)
            if tokens.follows_so_is(index) and last is Stance.DENIED:
                stance = Stance.DENIED
            if stance is Stance.DENIED and tokens.words[index].isupper():
                mentions.denied |= found & known
            elif stance is Stance.AFFIRMED and named:
                mentions.affirmed |= found
            elif stance is Stance.DESCRIBED and named:
                mentions.described |= found
            last = stance
        index = end
    return mentions


def corrected(text: str, names: Callable[[str], bool], no_is_an_answer: bool = False) -> str:
    """Return the part of a text that counts after its corrections (rule 6).

    That is the part from the last correction on that names an answer, if a part before it names one
    too; nothing if the answer is taken back and not replaced; else the text. ``names`` is whether a
    part names an answer; if "no" is one, it is not a correction.

    Example:
        >>> corrected("It is 5. Wait, no. It is 6.", lambda part: any(map(str.isdigit, part)))
        'It is 6'
    """
    pattern = _CORRECTION_BUT_NO if no_is_an_answer else _CORRECTION
    matches = list(pattern.finditer(text))
    if not matches:
        return text
    starts = [0, *(match.end() for match in matches)]
    ends = [*(match.start() for match in matches), len(text)]
    parts = [text[start:end].strip(_EDGES) for start, end in zip(starts, ends, strict=True)]
    naming = [i for i, part in enumerate(parts) if part and names(part)]
    if not naming:
        return text
    last = naming[-1]
    if any(match["retracts"] for match in matches[last:]):
        return ""
    return text if len(naming) == 1 else text[starts[last] :].strip(_EDGES)


class _Tokens:
    """Tokens of a text, and the conditions of the rules on them."""

    def __init__(self, text: str) -> None:
        matches = list(_TOKEN.finditer(text))
        self.words = [match[0] for match in matches]
        # padded, so that the rules may look beyond the end
        self._lower = [word.lower() for word in self.words] + [""] * _BEYOND
        self._letters = [len(w) == 1 and w.isascii() and w.isalpha() for w in self.words]
        self._letters += [False] * _BEYOND
        self._glued = [match.start() > 0 and text[match.start() - 1].isalnum() for match in matches]
        self._sentence: list[int] = []  # of each token
        self._bounds: list[tuple[int, int]] = []  # of each sentence: its first token and its end
        self._denying_which: dict[int, int] = {}
        self._find_sentences()

    def __len__(self) -> int:
        return len(self.words)

    def _find_sentences(self) -> None:
        start = 0
        for position, word in enumerate(self._lower[: len(self)]):
            self._sentence.append(len(self._bounds))
            label = word == "." and position == start + 1 and self.is_letter(start)
            if word in _SENTENCE_ENDS and not label:
                self._bounds.append((start, position))
                start = position + 1
            elif word == "which" and self._denies(
                self._skip(position + 1, _AUXILIARIES, _MAX_FILLERS - 1)
            ):
                self._denying_which[len(self._bounds)] = position
        self._bounds.append((start, len(self)))

    def _denies(self, index: int) -> bool:
        return self._word(index) in _DENIERS or self._word(index).endswith("n't")

    def _word(self, index: int) -> str:
        """Lower-case word at a position; empty outside the text."""
        return self._lower[index] if index >= 0 else ""

    def _skip(self, index: int, table: frozenset[str], most: int | None = None) -> int:
        """First position from here on, or after ``most`` words, whose word is not in a table."""
        end = index + (len(self) if most is None else most)
        while index < end and self._word(index) in table:
            index += 1
        return index

    def _skip_back(self, index: int, table: frozenset[str]) -> int:
        """Last position up to here whose word is not in a table; -1 before the text."""
        while self._word(index) in table:
            index -= 1
        return index

    def _lead(self, index: int, fillers: frozenset[str]) -> str:
        """The nearest word before the letter that is not a filler; empty if it is too far away."""
        words = reversed(self._lower[max(index - _MAX_FILLERS, 0) : index])
        return next((word for word in words if word not in fillers and word != "\n"), "")

    def is_letter(self, index: int) -> bool:
        return self._letters[index]

    def list_end(self, index: int) -> int:
        """End of the list of letters that begins here: ``A or B``, ``A, (B) and C``, ``A B``."""
        end = index + 1
        while True:
            after = self._skip(end, _LIST, _MAX_BETWEEN)
            # "c or a man", "A, I think": the last letter is an article or a pronoun
            is_word = self._lower[after] in ("a", "i") and not self._may_follow(after + 1)
            if not self.is_letter(after) or is_word:
                return end
            end = after + 1

    def in_brackets(self, index: int) -> bool:
        """``(C)``, but not the plural in ``car(s)``."""
        after = self._word(index + 1)
        if after in (".", ":"):
            after = self._word(index + 2)
        pairs = {"(": ")", "[": "]", "{": "}"}
        return pairs.get(self._word(index - 1)) == after and not self._glued[index - 1]

    def is_declared(self, index: int, end: int) -> bool:
        """``the answer is C``, ``option c``."""
        if self._word(index - 1) in _LABEL_KEYWORDS and self.words[index].isupper():
            return True
        is_led = self._lead(index, _LEAD_FILLERS) in _KEYWORDS
        return is_led and (self.words[index] in _CERTAIN or self._may_follow(end))

    def stands_alone(self, index: int, end: int) -> bool:
        """The letter is alone between punctuation, line ends or words like "so"."""
        letter, before = self.words[index], self._word(self._skip_back(index - 1, _OPENERS))
        following = self.words[end] if end < len(self) else ""
        if not before and letter in _CERTAIN and following[:2].istitle():
            return True  # "C The man" at the very start; "A Man" and "I" are words there
        led = letter.isupper() and before in _BEFORE
        return (not before or before in _PUNCTUATION or led) and self._may_follow(end)

    def follows_so_is(self, index: int) -> bool:
        """``and so is B``, which gives B the stance of the letter before."""
        return self._word(index - 1) in ("is", "are") and self._word(index - 2) in ("so", "as")

    def has_predicate(self, end: int) -> bool:
        """``B is``, ``B cannot``, ``B: wrong``: a predicate may follow."""
        end = self._skip(end, _CLOSERS | _SEPARATORS, _MAX_BETWEEN)
        return self._denies(end) or (self._word(end) in _AUXILIARIES and self._word(end) != "a")

    def stance(self, index: int, end: int) -> Stance:
        """Stance of the clause on the letters from ``index`` to ``end``."""
        before = self._stance_before(index)
        if before is Stance.DENIED:
            return before
        after = self._stance_after(index, end)
        if after is Stance.DENIED or self._is_denied_by_which(end):
            return Stance.DENIED
        if before is Stance.DISCUSSED or self._is_asked(index):
            return Stance.DISCUSSED
        return after

    def _stance_before(self, index: int) -> Stance:
        """Look for "not", "we can eliminate", "the wrong answer is" before the letter."""
        directly, removes = True, False
        for position in range(index - 1, max(index - 1 - _MAX_CLAUSE, -1), -1):
            word = self._lower[position]
            negates = word in _NEGATORS or word.endswith("n't")
            if (negates and not removes) or (removes and not negates):
                return Stance.DENIED
            removes = directly and word in _REMOVERS
            if word in _CONSIDERED:
                return Stance.DISCUSSED
            directly = directly and (word in _FILLERS or word in _KEYWORDS)
            letter = self.is_letter(position) and self.words[position] in _CERTAIN
            if letter or word in _SENTENCE_ENDS or word in _CLAUSE_STARTS:
                break
            if word == ":" and self._word(position - 1) not in _BEFORE_COLON:
                break
        return Stance.DENIED if removes else Stance.AFFIRMED

    def _stance_after(self, index: int, end: int) -> Stance:
        """Look at the predicate: "is correct", "cannot be right", ": false", "shows a car"."""
        position = self._skip(end, _CLOSERS)
        separator = self._word(position)
        separated = separator in _SEPARATORS or separator == "."
        first = self._skip(position + separated, _SUFFIXES)
        position = self._skip(first, _AUXILIARIES, _MAX_FILLERS)
        word, following = self._word(position), self._word(position + 1)
        closes = self._ends_clause(position + 1)
        if self._denies(position):
            if self.is_letter(position + 1) and position == first:
                return Stance.AFFIRMED  # "B not C"
            if not separated:
                return Stance.DENIED
            if closes or (following in _SHOWN and (separator != "." or following != "shown")):
                return Stance.DENIED
        if word in _VERDICTS and (closes or not separated):
            return Stance.AFFIRMED
        if self._ends_clause(first) or word in _REASONS:
            return Stance.AFFIRMED
        # another predicate: "option A shows a red car", "A: the car is red"
        before = self._skip_back(index - 1, _OPENERS | _BULLETS)
        labelled = self._word(before) in _LABEL_KEYWORDS
        before -= labelled
        if self._declares(index) or (before < 0 and separated):
            return Stance.AFFIRMED
        opens = separated and (self._word(before) in _SENTENCE_ENDS or self._word(before) == ":")
        return Stance.DESCRIBED if opens or labelled else Stance.AFFIRMED

    def _declares(self, index: int) -> bool:
        """Whether "answer" or "choose" is before the letter, and not only "option"."""
        return self._lead(index, _LEAD_FILLERS | _LABEL_KEYWORDS) in _BEFORE

    def _is_denied_by_which(self, end: int) -> bool:
        """``A: the car is red, which is not what the video shows``."""
        return self._denying_which.get(self._sentence[end - 1], -1) >= end

    def _is_asked(self, index: int) -> bool:
        """``Could it be B?``, but not ``B?``; and ``If it were red, the answer would be B``."""
        start, end = self._bounds[self._sentence[index]]
        if start == index:
            return False
        if self._lower[start] == "if" and self._word(start + 1) not in ("i", "we"):
            return "would" in self._lower[max(start, index - _MAX_CLAUSE) : index]
        return self._lower[start] in _QUESTION_STARTS and self._word(end) == "?"

    def _ends_clause(self, index: int) -> bool:
        return self._word(self._skip(index, _CLOSERS)) in _CLAUSE_ENDS

    def _may_follow(self, end: int) -> bool:
        """Whether the token at ``end`` may follow a letter that is an answer."""
        end = self._skip(end, _SUFFIXES)
        if self._word(end) in ("is", "was", "seems", "appears", "是", "最"):
            return any(later in _VERDICTS for later in self._lower[end + 1 : end + 4])
        return self._word(end) in _AFTER
