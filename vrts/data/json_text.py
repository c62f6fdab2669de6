"""A walk over a JSON text, item by item, that knows the line it is at."""

import json
from collections.abc import Iterator
from typing import Any

from vrts.types import InputError


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; for `json`'s ``object_pairs_hook``.

    Raises:
        InputError: a key that is there twice, of which JSON would silently take the last.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        raise InputError(f"field {twice!r} is there twice")
    return value


class JsonText:
    """Reads the items of one JSON text in turn, so that each has the line where it begins.

    Args:
        path: The file, for messages.
        text: Its content.
    """

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text
        self._position = 0
        self._counted = 0
        self._line = 1
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_keys)

    @property
    def source(self) -> str:
        """``file:line`` of what `peek` shows."""
        self.peek()
        return f"{self._path}:{self._line}"

    def peek(self) -> str:
        """Return the next symbol that is no whitespace, or nothing at the end."""
        while self._text[self._position : self._position + 1] in {" ", "\t", "\r", "\n"}:
            self._position += 1
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._text[self._position : self._position + 1]

    def take(self, symbols: str) -> str:
        """Pass over the next symbol, which must be one of these, and return it.

        Raises:
            InputError: it is another one.
        """
        symbol = self.peek()
        if not symbol or symbol not in symbols:
            expected = " or ".join(repr(symbol) for symbol in symbols)
            raise InputError(f"not valid JSON (expected {expected})")
        self._position += 1
        return symbol

    def value(self) -> Any:
        """Pass over the next value and return it.

        Raises:
            InputError: it is no JSON.
        """
        self.peek()
        try:
            value, self._position = self._decoder.raw_decode(self._text, self._position)
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not valid JSON ({error})") from error
        return value

    def key(self) -> str:
        """Pass over a key and its colon, and return the key.

        Raises:
            InputError: there is none.
        """
        key = self.value()
        self.take(":")
        return str(key)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield ``(file:line, value)`` for each item of the array or object that comes next.

        Raises:
            InputError: what comes next is none, or is damaged; `source` is where.
        """
        keyed = self.take("[{") == "{"
        end = "}" if keyed else "]"
        while self.peek() != end:
            source = self.source
            if keyed:
                self.key()
            yield source, self.value()
            if self.peek() != end:
                self.take("," + end)
        self.take(end)
