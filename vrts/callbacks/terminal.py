"""Text from outside on the terminal."""

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters beside tab and line break: terminals act on them."""


def printable(text: str) -> str:
    """Replace control characters, which can move the cursor, clear the screen or set its title.

    Args:
        text: of a question, an option, a completion or an id.
    """
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
