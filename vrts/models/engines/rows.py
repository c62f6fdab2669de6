"""The rows that are being decoded: what the device knows of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrts.models.engines.sampling import RowSampler, row_uniforms
from vrts.types import Sampling


@dataclass(frozen=True, slots=True)
class NewRow:
    """A completion that begins."""

    sampling: Sampling
    seed: int
    max_new_tokens: int
    first_position: int
    """Of its first token."""


class DecodeRows:
    """State of R rows, in buffers that stay where they are.

    A row that has ended may be decoded on, in vain: its tokens and its length stay.

    Args:
        num_rows: R.
        max_new_tokens: tokens that a row may have at most.
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
        """Of each row's first token."""
        self._ended = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._uniforms = torch.zeros(num_rows, max_new_tokens, dtype=torch.float64, device=device)
        self._recent_ids = torch.zeros(num_rows, look_every, dtype=torch.int64, device=device)
        """Tokens since the last `read`."""
        self._recent_logprobs = torch.zeros(
            num_rows, look_every, dtype=torch.float32, device=device
        )
        self._since = torch.zeros(1, dtype=torch.int64, device=device)
        """Steps since the last `read`; on the device, where a CUDA graph counts it on."""
        self._buffers = (
            self._tokens, self._lengths, self._limits, self._positions, self._ended,
            self._uniforms, self._recent_ids, self._recent_logprobs,
        )  # fmt: skip

    def enter(self, rows: Sequence[int], new: Sequence[NewRow], logits: torch.Tensor) -> None:
        """Begin completions, and draw their first tokens; `read` has to follow.

        Args:
            rows: where.
            new: as many.
            logits: float32 ``[rows, V]``, of their prompts.
        """
        device = self._tokens.device
        at = torch.tensor(list(rows), device="cpu").to(device)
        self.sampler.enter(at, [row.sampling for row in new])
        self._lengths[at] = 0
        self._ended[at] = False
        self._limits[at] = _to_device([row.max_new_tokens for row in new], device)
        self._positions[at] = _to_device([row.first_position for row in new], device)
        uniforms = torch.zeros(len(new), self._uniforms.shape[1], dtype=torch.float64, device="cpu")
        for own, row in zip(uniforms, new, strict=True):
            own[: row.max_new_tokens] = row_uniforms([row.seed], row.max_new_tokens)[0]
        self._uniforms[at] = uniforms.to(device)
        self._draw(logits, at)

    def next_inputs(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the next step forwards, of the first rows: tokens, positions, and keys held before.

        Returns:
            Three int64 ``[num_rows]``.
        """
        held = self._lengths[:num_rows] - 1
        return self._tokens[:num_rows], self._positions[:num_rows] + held, held

    def advance(self, logits: torch.Tensor) -> None:
        """Draw the next token of the first rows; nothing here waits for the device.

        Args:
            logits: float32 ``[num_rows, V]``.
        """
        self._draw(logits, self._all[: len(logits)])
        self._since.add_(1)

    def read(self, num_rows: int) -> tuple[list[int], list[bool], list[list[int]], torch.Tensor]:
        """What has happened to the first rows since the last time; waits for the device.

        Returns:
            Their lengths, whether they have ended, and their tokens (those since the last time come
            first, what stands behind them is of no meaning), with as many log-probs.
        """
        self._since.zero_()
        lengths = self._lengths[:num_rows].tolist()
        ids, logprobs = self._recent_ids[:num_rows], self._recent_logprobs[:num_rows]
        return lengths, self._ended[:num_rows].tolist(), ids.tolist(), logprobs.cpu()

    def end(self, rows: Sequence[int]) -> None:
        """End completions as they are."""
        self._ended[torch.tensor(list(rows), device="cpu").to(self._ended.device)] = True

    def move(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Copy rows over others; int64 indices, all different."""
        for buffer in self._buffers:
            buffer[to] = buffer[source]
        self.sampler.move(to, source)

    def _draw(self, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """Draw a token for each of some rows, and keep it where the row has not ended."""
        lengths, ended = self._lengths[rows], self._ended[rows]
        at = lengths.clamp(max=self._uniforms.shape[1] - 1)
        tokens, logprobs = self.sampler(logits, self._uniforms[rows, at], rows)
        tokens = torch.where(ended, self._tokens[rows], tokens)
        lengths = lengths + (~ended).long()
        is_end = (tokens[:, None] == self._end_ids).any(-1)
        self._tokens[rows] = tokens
        self._lengths[rows] = lengths
        self._recent_ids[rows, self._since] = tokens
        self._recent_logprobs[rows, self._since] = logprobs
        self._ended[rows] = ended | is_end | (lengths >= self._limits[rows])


def _to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(values), device="cpu").to(device)
