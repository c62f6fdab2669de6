"""Requests of an engine and their completions, on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vrts.models.engines.engine import Request, Result
from vrts.models.engines.rows import NewRow
from vrts.models.engines.stop_texts import StopTexts
from vrts.types import Completion, SamplingParams


@dataclass(slots=True, eq=False)
class Row:
    """A completion that is decoded or waits for a place among the rows in flight."""

    group: CompletionGroup
    index: int  # among the group's G
    place: int | None = None  # None before and after decoding
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_searched: int = 0  # tokens that are known to hold no stop text
    completion: Completion | None = None  # once it has ended

    @property
    def sampling(self) -> SamplingParams:
        """How its tokens are drawn."""
        return self.group.request.sampling[self.index]

    def start(self, first_position: int) -> NewRow:
        """What the device needs of it."""
        request = self.group.request
        seed = request.seeds[self.index]
        return NewRow(self.sampling, seed, request.max_new_tokens, first_position)

    def finish(self, tokenizer: Any, finished: bool, cancelled: bool = False) -> None:
        """Make the completion of what was drawn: finished, cut off, or cancelled as not needed."""
        self.completion = Completion(
            text=self.group.request.prompt.opening
            + tokenizer.decode(self.ids, skip_special_tokens=True),
            num_tokens=len(self.ids),
            max_new_tokens=self.group.request.max_new_tokens,
            finished=finished,
            token_ids=torch.tensor(self.ids, dtype=torch.int64, device="cpu"),
            logprobs=(
                torch.tensor(self.logprobs, dtype=torch.float32, device="cpu")
                if len(self.logprobs) == len(self.ids)
                else None  # not known
            ),
            cancelled=cancelled,
        )


@dataclass(slots=True, eq=False)
class CompletionGroup:
    """A request with its completions."""

    request: Request
    rows: list[Row] = field(init=False)
    capacity: int | None = None
    """Capacity of the pool that has its prompt, once prefilled. Not the pool itself: groups and
    rows refer to each other, and would keep its memory until garbage is collected."""
    slot: int = -1  # in that pool
    logits: torch.Tensor | None = None
    """``[V]``, of each completion's first token, until all have begun."""

    def __post_init__(self) -> None:
        self.rows = [Row(self, i) for i in range(len(self.request.sampling))]

    @property
    def num_tokens(self) -> int:
        """P of its prompt."""
        return self.request.prompt.num_tokens

    @property
    def open_rows(self) -> list[Row]:
        """Rows that have not ended."""
        return [row for row in self.rows if row.completion is None]

    def settle(self, tokenizer: Any) -> list[Row] | None:
        """Cancel what is not needed any more, and return it; None while something is."""
        left = self.open_rows
        if left and not self._is_decided():
            return None
        for row in left:
            row.finish(tokenizer, finished=False, cancelled=True)
        return left

    def _is_decided(self) -> bool:
        """Whether the rows that have not ended are no longer needed."""
        should_stop = self.request.should_stop
        if should_stop is None:
            return False
        done = [row.completion for row in self.rows]
        texts = [None if c is None else c.text for c in done]
        means = [0.0 if c is None else c.mean_logprob for c in done]
        is_known = all(c is None or c.logprobs is not None for c in done)
        return should_stop(texts, means if is_known else [])

    def result(self) -> Result:
        """All its completions, which have ended."""
        completions = [row.completion for row in self.rows if row.completion is not None]
        assert len(completions) == len(self.rows)
        return Result(self.request, tuple(completions))


class StopSearch:
    """Cuts completions at their stop texts.

    Args:
        tokenizer: of their tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stops: dict[tuple[str, ...], StopTexts] = {}

    def cut(self, row: Row) -> bool:
        """Drop what is behind a stop text that the newest tokens complete; whether they do."""
        texts = row.sampling.stop
        if texts not in self._stops:
            self._stops[texts] = StopTexts(self._tokenizer, texts)
        stop = self._stops[texts].end(row.ids, row.num_searched)
        row.num_searched = len(row.ids)
        if stop is not None:
            del row.ids[stop:], row.logprobs[stop:]
        return stop is not None
