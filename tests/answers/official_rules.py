"""How the benchmarks' own evaluators read answers, written down here from their published rules.

Each function gives the gold letters for which a response counts as right: one letter where a rule
reads one, none where it reads none, and several where it is not strict. A random guess counts as
right for none here.

- Video-MME: ``evaluation/eval_your_results.py`` of github.com/BradyFU/Video-MME.
- LongVideoBench: the task of lmms-eval, which claims to be that of the paper's author.
- VideoMMMU: the task of lmms-eval, written by the authors.
- Video-Holmes: ``evaluate.py`` of github.com/TencentARC/Video-Holmes.
- MMVU: its authors let GPT-4o judge, which is no rule; the rule here is that of lmms-eval's task.
"""

import re
import string
from collections.abc import Sequence

from vrts.types import letters

LEAD_INS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
)


def video_mme(response: str, options: Sequence[str]) -> set[str]:
    """The first capital A to D, once lead-ins are gone; without any the question does not count.

    Two lead-ins more are in its list, run together by a missing comma, which no response has.
    """
    return _first_capital(response, LEAD_INS, "ABCD")


def longvideobench(response: str, options: Sequence[str]) -> set[str]:
    """The first capital A to E, once lead-ins are gone; without any a letter is drawn at random."""
    more = ("The best option is", "The correct option is", "Best answer:", "Best option:")
    return _first_capital(response, LEAD_INS + more, "ABCDE")


def _first_capital(response: str, lead_ins: Sequence[str], known: str) -> set[str]:
    for lead_in in lead_ins:
        response = response.replace(lead_in, "")
    return set(next((symbol for symbol in response if symbol in known), ""))


def videommmu(response: str, options: Sequence[str]) -> set[str]:
    """The last ``C.`` (or ``C:``), or else ``(C)``, or else ``C`` before a space, or a text.

    Punctuation around the response is gone before. An option's text is looked for only in a
    response of more than five words that names no letter.
    """
    if not response:
        return set()
    for symbol in ",.!?;:'":
        response = response.strip(symbol)
    response = f" {response} "
    known = letters(options)
    dots = [c for c in known if f"{c}." in response]
    colons = [c for c in known if f"{c}:" in response]
    if dots or colons:
        form = "{}." if dots else "{}:"
        return _last(response, dots + colons, form)
    if found := [c for c in known if f"({c})" in response]:
        return _last(response, found, "({})")
    if found := [c for c in known if f"{c} " in response]:
        return _last(response, found, " {} ")
    if len(response.split()) <= 5:
        return set()
    low = response.lower()
    named = [c for c, text in zip(known, options, strict=True) if text.lower() in low]
    place = {c: low.rfind(options[known.index(c)].lower()) for c in named}
    return {max(named, key=place.__getitem__)} if named else set()


def _last(response: str, found: Sequence[str], form: str) -> set[str]:
    """Of several letters the one whose form comes last, the first of those it finds nowhere."""
    return {max(found, key=lambda letter: response.rfind(form.format(letter)))}


def video_holmes(response: str, options: Sequence[str]) -> set[str]:
    """In the last ``<answer>``: of A to F the first in the alphabet that is there.

    One before a space or colon or after ``[`` takes precedence over any other.
    """
    answers = re.findall(r"<answer>\s*(.*?)\s*</answer>", response, re.DOTALL)
    text = answers[-1].strip() if answers else response
    for letter in "ABCDEF":
        if any(form in text for form in (f"{letter} ", f"{letter}:", f"[{letter}")):
            return {letter}
    return set(next((letter for letter in "ABCDEF" if letter in text), ""))


def mmvu(response: str, options: Sequence[str]) -> set[str]:
    """Every letter that stands alone, in either case, and every option that is quoted.

    Quoted is an option whose text is in the response, or one word of it of three letters or more
    where its letter is somewhere in the response.
    """
    low = response.strip().lower()
    right = set()
    for letter, text in zip(letters(options), options, strict=True):
        stripped = [word.strip(string.punctuation) for word in text.strip().lower().split()]
        words = [word for word in stripped if len(word) > 2]
        if (
            re.search(rf"\b{letter}\b", low, re.IGNORECASE)
            or text.strip().lower() in low
            or (letter.lower() in low and any(word in low for word in words))
        ):
            right.add(letter)
    return right
