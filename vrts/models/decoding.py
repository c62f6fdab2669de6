"""Bookkeeping of decoding: the tokens so far, and which rows are still worth computing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CHECK_EVERY = 8
"""Decoding steps from one look at the finished rows to the next; a look waits for the device."""
WORTH_DROPPING = 0.75
"""Rows are dropped where what is left is at most this share: dropping copies keys and values."""


class CompletionBuffer:
    """Collects the tokens of N completions that are decoded in a grid of ``[B', G']`` rows.

    The grid begins as all ``[B, G]`` completions and shrinks as they end: questions without a
    completion that still grows leave it, and the others keep as many rows each as the one with the
    most of them needs.

    Args:
        num_questions: B.
        num_samples: G.
        max_new_tokens: tokens to make room for.
        end_ids: int64 ids of which each ends a completion; the first one pads.
    """

    def __init__(
        self, num_questions: int, num_samples: int, max_new_tokens: int, end_ids: torch.Tensor
    ) -> None:
        N, device = num_questions * num_samples, end_ids.device
        self.rows = torch.arange(N, device=device).view(num_questions, num_samples)
        """int64 ``[B', G']``, the completion that each row of the grid decodes."""
        self.completion_ids = end_ids[0].repeat(N, max_new_tokens)
        self.logprobs = torch.zeros(N, max_new_tokens, dtype=torch.float32, device=device)
        self.lengths = torch.zeros(N, dtype=torch.int64, device=device)
        """int64 ``[N]``, tokens of each completion so far."""
        self.finished = torch.zeros(N, dtype=torch.bool, device=device)
        self.abandoned = torch.zeros(N, dtype=torch.bool, device=device)
        """bool ``[N]``, completions that were given up before their end."""
        self._end_ids = end_ids

    @property
    def ended(self) -> torch.Tensor:
        """Bool ``[N]``, completions that do not grow any more."""
        return self.finished | self.abandoned

    def add(self, step: int, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Take the tokens of one step; those of ended completions are left out.

        Args:
            step: counted from 0.
            tokens: int64 ``[B' * G']``, one for each row of the grid.
            logprobs: float32, the same shape.
        """
        rows = self.rows.flatten()
        done = self.ended[rows]
        self.completion_ids[rows, step] = torch.where(done, self._end_ids[0], tokens)
        self.logprobs[rows, step] = torch.where(done, 0.0, logprobs)
        self.lengths[rows] += (~done).long()
        self.finished[rows] |= ~done & torch.isin(tokens, self._end_ids)

    def cut(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """End completions at a length that they have reached or gone beyond.

        Args:
            rows: which of the N completions, each once.
            lengths: tokens that are left of each.
        """
        at = torch.tensor(list(rows), device=self.rows.device)
        left = torch.tensor(list(lengths), device=self.rows.device)
        kept = torch.arange(self.completion_ids.shape[1], device=left.device) < left[:, None]
        self.completion_ids[at] = torch.where(kept, self.completion_ids[at], self._end_ids[0])
        self.logprobs[at] = torch.where(kept, self.logprobs[at], 0.0)
        self.lengths[at] = left
        self.finished[at] = True

    def abandon(self, rows: Sequence[int]) -> None:
        """Give completions up as they are.

        Args:
            rows: which of the N completions; none of them is finished.
        """
        self.abandoned[torch.tensor(list(rows), device=self.rows.device)] = True

    def shrink(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Drop rows from the grid, if enough of them have ended.

        Returns:
            Which questions stay, int64 ``[B'']``, and which of each one's samples, int64
            ``[B'', G'']``, both as indices into the grid as it was; None where it stays.
        """
        growing = ~self.ended[self.rows]
        counts = growing.sum(1)
        questions = counts.nonzero()[:, 0]
        num_samples = int(counts.max())
        if len(questions) * num_samples > WORTH_DROPPING * self.rows.numel():
            return None
        # growing samples first, in their order; ended ones fill up where a question has fewer
        order = growing.long().argsort(dim=1, descending=True, stable=True)
        samples = order[questions, :num_samples]
        self.rows = self.rows[questions[:, None], samples]
        return questions, samples

    def trimmed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, mask and log-probs ``[N, L]`` of all completions, L of the longest one."""
        L = int(self.lengths.max())
        mask = torch.arange(L, device=self.lengths.device) < self.lengths[:, None]
        return self.completion_ids[:, :L], mask, self.logprobs[:, :L]
