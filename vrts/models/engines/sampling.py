"""Sampling tokens: penalties, truncation, and random numbers that belong to a row."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from vrts.types import SamplingParams


def row_seed(*parts: object) -> int:
    """A seed from 0 to 2**63 - 1 that depends on `parts` alone, such as a question's id."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_globally(seed: int) -> None:
    """Seed what Python, numpy and torch draw on all devices: dropout, a user's own reward.

    Done before each batch with a seed of its own, a run that resumes from a checkpoint draws the
    same on every rank, without any generator's state in the checkpoint.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def row_uniforms(seed: int, num_tokens: int) -> torch.Tensor:
    """A row's random numbers, float64 ``[num_tokens]`` in [0, 1), whatever rows are next to it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_tokens, dtype=torch.float64, generator=generator, device="cpu")


class RowSampler:
    """Draws one token a row from logits ``[R, V]``, each row with its own `SamplingParams`."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.truncates = False
        """Whether any row that is drawn for may have top_p or top_k; set by the caller."""
        self.penalises = False  # whether any may have a penalty, likewise
        # Not the default dtype, which Lightning's bf16-true changes: the policy scores at exactly
        # the temperature that it sampled at.
        self._params = torch.zeros(num_rows, 5, dtype=torch.float32, device=device)
        """Temperature, top_p, top_k, presence and frequency penalty of each row."""
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        """``[R, V]``, how often each row holds each token; with rows once there are penalties."""

    def enter(self, rows: torch.Tensor, sampling: Sequence[SamplingParams]) -> None:
        """Begin new completions in some rows; int64 indices."""
        V = self._counts.shape[1]
        params = [
            # more than V is all of them, and may not fit
            [s.temperature, s.top_p, min(s.top_k, V), s.presence_penalty, s.frequency_penalty]
            for s in sampling
        ]
        self._params[rows] = torch.tensor(params, dtype=torch.float32, device="cpu").to(rows.device)
        if any(has_penalty(s) for s in sampling) and not len(self._counts):
            self._counts = self._counts.new_zeros(len(self._params), V)
        if len(self._counts):
            self._counts[rows] = 0

    def move(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Copy the state of rows over that of others; int64 indices, all different."""
        self._params[to] = self._params[source]
        if len(self._counts):
            self._counts[to] = self._counts[source]

    def __call__(
        self, logits: torch.Tensor, uniforms: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens by inverse-transform sampling.

        Penalties count what was drawn for a row before.

        Args:
            logits: ``[R', V]``, suppressed tokens at minus infinity.
            uniforms: float64 ``[R']`` in [0, 1).
            rows: int64 ``[R']``, which of the R rows these are, each once.

        Returns:
            int64 ``[R']`` tokens, and their float32 ``[R']`` log-probs at the row's temperature
            before penalties and truncation (at temperature 1 for greedy rows): how likely the
            model itself finds them, which is what `Policy.logprobs` gives too.
        """
        logits = logits.float()
        temperature, top_p, top_k, presence, frequency = self._params[rows].split(1, dim=1)
        is_greedy = temperature == 0  # [R', 1]
        temperature = temperature.masked_fill(is_greedy, 1.0)
        scaled = logits / temperature  # [R', V]
        logprobs = scaled.log_softmax(-1)
        if self.penalises:
            logits = penalise(logits, self._counts[rows], presence, frequency)
            scaled = logits / temperature
        # Not the exponentials of the log-probs, which round differently: a row without penalties
        # must draw the same next to one with them.
        probs = scaled.softmax(-1)
        if self.truncates:
            probs = truncate(probs, top_p, top_k)
        # Both for all rows, then chosen: which rows are greedy is known on the device alone.
        tokens = torch.where(
            is_greedy[:, 0], logits.argmax(-1), inverse_transform_sample(probs, uniforms)
        )
        if self.penalises:
            self._counts[rows, tokens] += 1
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def has_penalty(sampling: SamplingParams) -> bool:
    """Whether tokens are penalised."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty)


def has_truncation(sampling: SamplingParams) -> bool:
    """Whether unlikely tokens are left out."""
    return sampling.top_p < 1 or sampling.top_k > 0


def penalise(
    logits: torch.Tensor, counts: torch.Tensor, presence: torch.Tensor, frequency: torch.Tensor
) -> torch.Tensor:
    """Make tokens that a completion has already less likely, as vLLM and OpenAI's API do.

    Logits and counts of tokens are ``[R, V]``, the penalties ``[R, 1]``.
    """
    return logits - presence * (counts > 0) - frequency * counts


def truncate(probs: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Zero what top-k and then top-p leave out, without renormalising.

    The most likely token always stays.

    Args:
        probs: ``[R, V]``.
        top_p: ``[R, 1]``, 1 keeps all.
        top_k: int ``[R, 1]``, 0 keeps all.
    """
    ordered, order = probs.sort(-1, descending=True)  # [R, V]
    rank = torch.arange(probs.shape[-1], device=probs.device)
    keep = (top_k == 0) | (rank < top_k)
    kept = ordered * keep
    # A token stays while those before it do not reach top_p of what top-k left.
    before = kept.cumsum(-1) - kept
    keep &= (before < top_p * kept.sum(-1, keepdim=True)) | (top_p >= 1) | (rank == 0)
    return torch.zeros_like(probs).scatter(-1, order, ordered * keep)


CHUNK = 512
"""Tokens whose probabilities are summed before the sums are."""
FEW = 8 * CHUNK
"""Tokens that are summed at once."""


def inverse_transform_sample(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution passes a number; never one of probability 0.

    In two levels, chunks of the vocabulary and the tokens of one chunk: a cumulative sum over 150
    thousand tokens in float64 would take longer than a small model's entire step, and a GPU
    computes it for a few rows on as few of its processors.

    Args:
        probs: ``[R, V]``, not necessarily normalised.
        uniforms: float64 ``[R]`` in [0, 1).

    Returns:
        int64 ``[R]``.
    """
    V = probs.shape[1]
    if V <= FEW:
        sums = probs.double().cumsum(-1)
        return _first_beyond(sums, uniforms[:, None] * sums[:, -1:])[:, 0]
    if V % CHUNK:
        probs = F.pad(probs, (0, -V % CHUNK))
    chunks = probs.unflatten(1, (-1, CHUNK))  # [R, chunks, CHUNK]
    ends = chunks.sum(-1, dtype=torch.float64).cumsum(-1)  # [R, chunks]
    target = uniforms[:, None] * ends[:, -1:]  # [R, 1]
    chunk = _first_beyond(ends, target)
    start = torch.where(chunk > 0, ends.gather(1, (chunk - 1).clamp(min=0)), 0.0)
    inside = chunks.gather(1, chunk[..., None].expand(-1, -1, CHUNK))[:, 0]  # [R, CHUNK]
    token = chunk * CHUNK + _first_beyond(inside.double().cumsum(-1), target - start)
    return token[:, 0].clamp(max=V - 1)


def _first_beyond(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index ``[R, 1]`` of the first sum beyond the target; a valid index for NaN, too."""
    first = torch.searchsorted(cumulative, target, right=True)
    # where rounding leaves none: the last one that adds anything
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(first, last).clamp(max=cumulative.shape[1] - 1)
