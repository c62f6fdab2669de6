"""Untrusted text, made safe to print."""

import re

ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters other than tab and line feed
    "\u200e\u200f\u2028-\u202e\u2066-\u2069"  # writing direction, line separators
    "\ud800-\udfff]"  # lone surrogates, as in file names that cannot be decoded
)
"""Characters that a terminal acts on or cannot encode."""
MOST_CHARACTERS = 1000  # per line: names and paths are shorter


def printable(text: str, most_characters: int | None = MOST_CHARACTERS) -> str:
    r"""Escape characters that move the cursor or clear the screen (``\x1b``); shorten long lines.

    Args:
        text: A question, a completion, an id, a path.
        most_characters: Per line, see `shorten`; None for no limit.
    """
    escaped = ACTIVE.sub(lambda found: ascii(found[0])[1:-1], text)
    if most_characters is None:
        return escaped
    return "\n".join(shorten(line, most_characters) for line in escaped.split("\n"))


def shorten(text: str, most_characters: int) -> str:
    """Leave out the middle of a long text: the answer, or the remedy, is at its end."""
    if len(text) <= most_characters:
        return text
    tail = most_characters // 3
    note = f" … [{len(text) - most_characters:,} characters left out] … "
    return text[: most_characters - tail] + note + text[len(text) - tail :]


def one_line(text: str) -> str:
    """Put a text on one line, with a space for what cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
