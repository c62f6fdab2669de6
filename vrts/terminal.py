"""Text from outside, made fit to be shown on a terminal."""

import re

ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters beside tab and line break
    "\u200e\u200f\u2028-\u202e\u2066-\u2069"  # direction of writing, line separators
    "\ud800-\udfff]"  # halves of characters, as undecodable file names have them
)
"""Characters that a terminal acts on, or that it cannot be sent."""
MOST_CHARACTERS = 1000
"""Of a line: names and paths are shorter."""


def printable(text: str, most_characters: int | None = MOST_CHARACTERS) -> str:
    r"""Escape what could move the cursor, clear the screen or set its title; shorten long lines.

    An escape character becomes the four characters ``\x1b``.

    Args:
        text: of a question, an option, a completion, an id or a path.
        most_characters: of a line; the middle of a longer one is left out. None for any.
    """
    escaped = ACTIVE.sub(lambda found: ascii(found[0])[1:-1], text)
    if most_characters is None:
        return escaped
    return "\n".join(shorten(line, most_characters) for line in escaped.split("\n"))


def shorten(text: str, most_characters: int) -> str:
    """Leave the middle out of a long text: its end has the answer, or the remedy.

    Args:
        text: of a completion or a message.
        most_characters: that are kept.
    """
    if len(text) <= most_characters:
        return text
    tail = most_characters // 3
    note = f" … [{len(text) - most_characters:,} characters left out] … "
    return text[: most_characters - tail] + note + text[len(text) - tail :]
