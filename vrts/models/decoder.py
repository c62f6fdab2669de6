"""The decoding loop of a rollout, in segments of steps that have the same shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vrts.models.decode_layout import DecodeLayout
from vrts.models.decoding import CHECK_EVERY, CompletionBuffer
from vrts.models.graphs import GraphSteps, Steps
from vrts.models.sampling import RowSampler
from vrts.models.stopping import HostChecks

GRAPH_SEGMENT = 256
"""Steps that one CUDA graph serves, a multiple of `CHECK_EVERY`. Each reads the completion keys of
the whole segment, on average half of it in vain: for 8 rows of a 7B model 60 MB of the 15 GB that a
step reads. Recording a graph launches every kernel once."""

Forward = Callable[[torch.Tensor, torch.Tensor, DecodeLayout], torch.Tensor]
"""From token ids ``[R]``, their positions ``[R]`` and the keys before them to float32 logits
``[R, V]`` of what follows, with tokens that must not be drawn at minus infinity."""


class Decoder:
    """Decodes the completions of a buffer, once their prompts are prefilled.

    Args:
        forward: of the model.
        cache: of the prefilled prompts.
        buffer: of N completions, empty yet.
        sampler: of the N rows.
        uniforms: float64 ``[N, max_new_tokens]``.
        positions: int64 ``[N]``, of each completion's first token.
        steps: how steps are run.
    """

    def __init__(
        self,
        forward: Forward,
        cache: DecodeLayout,
        buffer: CompletionBuffer,
        sampler: RowSampler,
        uniforms: torch.Tensor,
        positions: torch.Tensor,
        steps: Steps,
    ) -> None:
        self._forward = forward
        self._cache = cache
        self._buffer = buffer
        self._sampler = sampler
        self._uniforms = uniforms
        self._positions = positions
        self._steps = steps
        # Rows are dropped between segments, since shapes change then. Without graphs, whose
        # recording has to pay, segments are as short as the looks at what has ended allow.
        self._segment = GRAPH_SEGMENT if isinstance(steps, GraphSteps) else CHECK_EVERY

    def run(self, logits: torch.Tensor, checks: HostChecks) -> None:
        """Decode until all completions have ended.

        Args:
            logits: float32 ``[N, V]``, of each completion's first token.
            checks: what the host decides meanwhile.
        """
        try:
            self._run(logits, checks)
        finally:
            # Steps and decoder refer to each other: the cache would wait for a garbage collection.
            self._steps.end()

    def _run(self, logits: torch.Tensor, checks: HostChecks) -> None:
        max_new_tokens = self._uniforms.shape[1]
        self._tokens = self._draw(logits, self._cache.step)
        num_tokens = 1
        while num_tokens < max_new_tokens:
            if num_tokens % CHECK_EVERY == 0:
                checks.look(num_tokens)
            # elsewhere than on a CPU every question to the device waits for it
            is_cpu = self._tokens.device.type == "cpu"
            if (num_tokens % CHECK_EVERY == 0 or is_cpu) and bool(self._buffer.ended.all()):
                break
            if num_tokens == 1 or num_tokens % self._segment == 0:
                self._begin_segment(num_tokens, max_new_tokens)
            self._steps()
            num_tokens += 1
        checks.close(num_tokens)

    def _begin_segment(self, num_tokens: int, max_new_tokens: int) -> None:
        """Drop rows that have ended, if they are many, and prepare the shapes of what follows."""
        grid = self._buffer.rows.shape
        if num_tokens > 1 and (kept := self._buffer.shrink()) is not None:
            questions, samples = kept
            self._cache.keep(questions, samples)
            self._tokens = self._tokens.view(grid)[questions[:, None], samples].flatten()
        end = (num_tokens // self._segment + 1) * self._segment
        self._cache.begin_segment(min(end, max_new_tokens) - 1)
        self._steps.begin(self._advance)

    def _advance(self) -> None:
        """Forward one token of each row and draw the next; nothing here waits for the device."""
        cache = self._cache
        cache.begin_step()
        at = self._positions[self._buffer.rows.flatten()] + cache.step
        logits = self._forward(self._tokens, at, cache)
        cache.step.add_(1)
        self._tokens.copy_(self._draw(logits, cache.step))

    def _draw(self, logits: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Draw a token for each row of the grid and keep it.

        Args:
            logits: ``[R, V]``.
            step: int64 ``[1]``, tokens that each row has.
        """
        rows = self._buffer.rows.flatten()
        tokens, logprobs = self._sampler(logits, self._uniforms[rows, step], rows)
        self._buffer.add(step, tokens, logprobs)
        return tokens
