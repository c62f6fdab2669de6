r"""Parsing and grading of answers, in one place for rewards, votes and metrics.

An answer can so not be right for one and wrong for another. A text that does not give one clear
answer gives none. The rules, for English and Chinese; the first that decides ends the search:

1. **Where** (:mod:`~vrts.answers.tags`). Only the answer of a completion counts: the last non-empty
   ``<answer>`` after the reasoning, in any case, closed or not. Reasoning that was never closed has
   no answer. Full-width letters and punctuation count as ASCII; of JSON the answer's field counts;
   markup (``<b>``) is ignored.

Choices (:mod:`~vrts.answers.choices`, :mod:`~vrts.answers.mentions`):

2. **A letter alone**, in either case, in any brackets, quotes, emphasis or ``\boxed{}``, with or
   without punctuation: ``C``, ``(c)``, ``**C**``, ``C.``, also after "The answer is". A letter
   takes precedence over an option whose *text* is that letter.
3. **An option's text alone**, also after "The answer is". Compared exactly, then without case and
   closing punctuation, then without a leading article, then without thousands separators. The
   complete text must be equal: "Brown car" is B only if B is "brown car". A text that several
   options have is not an answer. A text at the start of the answer counts too: "No, the man does
   not."
4. **A letter with its option's text** (``C. text``, ``(C) text``, ``C text``) is that letter,
   whatever letters are in the text. With the text of *another* option it is not an answer.
5. **Asides** count only if nothing else is an answer: an explanation under its heading, rows of a
   table, two or more options that are only restated.
6. **A correction** ("Wait, no.", "Actually,", "Sorry,", "不对，", "等等，") drops the answer before
   it. An answer that is taken back and not replaced is not an answer.
7. **A letter is named** if it

   - is in brackets: ``(C)``; emphasis, quotes and ``\boxed{}`` around a capital are brackets too;
   - follows ``answer``, ``option``, ``choice``, ``choose``, ``pick``, ``select`` or ``letter``
     (选, 选项, 答案), perhaps with "is", "would be", "the correct" or the like in between;
   - is alone between punctuation, line ends or words such as "is", "so", "therefore", "with" before
     it, and "because", "is correct", "fits", 正确 or the like after it.

   Not named are a word's first letter, a word with a hyphen or apostrophe (``C-shaped``, ``B's``),
   an abbreviation (``U.S.``), "A" or "a" before a word (an article), "I" before a word (a pronoun),
   and a letter in a name (``Vitamin C``). "A or B", "A, B", "A/B" and "A B" name both letters, and
   affirm or deny both.
8. **A named letter is denied** if its clause negates it ("not B", "cannot be B", "we can eliminate
   B", "the wrong answer is B", 不选B, 排除B) or its predicate does ("B is wrong", "B: false",
   B不对). It is only *discussed* in a question ("Could it be B?"), in a discarded thought ("At
   first I thought B"), and if something other than a verdict follows ("Option B: the car is red …")
   in a longer text. Neither is an answer, nor is a letter that is both affirmed and denied.
9. If exactly one letter is affirmed and an option has it, it is the answer. A letter that no option
   has is ignored only if it is named by nothing but its position among punctuation (the initial in
   "J. Smith is shown. The answer is C.").

Numbers (:mod:`~vrts.answers.numbers`): one value with sign and magnitude, in digits or words; two
values, a range, a bound ("<5") and forms that would lose a part of the value are not answers.
Denied numbers and corrections are treated like those of letters. Time spans are two
times. Texts: see :func:`normalise_text`.
"""

from vrts.answers.choices import extract_choice, option_texts
from vrts.answers.grading import (
    DEFAULT_TOLERANCE,
    answer_score,
    is_correct,
    normalise_text,
    parse_answer,
)
from vrts.answers.numbers import canonical_number, extract_number, numbers_match
from vrts.answers.tags import has_format, split_completion

__all__ = [
    "DEFAULT_TOLERANCE",
    "answer_score",
    "canonical_number",
    "extract_choice",
    "extract_number",
    "has_format",
    "is_correct",
    "normalise_text",
    "numbers_match",
    "option_texts",
    "parse_answer",
    "split_completion",
]
