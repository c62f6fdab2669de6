from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qwen_vl_utils.vision_process import smart_nframes

from vrts.data.sampling import UniformSampler
from vrts.types import VideoError


@given(st.integers(2, 400_000), st.integers(2, 256))
def test_indices_equal_those_of_qwen_vl_utils(total, asked):
    indices = UniformSampler().indices(total, asked, 25.0)
    assert all(0 <= a <= b < total for a, b in pairwise(indices))
    assert (indices[0], indices[-1]) == (0, total - 1)
    assert len(indices) % 2 == 0
    if round(asked / 2) * 2 <= total:
        count = smart_nframes({"nframes": asked}, total, 25.0)
        assert indices == torch.linspace(0, total - 1, count).round().long().tolist()
    else:
        assert len(indices) == total // 2 * 2


@pytest.mark.parametrize(
    ("total", "asked", "expected"),
    [
        (1, 32, [0, 0]),
        (2, 32, [0, 1]),
        (3, 32, [0, 2]),
        (5, 4, [0, 1, 3, 4]),
        (10, 1, [0, 9]),
        (10, 3, [0, 3, 6, 9]),
        (10, 5, [0, 3, 6, 9]),
    ],
)
def test_short_clips_are_clamped_to_their_even_length(total, asked, expected):
    assert UniformSampler().indices(total, asked, 25.0) == expected


def test_no_frame():
    with pytest.raises(VideoError, match="no frame"):
        UniformSampler().indices(0, 32, 25.0)
