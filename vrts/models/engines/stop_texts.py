"""Stop texts: what ends a completion, in addition to an end token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any


class StopTexts:
    """Finds the token that completes a stop text.

    Args:
        tokenizer: byte-level, as Qwen's: every token but the special ones is one byte or more.
        texts: that end a completion.
    """

    def __init__(self, tokenizer: Any, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        self._decode = tokenizer.decode
        self._special = frozenset(tokenizer.all_special_ids)
        # a stop text that ends in new tokens starts at most this many tokens before them
        self._reach = max((len(text.encode()) for text in self._texts), default=0)

    def end(self, ids: Sequence[int], seen: int) -> int | None:
        """Number of tokens up to and with the first one that completes a stop text, or None.

        The first `seen` tokens are known to hold none.
        """
        if not self._texts or len(ids) == seen:
            return None
        before = (i for i in reversed(ids[:seen]) if i not in self._special)
        tail = [*reversed(list(islice(before, self._reach)))]
        if not self._holds([*tail, *ids[seen:]]):
            return None
        return next(n for n in range(seen + 1, len(ids) + 1) if self._holds([*tail, *ids[seen:n]]))

    def _holds(self, ids: Sequence[int]) -> bool:
        text = self._decode(ids, skip_special_tokens=True)
        return any(stop in text for stop in self._texts)
