r"""The letter that a completion means, given the options.

The rules of :func:`extract_choice`, in order; a rule that decides ends the search:

1. **Where.** Only the answer of the completion is read, see
   :func:`vrts.answers.tags.split_completion`: the last ``<answer>`` behind the reasoning, in any
   case, closed or not. An empty one is no answer. Full-width letters and punctuation count as
   ASCII; of JSON the field that names the answer is read.
2. **A letter alone**, in either case, in any brackets, quotes, emphasis or ``\boxed{}``, with or
   without punctuation: ``C``, ``c``, ``(C)``, ``C)``, ``[C]``, ``**C**``, ``C.``, also behind "The
   answer is". A letter wins over an option whose *text* is that letter.
3. **An option's text alone**, also behind "The answer is". Compared exactly, then without case and
   closing punctuation, then without a leading article. The whole text must be equal: "Brown car" is
   B only if B is "brown car". A text that several options have is no answer.
4. **A letter with its option's text** (``C. text``, ``(C) text``, ``C text``) is that letter,
   whatever letters are in the text.
5. **Letters named in a sentence.** A single letter is named where it

   - is in brackets: ``(C)``; emphasis, quotes and ``\boxed{}`` around a capital are brackets too;
   - follows ``answer``, ``option``, ``choice``, ``choose``, ``pick``, ``select`` or ``letter``,
     perhaps with "is", "would be", "the correct" or the like between them;
   - stands by itself between punctuation, line ends or words such as "is", "so", "therefore",
     "with" before it, and "because", "is correct", "fits" or the like behind it.

   No letter is named by a word's first letter, by a word with a hyphen or apostrophe (``C-shaped``,
   ``B's``), by an abbreviation (``U.S.``), by "A" or "a" before a word (an article), by "I" before
   a word (a pronoun), or by a letter in a name (``Vitamin C``).
   "A or B", "A, B", "A/B" and "A B" name both.
6. If just one letter is named and an option has it, it is the answer. Two letters, a letter that no
   option has, or none, are no answer. A letter that no option has is overlooked only where nothing
   but its place among punctuation names it (the initial in "J. Smith is shown. The answer is C.").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vrts.answers.tags import final_answer, fold_forms, strip_lead_in
from vrts.answers.mentions import named_letters
from vrts.types import letters

_ALONE = re.compile(r"""[\s"'(\[{<]*+([A-Za-z])[\s"')\]}>.,:;!]*+""")
_LATEX = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm|mathbb|bf|rm)(?![A-Za-z])")
_EMPHASISED = re.compile(r"""(?<![A-Za-z0-9])([*_`"']{1,3})([A-Z])([.:)]?)\1(?![A-Za-z0-9])""")
_LETTER_AND_TEXT = re.compile(r"([A-Za-z])\s+(\S.*)", re.DOTALL)
_ARTICLE = re.compile(r"(?:an?|the)\s+(?=\S)")


def extract_choice(text: str, options: Sequence[str]) -> str | None:
    """Give the letter of the option that a completion means; the rules are the module's.

    Args:
        text: A completion, or only its answer.
        options: Texts of the options in order, each with or without its ``A. ``.

    Returns:
        A capital letter, or None where the text means no option or several.

    Example:
        >>> extract_choice("A man opens the door. The answer is C.", ["red", "green", "blue"])
        'C'
        >>> extract_choice("<answer>Green</answer>", ["A. red", "B. green", "C. blue"])
        'B'
        >>> extract_choice("A or B", ["red", "green", "blue"]) is None
        True
    """
    answer = final_answer(text)
    known = letters(options)
    if not answer or not known:
        return None
    texts = {
        letter: fold_forms(text) for letter, text in zip(known, option_texts(options), strict=False)
    }
    plain = _plain(answer)
    for candidate in (plain, strip_lead_in(plain)):
        alone = _ALONE.fullmatch(candidate)
        if alone and alone[1].upper() in texts:
            return alone[1].upper()
    for candidate in (answer, strip_lead_in(answer)):
        meant = _with_text(candidate, texts)
        if meant:
            return meant if len(meant) == 1 else None
    pair = _LETTER_AND_TEXT.fullmatch(answer)
    if pair and _with_text(pair[2], texts) == pair[1].upper():
        return pair[1].upper()
    named = named_letters(_shorten_labels(plain, texts), known)
    return named.pop() if len(named) == 1 and named <= texts.keys() else None


def option_texts(options: Sequence[str]) -> tuple[str, ...]:
    """Texts of the options without their letters, if each begins with its own (``A. ``, ``(A)``).

    Example:
        >>> option_texts(["A. red", "B. blue"]), option_texts(["A. Lincoln", "J. Adams"])
        (('red', 'blue'), ('A. Lincoln', 'J. Adams'))
    """
    matches = [
        re.match(rf"\s*(?:\({letter}\)|{letter}[.):\uff0e\uff1a\u3001])\s*", option)
        for letter, option in zip(letters(options), options, strict=False)
    ]
    if len(matches) < len(options) or not all(matches):
        return tuple(option.strip() for option in options)
    return tuple(
        option[match.end() :].strip()
        for match, option in zip(matches, options, strict=True)
        if match
    )


def _plain(answer: str) -> str:
    """Answer without LaTeX and emphasis; an emphasised or quoted capital is put in brackets."""
    answer = _LATEX.sub("", answer).replace("\\", "").replace("$", "")
    answer = _EMPHASISED.sub(r"(\2)", answer)
    return answer.replace("*", "").replace("`", "").strip()


def _with_text(candidate: str, texts: dict[str, str]) -> str:
    """Letters of the options that have this text, by the strictest comparison that finds any."""
    for simplify in (_exact, _folded, _without_article):
        wanted = simplify(candidate)
        found = "".join(letter for letter, text in texts.items() if simplify(text) == wanted)
        if wanted and found:
            return found
    return ""


def _exact(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> str:
    # signs such as "-" and "+" stay: they tell "-1" from "1" and "4+" from "4"
    return " ".join(_plain(text).casefold().split()).strip("\"'`* ").rstrip("\"'`* .,;:!。")


def _without_article(text: str) -> str:
    folded = _folded(text)
    article = _ARTICLE.match(folded)
    return folded[article.end() :] if article else folded


def _shorten_labels(answer: str, texts: dict[str, str]) -> str:
    """Replace each ``C. text`` by ``(C)``, so that letters within the text are not read."""
    for letter, text in texts.items():
        words = _plain(text).split()
        if words:
            label = rf"(?<![A-Za-z0-9]){letter}\s{{0,2}}[.):\]\-\u2013\u2014]{{1,2}}[\s\"']{{0,4}}"
            pattern = label + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
            answer = re.sub(pattern, f"({letter}) ", answer, flags=re.IGNORECASE)
    return answer
