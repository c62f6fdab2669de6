"""Drawing from a distribution by a random number that is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

CHUNK = 512
"""Tokens whose probabilities are summed before the sums are."""
FEW = 8 * CHUNK
"""Tokens that are summed at once."""


def invert_cdf(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative distribution passes a number.

    In two levels, chunks of the vocabulary and the tokens of one chunk: a cumulative sum over 150
    thousand tokens in float64 would take longer than a small model's whole step, and a GPU
    computes it for a few rows on as few of its processors.

    Args:
        probs: ``[R, V]``, not necessarily normalised.
        uniforms: float64 ``[R]`` in [0, 1).

    Returns:
        int64 ``[R]``; never a token of probability 0.
    """
    V = probs.shape[1]
    if V <= FEW:
        whole = probs.double().cumsum(-1)
        return _first_beyond(whole, uniforms[:, None] * whole[:, -1:])[:, 0]
    if V % CHUNK:
        probs = F.pad(probs, (0, -V % CHUNK))
    chunks = probs.unflatten(1, (-1, CHUNK))  # [R, chunks, CHUNK]
    ends = chunks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms[:, None] * ends[:, -1:]
    chunk = _first_beyond(ends, target)
    start = torch.where(chunk > 0, ends.gather(1, (chunk - 1).clamp(min=0)), 0.0)
    inside = chunks.gather(1, chunk[..., None].expand(-1, -1, CHUNK))[:, 0].double().cumsum(-1)
    token = chunk * CHUNK + _first_beyond(inside, target - start)
    return token[:, 0].clamp(max=V - 1)


def _first_beyond(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index ``[R, 1]`` of the first sum beyond the target.

    Where rounding leaves none, the last one that adds anything; a valid index for NaN, too.
    """
    first = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(first, last).clamp(max=cumulative.shape[1] - 1)
