"""Inverse-transform sampling in two levels against one cumulative sum over the vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.models.engines.sampling import CHUNK, FEW, inverse_transform_sample


def plain(probs, uniforms):
    """One row at a time, one long sum."""
    out = []
    for row, u in zip(probs.double(), uniforms.tolist(), strict=True):
        cumulative = row.cumsum(-1)
        beyond = (cumulative > u * cumulative[-1]).nonzero()
        out.append(int(beyond[0]) if len(beyond) else int(row.nonzero()[-1]))
    return torch.tensor(out)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 7, FEW, FEW + 1, 10 * CHUNK, 9 * CHUNK + 33]),
    st.sampled_from([0.0, 0.5, 0.999]),
    st.integers(0, 2**31),
)
def test_the_token_is_that_of_one_long_sum(V, share_of_zeros, seed):
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(6, V, generator=generator)).softmax(-1)
    dropped = torch.rand(6, V, generator=generator) < share_of_zeros
    dropped[:, seed % V] = False
    probs = probs.masked_fill(dropped, 0.0)
    uniforms = torch.rand(6, dtype=torch.float64, generator=generator)
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-53
    got = inverse_transform_sample(probs, uniforms)
    assert (probs.gather(1, got[:, None]) > 0).all()
    # the order of summation differs: a number on an edge may fall on either side of it
    moved = [plain(probs, (uniforms + d).clamp(0, 1 - 2**-53)) for d in (-1e-12, 0.0, 1e-12)]
    assert all(any(t == m[n] for m in moved) for n, t in enumerate(got))


def test_frequencies_are_the_probabilities():
    probs = torch.zeros(1, 9 * CHUNK)
    probs[0, [3, CHUNK, 2 * CHUNK + 9]] = torch.tensor([0.2, 0.5, 0.3])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = inverse_transform_sample(probs.expand(1000, -1), uniforms)
    assert [int((tokens == t).sum()) for t in (3, CHUNK, 2 * CHUNK + 9)] == [200, 500, 300]


@pytest.mark.parametrize("V", [5, FEW + 1])
def test_a_broken_distribution_gives_a_valid_token(V):
    """The loss of it is not finite and skipped; an index out of range would end a CUDA process."""
    probs = torch.full((2, V), float("nan"))
    tokens = inverse_transform_sample(probs, torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert ((tokens >= 0) & (tokens < V)).all()
