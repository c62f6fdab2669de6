r"""Reading the answers of completions and grading them: the only place that does.

Reward, vote and score use these functions and no others, so an answer cannot be right for one and
wrong for another. Where a text does not give one answer, it gives none. The rules, in English and
Chinese alike; the first that decides ends the search:

1. **Where** (:mod:`~vrts.answers.tags`). Only the answer of a completion is read: the last
   ``<answer>`` with anything in it behind the reasoning, in any case, closed or not. Reasoning that
   was never closed has no answer. Full-width letters and punctuation count as ASCII; of JSON the
   field that names the answer is read; markup (``<b>``) does not count.

Choices (:mod:`~vrts.answers.choices`, :mod:`~vrts.answers.mentions`):

2. **A letter alone**, in either case, in any brackets, quotes, emphasis or ``\boxed{}``, with or
   without punctuation: ``C``, ``(c)``, ``**C**``, ``C.``, also behind "The answer is". A letter
   wins over an option whose *text* is that letter.
3. **An option's text alone**, also behind "The answer is". Compared exactly, then without case and
   closing punctuation, then without a leading article, then without thousands separators. The
   whole text must be equal: "Brown car" is B only if B is "brown car". A text that several options
   have is no answer. A text that opens the answer counts too: "No, the man does not."
4. **A letter with its option's text** (``C. text``, ``(C) text``, ``C text``) is that letter,
   whatever letters are in the text. With the text of *another* option it is no answer.
5. **Asides** count only where nothing else is an answer: an explanation under its heading, rows
   of a table, two options or more that are only restated.
6. **A correction** ("Wait, no.", "Actually,", "Sorry,", "不对，", "等等，") drops the answer before
   it. An answer that is taken back with none in its place is no answer.
7. **A letter is named** where it

   - is in brackets: ``(C)``; emphasis, quotes and ``\boxed{}`` around a capital are brackets too;
   - follows ``answer``, ``option``, ``choice``, ``choose``, ``pick``, ``select`` or ``letter``
     (选, 选项, 答案), perhaps with "is", "would be", "the correct" or the like between them;
   - stands by itself between punctuation, line ends or words such as "is", "so", "therefore",
     "with" before it, and "because", "is correct", "fits", 正确 or the like behind it.

   No letter is named by a word's first letter, by a word with a hyphen or apostrophe (``C-shaped``,
   ``B's``), by an abbreviation (``U.S.``), by "A" or "a" before a word (an article), by "I" before
   a word (a pronoun), or by a letter in a name (``Vitamin C``).
   "A or B", "A, B", "A/B" and "A B" name both. So do they deny or affirm both.
8. **A named letter is denied** where its clause negates it ("not B", "cannot be B", "we can
   eliminate B", "the wrong answer is B", 不选B, 排除B) or its predicate does ("B is wrong",
   "B: false", B不对). It is only *discussed* in a question ("Could it be B?"), in a thought that
   was left ("At first I thought B"), and where something other than a verdict is said of it
   ("Option B: the car is red …") in a text that says more than that.
   Neither is an answer. A letter that is affirmed and denied is none either.
9. If just one letter is affirmed and an option has it, it is the answer. A letter that no option
   has is overlooked only where nothing but its place among punctuation names it (the initial in
   "J. Smith is shown. The answer is C.").

Numbers (:mod:`~vrts.answers.numbers`): one value with its sign and its magnitude, in digits or
words; two values, a range, a bound ("<5") and what would lose a part of the value are no answer.
A negated number counts as little as a negated letter, and a correction drops the one before it.
Time spans (:mod:`~vrts.answers.spans`): two times. Texts: as :func:`normalise_text` leaves them.
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
