"""Multiple-choice answers: the letter that a completion means, by the rules of the package."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vrts.answers.mentions import corrected, read_mentions
from vrts.answers.tags import final_answer, fold_forms, strip_lead_in
from vrts.types import letters

_ALONE = re.compile(r"""[\s"'(\[{<]*+([A-Za-z])[\s"')\]}>.,:;!]*+""")
_LATEX = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm|mathbb|bf|rm)(?![A-Za-z])")
_EMPHASISED = re.compile(r"""(?<![A-Za-z0-9])([*_`"']{1,3})([A-Z])([.:)]?)\1(?![A-Za-z0-9])""")
_LETTER_AND_TEXT = re.compile(r"([A-Za-z])\s+(\S.*)", re.DOTALL)
_ARTICLE = re.compile(r"(?:an?|the)\s+(?=\S)")
_GROUPED = re.compile(r"(?<=\d)[,'](?=\d{3}(?!\d))|(?<=\d)\s{1,2}(?=[a-z%\u00b0])")

_HEADING = (
    r"explanation|reason(?:ing|s)?|rationale|justification|analysis|note"
    r"|解释|理由|分析|原因|说明|解析"
)
_EXPLANATION = re.compile(
    rf"(?:\A|[\n.)!])[\s*#>\-]{{0,6}}(?:{_HEADING})[\s*]{{0,4}}:.*?"
    r"(?=\n\W{0,6}(?:(?:final|correct|my)\s)?(?:answer|conclusion|答案|结论)|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_TABLE_ROW = re.compile(r"^[ \t]{0,8}\|.*$", re.MULTILINE)
_OPTION_LINE = re.compile(r"[ \t>*\-\u2022]{0,6}\(?([A-Z])[*)]{0,3}[.):][*\s]{0,4}\S")
_RESTATED = re.compile(r"(?:\([A-Z]\)\s{0,3}[,;.]?\s{0,3}(?:(?:and|or)\s)?){2,}+")
_SENTENCES = re.compile(r"[.!?;\n]\s*+\S")
_POLAR = frozenset("yes no true false 是 否 不是 对 不对 有 没有 正确 错误".split())
_AFTER_TEXT = r"\s{0,2}(?:[.!;:\n\u2014]|,?\s(?:because|since|as)\b"


def extract_choice(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that a completion means; None if it means none or several.

    Args:
        text: A completion, or only its answer.
        options: Texts of the options in order, each with or without its ``A. ``.

    Example:
        >>> extract_choice("A man opens the door. The answer is C.", ["red", "green", "blue"])
        'C'
        >>> extract_choice("<answer>Green</answer>", ["A. red", "B. green", "C. blue"])
        'B'
        >>> extract_choice("A or B", ["red", "green", "blue"]) is None
        True
        >>> extract_choice("It is A. Wait, no. It is not A but C.", ["red", "green", "blue"])
        'C'
    """
    answer = final_answer(text)
    known = letters(options)
    if not answer or not known:
        return None
    texts = {
        letter: fold_forms(text) for letter, text in zip(known, option_texts(options), strict=False)
    }
    found = _alone(answer, texts)
    if not found:
        # asides such as an explanation count only if there is no answer without them
        answer = _shorten_labels(_plain(answer), texts)
        main = _without_asides(answer)
        found = (_read(main, texts) if main != answer else set()) or _read(answer, texts)
    return found.pop() if len(found) == 1 and found <= texts.keys() else None


def option_texts(options: Sequence[str]) -> tuple[str, ...]:
    """Return options without their letters, if each begins with its own (``A. ``, ``(A)``).

    Example:
        >>> option_texts(["A. red", "B. blue"]), option_texts(["A. Lincoln", "J. Adams"])
        (('red', 'blue'), ('A. Lincoln', 'J. Adams'))
    """
    bare = []
    for letter, option in zip(letters(options), options, strict=False):
        match = re.match(rf"\s*(?:\({letter}\)|{letter}[.):\uff0e\uff1a\u3001])\s*", option)
        bare += [option[match.end() :]] if match else []
    return tuple(text.strip() for text in (bare if len(bare) == len(options) else options))


def _alone(answer: str, texts: dict[str, str]) -> set[str]:
    """Letters of an answer that is only a letter, an option's text or both (rules 2 to 4)."""
    plain = _plain(answer)
    for candidate in (plain, strip_lead_in(plain)):
        if (alone := _ALONE.fullmatch(candidate)) and alone[1].upper() in texts:
            return {alone[1].upper()}
    for candidate in (answer, strip_lead_in(answer)):
        if meant := _with_text(candidate, texts):
            return set(meant)
    pair = _LETTER_AND_TEXT.fullmatch(answer)
    if pair and _with_text(pair[2], texts) == pair[1].upper():
        return {pair[1].upper()}
    return set()


def _read(answer: str, texts: dict[str, str]) -> set[str]:
    """Letters that an answer means after its corrections (rules 5 to 8); several mean none."""
    no_is_an_answer = any(_folded(text) == "no" for text in texts.values())
    answer = corrected(answer, lambda part: bool(_meant(part, texts)), no_is_an_answer)
    found = _meant(answer, texts)
    if len(found) == 1 and _contradicts(answer, next(iter(found)), texts):
        return set(texts)
    return found


def _meant(answer: str, texts: dict[str, str]) -> set[str]:
    if found := _alone(answer, texts):
        return found
    mentions = read_mentions(answer, "".join(texts))
    if mentions.affirmed & mentions.denied:
        return set(texts)
    found = mentions.affirmed | _leading_text(answer, texts, bare=bool(mentions.affirmed))
    if not found and not mentions.denied and not _SENTENCES.search(answer):
        found = mentions.described
    return found


def _without_asides(answer: str) -> str:
    """Answer without explanations, rows of tables and options that are only restated."""
    answer = _TABLE_ROW.sub("", _EXPLANATION.sub("\n", answer))
    lines: list[str] = []
    run: list[str] = []  # consecutive lines "A. …", "B. …"
    for line in [*answer.split("\n"), "end"]:
        match = _OPTION_LINE.match(line)
        restated = sum(bool(option.strip()) for option in run)
        if (match and ord(match[1]) == ord("A") + restated) or (run and not line.strip()):
            run.append(line)
        else:
            lines += run if restated < 2 else []
            lines.append(line)
            run = []
    return _RESTATED.sub(" ", "\n".join(lines[:-1])).strip()


def _leading_text(answer: str, texts: dict[str, str], bare: bool) -> set[str]:
    """Letters of the option whose text the answer begins with: ``No, the man does not.``.

    If the text of another option follows, both are meant. A bare one has no article before it.
    """
    # a sentence must end after the text, or a reason begin; after yes and no a comma is enough
    article = "" if bare else r"(?:(?:an?|the)\s)?"
    folded = " ".join(strip_lead_in(answer).casefold().split(" ")).lstrip("\"'* ")
    for letter, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        option = _folded(text)
        end = _AFTER_TEXT + (r"|,)" if option in _POLAR else ")")
        if not option or not re.match(rf"{article}{re.escape(option)}{end}", folded):
            continue
        rest = folded[len(option) :]
        return {letter} | {
            other
            for other, text in texts.items()
            if other != letter
            and _folded(text)
            and re.search(rf"(?<!\w){re.escape(_folded(text))}(?!\w)", rest)
        }
    return set()


def _contradicts(answer: str, letter: str, texts: dict[str, str]) -> bool:
    """Whether the text of another option is directly after or before the letter."""
    for other, text in texts.items():
        words = r"\s+".join(map(re.escape, _plain(text).split()))
        if other == letter or not words:
            continue
        words = rf"(?:(?:an?|the)\s)?{words}"
        after = (
            rf"(?<![A-Za-z0-9]){letter}[\s.):\]\-\u2013\u2014,(\"'=]{{1,6}}{words}"
            r"(?=\s{0,2}(?:\Z|[.;!?\n)\]\"']|(?:because|since)\b))"
        )
        before = rf"(?:\A|[.:;!?\n]\s?|\bis\s){words}\s?[\(\[]{letter}[\)\]]"
        if re.search(rf"{after}|{before}", answer, re.IGNORECASE):
            return True
    return False


def _plain(answer: str) -> str:
    """Answer without LaTeX and emphasis; an emphasised or quoted capital gets brackets."""
    answer = _LATEX.sub("", answer).replace("\\", "").replace("$", "")
    answer = _EMPHASISED.sub(r"(\2)", answer)
    return answer.replace("*", "").replace("`", "").strip()


def _with_text(candidate: str, texts: dict[str, str]) -> str:
    """Letters of the options with this text, by the strictest comparison that finds any."""
    for simplify in (_exact, _folded, _without_article, _without_separators):
        wanted = simplify(candidate)
        found = "".join(letter for letter, text in texts.items() if simplify(text) == wanted)
        if wanted and found:
            return found
    return ""


def _exact(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> str:
    # signs such as "-" and "+" stay: "-1" is not "1", nor "4+" "4"
    return " ".join(_plain(text).casefold().split()).strip("\"'`* ").rstrip("\"'`* .,;:!。")


def _without_article(text: str) -> str:
    folded = _folded(text)
    article = _ARTICLE.match(folded)
    return folded[article.end() :] if article else folded


def _without_separators(text: str) -> str:
    """``1,000 m`` and ``1000m`` are one text."""
    return _GROUPED.sub("", _without_article(text))


def _shorten_labels(answer: str, texts: dict[str, str]) -> str:
    """Write ``(C)`` for ``C. text``, and for the option's text after "the answer is".

    So letters within the text are not read.
    """
    count: Callable[[str], int] = [_folded(text) for text in texts.values()].count
    for letter, text in texts.items():
        words = r"\s+".join(map(re.escape, _plain(text).split()))
        if not words:
            continue
        label = rf"(?<![A-Za-z0-9]){letter}\s{{0,2}}[.):\]\-\u2013\u2014]{{1,2}}[\s\"']{{0,4}}"
        answer = re.sub(rf"{label}{words}(?!\w)", f"({letter}) ", answer, flags=re.IGNORECASE)
        if count(_folded(text)) == 1:
            lead = r"(\b(?:answer|option|choice)\s?(?:is|:)\s{0,3})(?:(?:an?|the)\s)?[\"']?"
            end = r"[\"']?(?=\s{0,2}(?:\Z|[.,;!?\n]|(?:because|since|as)\b))"
            answer = re.sub(lead + words + end, rf"\1({letter})", answer, flags=re.IGNORECASE)
    return answer
