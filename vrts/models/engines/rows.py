"""The rows that are being decoded: their state on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrts.models.engines.sampling import RowSampler, row_uniforms
from vrts.types import SamplingParams


@dataclass(frozen=True, slots=True)
class NewRow:
    """A completion that begins."""

    sampling: SamplingParams
    seed: int
    max_new_tokens: int
    first_position: int  # of its first token


class DecodeRows:
    """State of R rows, in buffers that never move, as CUDA graphs need them.

    A row that has ended may still be decoded, in vain: its tokens and its length stay.

    Args:
        num_rows: R.
        max_new_tokens: of a row, at most.
        vocab_size: V.
        end_ids: int64, each of which ends a completion.
        look_every: steps from one `read` to the next, at most.
        device: of the buffers.
    """

    def __init__(
        self,
        num_rows: int,
        max_new_tokens: int,
        vocab_size: int,
        end_ids: torch.Tensor,
        look_every: int,
        device: torch.device,
    ) -> None:
        self.sampler = RowSampler(num_rows, vocab_size, device)
        self._end_ids = end_ids.to(device)
        self._all = torch.arange(num_rows, device=device)
        self._tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """The newest token of each row."""
        self._lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._limits = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """Position of each row's first token."""
        self._ended = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._uniforms = torch.zeros(num_rows, max_new_tokens, dtype=torch.float64, device=device)
        self._recent_ids = torch.zeros(num_rows, look_every, dtype=torch.int64, device=device)
        """Tokens since the last `read`."""
        self._recent_logprobs = torch.zeros(
            num_rows, look_every, dtype=torch.float32, device=device
        )
        self._since = torch.zeros(1, dtype=torch.int64, device=device)
        """Steps since the last `read`; on the device, since a CUDA graph increments it."""
        self._buffers = (
            self._tokens, self._lengths, self._limits, self._positions, self._ended,
            self._uniforms, self._recent_ids, self._recent_logprobs,
        )  # fmt: skip

    def enter(self, rows: Sequence[int], new: Sequence[NewRow], logits: torch.Tensor) -> None:
        """Begin completions in some rows, and draw their first tokens; `read` has to follow.

        `logits` are those of their prompts, float32 ``[rows, V]``.
        """
        at = self._index(rows)
        self.sampler.enter(at, [row.sampling for row in new])
        self._lengths[at] = 0
        self._ended[at] = False
        self._limits[at] = self._index([row.max_new_tokens for row in new])
        self._positions[at] = self._index([row.first_position for row in new])
        uniforms = torch.zeros(len(new), self._uniforms.shape[1], dtype=torch.float64, device="cpu")
        for own, row in zip(uniforms, new, strict=True):
            own[: row.max_new_tokens] = row_uniforms(row.seed, row.max_new_tokens)
        self._uniforms[at] = uniforms.to(at.device)
        self._draw(logits, at)

    def next_inputs(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of the first rows' next step: tokens, positions, and own tokens in the KV cache.

        Each is int64 ``[num_rows]``.
        """
        held = self._lengths[:num_rows] - 1  # the newest token has no keys yet
        return self._tokens[:num_rows], self._positions[:num_rows] + held, held

    def advance(self, logits: torch.Tensor) -> None:
        """Draw the first rows' next tokens from float32 ``[num_rows, V]``; never waits."""
        self._draw(logits, self._all[: len(logits)])
        self._since.add_(1)

    def read(self, num_rows: int) -> tuple[list[int], list[bool], list[list[int]], torch.Tensor]:
        """What the first rows drew since the last time; waits for the device.

        Returns:
            Their lengths, whether they have ended, and their tokens (those since the last time come
            first, what follows them is meaningless), with as many log-probs.
        """
        self._since.zero_()
        lengths = self._lengths[:num_rows].tolist()
        ids, logprobs = self._recent_ids[:num_rows], self._recent_logprobs[:num_rows]
        return lengths, self._ended[:num_rows].tolist(), ids.tolist(), logprobs.cpu()

    def end(self, rows: Sequence[int]) -> None:
        """End completions as they are."""
        self._ended[self._index(rows)] = True

    def move(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Copy rows over others; int64 indices, all different."""
        for buffer in self._buffers:
            buffer[to] = buffer[source]
        self.sampler.move(to, source)

    def _draw(self, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """Draw a token for each of some rows, and keep it where the row has not ended.

        Masked instead of selected by value: shapes must not depend on what is drawn.
        """
        lengths, ended = self._lengths[rows], self._ended[rows]
        at = lengths.clamp(max=self._uniforms.shape[1] - 1)  # rows at their limit have ended
        tokens, logprobs = self.sampler(logits, self._uniforms[rows, at], rows)
        tokens = torch.where(ended, self._tokens[rows], tokens)
        lengths = lengths + (~ended).long()
        is_end = (tokens[:, None] == self._end_ids).any(-1)  # [rows, end ids] -> [rows]
        self._tokens[rows] = tokens
        self._lengths[rows] = lengths
        self._recent_ids[rows, self._since] = tokens
        self._recent_logprobs[rows, self._since] = logprobs
        self._ended[rows] = ended | is_end | (lengths >= self._limits[rows])

    def _index(self, values: Sequence[int]) -> torch.Tensor:
        """Integers on the device, whatever torch's default device is."""
        return torch.tensor(list(values), device="cpu").to(self._tokens.device)
