"""Drawing tokens: distributions, truncation, and random numbers that belong to a row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from vrts.models.drawing import invert_cdf
from vrts.types import Sampling


def row_seed(*parts: object) -> int:
    """A seed that depends on nothing but `parts`, for instance (seed, question id, step, sample).

    Returns:
        A non-negative integer below 2**63.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def row_uniforms(seeds: Sequence[int], num_tokens: int) -> torch.Tensor:
    """Random numbers for each row from its own seed, whatever rows stand beside it.

    Returns:
        float64 ``[N, num_tokens]`` in [0, 1).
    """
    generator = torch.Generator()
    rows = [
        torch.rand(
            num_tokens,
            dtype=torch.float64,
            generator=generator.manual_seed(seed),
            device=generator.device,
        )
        for seed in seeds
    ]
    return torch.stack(rows)


def mean_logprob(logprobs: Sequence[float]) -> float:
    """Mean log-prob of a completion's tokens, to 4 digits, as it is recorded.

    Votes count with this value and no finer one, so that they come out the same when a record is
    replayed. The sum is exact: it does not depend on padding.
    """
    return round(math.fsum(logprobs) / max(len(logprobs), 1), 4)


class RowSampler:
    """Draws one token a row from logits, each row with its own `Sampling`."""

    def __init__(self, sampling: Sequence[Sampling], vocab_size: int, device: torch.device) -> None:
        """Prepare the rows' parameters.

        Args:
            sampling: N of them, one for each row.
            vocab_size: V.
            device: where the logits are.
        """
        # Not the default dtype, which Lightning's bf16-true changes: the policy scores at exactly
        # the temperature that it sampled at.
        float32 = torch.float32

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=float32, device=device)[:, None]

        temperature = column([s.temperature for s in sampling])
        self._greedy = temperature[:, 0] == 0
        self._temperature = torch.where(temperature == 0, 1.0, temperature)
        self._top_p = column([s.top_p for s in sampling])
        top_k = [min(s.top_k, vocab_size) for s in sampling]  # more is all, and may not fit
        self._top_k = torch.tensor(top_k, device=device)[:, None]
        self._truncates = any(s.top_p < 1 or s.top_k > 0 for s in sampling)
        self._presence = column([s.presence_penalty for s in sampling])
        self._frequency = column([s.frequency_penalty for s in sampling])
        self._counts: torch.Tensor | None = None
        if any(s.presence_penalty or s.frequency_penalty for s in sampling):
            shape = (len(sampling), vocab_size)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=device)

    def __call__(
        self, logits: torch.Tensor, uniforms: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens by inverting the cumulative distribution.

        Penalties count what was drawn for a row before.

        Args:
            logits: ``[R, V]``, banned tokens at minus infinity.
            uniforms: float64 ``[R]`` in [0, 1).
            rows: int64 ``[R]``, which of the N rows these are, each once.

        Returns:
            int64 ``[R]`` tokens, and their float32 ``[R]`` log-probs at the row's temperature
            before penalties and truncation (at temperature 1 for greedy rows): how likely the
            model itself finds them, which is what `Policy.score` gives too.
        """
        logits, temperature = logits.float(), self._temperature[rows]
        logprobs = (logits / temperature).log_softmax(-1)
        probs = logprobs.exp()
        if self._counts is not None:
            logits = penalise(
                logits, self._counts[rows], self._presence[rows], self._frequency[rows]
            )
            probs = (logits / temperature).softmax(-1)
        if self._truncates:
            probs = truncate(probs, self._top_p[rows], self._top_k[rows])
        tokens = torch.where(self._greedy[rows], logits.argmax(-1), invert_cdf(probs, uniforms))
        if self._counts is not None:
            self._counts[rows, tokens] += 1
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def penalise(
    logits: torch.Tensor, counts: torch.Tensor, presence: torch.Tensor, frequency: torch.Tensor
) -> torch.Tensor:
    """Make tokens that a completion holds already less likely, as vLLM and OpenAI's API do.

    Args:
        logits: ``[R, V]``.
        counts: int ``[R, V]``, how often each completion holds each token.
        presence: ``[R, 1]``, subtracted where the count is not 0.
        frequency: ``[R, 1]``, subtracted as often as the count says.
    """
    return logits - presence * (counts > 0) - frequency * counts


def truncate(probs: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Zero what top-k and then top-p leave out; the most likely token always stays.

    Args:
        probs: ``[N, V]``.
        top_p: ``[N, 1]``, 1 keeps all.
        top_k: int ``[N, 1]``, 0 keeps all.

    Returns:
        ``[N, V]``, not renormalised.
    """
    ordered, order = probs.sort(-1, descending=True)
    rank = torch.arange(probs.shape[-1], device=probs.device)
    keep = (top_k == 0) | (rank < top_k)
    kept = ordered * keep
    before = kept.cumsum(-1) - kept
    keep &= (before < top_p * kept.sum(-1, keepdim=True)) | (top_p >= 1) | (rank == 0)
    return torch.zeros_like(probs).scatter(-1, order, ordered * keep)
