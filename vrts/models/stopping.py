"""What ends completions besides an end token: stop texts, and that they are not needed any more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from vrts.models.decoding import CompletionBuffer
from vrts.models.policy import StopEarly
from vrts.models.sampling import mean_logprob
from vrts.types import Sampling


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
        # with as many tokens before the new ones, no text is missed that reaches back beyond them
        self._reach = max((len(text.encode()) for text in self._texts), default=0)

    def end(self, ids: Sequence[int], seen: int) -> int | None:
        """Tokens up to and with the first one that completes a stop text, or None.

        Args:
            ids: of one completion.
            seen: tokens that hold no stop text, as an earlier call found.
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


class HostChecks:
    """What the host decides about the completions of a buffer, now and then while they grow.

    Looking seldom changes no completion: one that has run past its stop text is cut back to it.

    Args:
        buffer: of N completions, question-major.
        sampling: G of them.
        tokenizer: decodes.
        stop_early: is told of completions as they end; None where all are wanted.
    """

    def __init__(
        self,
        buffer: CompletionBuffer,
        sampling: Sequence[Sampling],
        tokenizer: Any,
        stop_early: StopEarly | None = None,
    ) -> None:
        self._buffer = buffer
        self._G = len(sampling)
        self._stops = [StopTexts(tokenizer, s.stop) for s in sampling]
        self._decode = tokenizer.decode
        self._stop_early = stop_early
        self._has_work = stop_early is not None or any(s.stop for s in sampling)
        N = len(buffer.lengths)
        self._ids: list[list[int]] = [[] for _ in range(N)]
        self._texts: list[str | None] = [None] * N
        self._mean_logprobs = [0.0] * N
        self._open = list(range(N))
        self._seen = 0

    def look(self, num_tokens: int) -> None:
        """End completions at their stop texts, and give up those that nobody needs.

        Args:
            num_tokens: that the longest completion has.
        """
        if not self._has_work:
            return
        ended = self._end(num_tokens)
        if self._stop_early is not None:
            self._give_up(ended)

    def close(self, num_tokens: int) -> None:
        """Look for the last time: nothing is decoded any more, so nothing need be given up."""
        if self._has_work:
            self._end(num_tokens)

    def _end(self, num_tokens: int) -> list[int]:
        """Cut completions at their stop texts; the rows that have ended since the last look."""
        buffer = self._buffer
        new = buffer.completion_ids[:, self._seen : num_tokens].tolist()
        lengths, finished = buffer.lengths.tolist(), buffer.finished.tolist()
        ended: list[int] = []
        growing: list[int] = []
        cuts: dict[int, int] = {}
        for row in self._open:
            ids = self._ids[row]
            ids += new[row][: lengths[row] - self._seen]
            end = self._stops[row % self._G].end(ids, self._seen)
            if end is not None:
                del ids[end:]
                cuts[row] = end
            (ended if end is not None or finished[row] else growing).append(row)
        if cuts:
            buffer.cut(list(cuts), list(cuts.values()))
        self._open = growing
        self._seen = num_tokens
        return ended

    def _give_up(self, ended: Sequence[int]) -> None:
        """Ask about each question that has new texts and unfinished completions."""
        assert self._stop_early is not None
        for row in ended:
            ids = self._ids[row]
            self._texts[row] = self._decode(ids, skip_special_tokens=True)
            self._mean_logprobs[row] = mean_logprob(self._buffer.logprobs[row, : len(ids)].tolist())
        unfinished = {row // self._G for row in self._open}
        for question in sorted({row // self._G for row in ended} & unfinished):
            own = slice(question * self._G, (question + 1) * self._G)
            if self._stop_early(question, self._texts[own], self._mean_logprobs[own]):
                rows = [row for row in self._open if row // self._G == question]
                self._buffer.abandon(rows)
                self._open = [row for row in self._open if row not in rows]
