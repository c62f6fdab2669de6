"""An engine that completes by a script, token by token, with as many rows in flight as it has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vrts.models.engines.engine import Engine, Request, Result
from vrts.models.policy import Policy, Prompt
from vrts.types import Completion, InputError, Sample


@dataclass(frozen=True, slots=True)
class ScriptedPrompt(Prompt):
    num_frames: int

    @property
    def num_tokens(self) -> int:
        return self.num_frames


@dataclass(slots=True, eq=False)
class Rows:
    """A request whose completions grow."""

    request: Request
    lengths: list[int]
    num_tokens: int = 0
    is_over: bool = False
    texts: list[str | None] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [None] * len(self.lengths)

    @property
    def num_open(self) -> int:
        return self.texts.count(None)


class ScriptedEngine(Engine):
    """Decodes a token of each row in a step, and begins requests as rows end.

    A completion's text, likelihood and length depend on its question, its clip's number of frames,
    its place and its seed alone.

    Args:
        text: of a completion, from question, number of frames and place.
        num_rows: rows in flight at most; a request has as many as it has completions.
        length: tokens of a completion, from its place, the seeds of its request and its own; all
            completions have one where it is not given.
        error: why a request fails, from question and number of frames.
        too_large: number of frames from which on a request does not fit even alone.
    """

    def __init__(
        self,
        text: Callable[[str, int, int], str],
        num_rows: int,
        length: Callable[[int, Sequence[int]], int] = lambda m, seeds: 1,
        error: Callable[[str, int], str | None] = lambda id, num_frames: None,
        too_large: int = 10**6,
    ) -> None:
        self.text, self.num_rows, self.length = text, num_rows, length
        self.error, self.too_large = error, too_large
        self.encoded: list[tuple[str, int, int | None]] = []
        """Question, frames and frames of the known prompt, in the order of encoding."""
        self.asked: list[tuple[str, int]] = []
        """Question and frames, in the order of requests."""
        self.in_flight: list[int] = []
        """Rows at the beginning of each step that had some."""
        self.num_syncs = self.num_releases = 0
        self._queue: list[Rows] = []
        self._running: list[Rows] = []

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        pass

    def sync(self, policy: Policy) -> None:
        assert self.num_pending == 0
        self.num_syncs += 1

    def release(self) -> None:
        assert self.num_pending == 0
        self.num_releases += 1

    def cancel(self) -> None:
        self._queue, self._running = [], []

    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        prompts: list[Prompt] = []
        for sample in samples:
            assert sample.clip is not None
            assert known is None or known.question.video == sample.question.video
            before = known.num_frames if isinstance(known, ScriptedPrompt) else None
            self.encoded.append((sample.question.id, sample.clip.num_frames, before))
            prompts.append(ScriptedPrompt(sample.question, sample.clip.num_frames))
        return prompts

    def has_room(self) -> bool:
        return sum(rows.num_open for rows in (*self._queue, *self._running)) < self.num_rows

    def add(self, request: Request) -> None:
        assert isinstance(request.prompt, ScriptedPrompt)
        if request.prompt.num_frames >= self.too_large:
            raise InputError(f"{request.prompt.num_frames} frames do not fit even alone")
        assert len(set(request.seeds)) == len(request.seeds) == len(request.sampling)
        self.asked.append((request.prompt.question.id, request.prompt.num_frames))
        lengths = [self.length(m, request.seeds) for m in range(len(request.seeds))]
        self._queue.append(Rows(request, lengths))

    @property
    def num_pending(self) -> int:
        return len(self._queue) + len(self._running)

    def step(self) -> list[Result]:
        while self._queue:
            used = sum(rows.num_open for rows in self._running)
            if self._running and used + self._queue[0].num_open > self.num_rows:
                break
            self._running.append(self._queue.pop(0))
        if self._running:
            self.in_flight.append(sum(rows.num_open for rows in self._running))
        ended = [rows for rows in self._running if self._grow(rows)]
        self._running = [rows for rows in self._running if rows not in ended]
        return [self._result(rows) for rows in reversed(ended)]  # out of order

    def _grow(self, rows: Rows) -> bool:
        """Sample a token of each completion; whether none is left."""
        rows.num_tokens += 1
        prompt = rows.request.prompt
        assert isinstance(prompt, ScriptedPrompt)
        new = False
        for m, length in enumerate(rows.lengths):
            if rows.texts[m] is None and length <= rows.num_tokens:
                rows.texts[m] = self.text(prompt.question.id, prompt.num_frames, m)
                new = True
        stop = rows.request.should_stop
        if new and rows.num_open and stop is not None:
            means = [self._mean_logprob(rows, m) for m in range(len(rows.texts))]
            rows.is_over = stop(list(rows.texts), means)
        return rows.is_over or not rows.num_open

    @staticmethod
    def _mean_logprob(rows: Rows, m: int) -> float:
        """No two completions of a request are equally likely."""
        return round(-(rows.request.seeds[m] % 997) / 997, 4)

    def _result(self, rows: Rows) -> Result:
        request, prompt = rows.request, rows.request.prompt
        assert isinstance(prompt, ScriptedPrompt)
        error = self.error(prompt.question.id, prompt.num_frames)
        if error is not None:
            return Result(request, (), error)
        lengths = [min(length, rows.num_tokens) for length in rows.lengths]
        return Result(
            request,
            tuple(
                Completion(
                    "half a sen" if text is None else text,
                    lengths[m],
                    request.max_new_tokens,
                    finished=text is not None,
                    logprobs=torch.full((lengths[m],), self._mean_logprob(rows, m)).double(),
                    cancelled=text is None,
                )
                for m, text in enumerate(rows.texts)
            ),
        )
