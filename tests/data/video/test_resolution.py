import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from qwen_vl_utils.vision_process import (
    FRAME_FACTOR,
    MODEL_SEQ_LEN,
    VIDEO_MAX_TOKEN_NUM,
    VIDEO_MIN_TOKEN_NUM,
    smart_resize,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as clip_size

from vrts.data.video.resolution import QWEN2_5_VL, Resolution
from vrts.types import FrameSizes, InputError, VideoError

TOKEN = 28 * 28


def expected(height, width, num_frames, **ele):
    """The sizes of `fetch_video`, qwen_vl_utils 0.0.14, with its own constants and rule."""
    min_pixels = ele.get("min_pixels", VIDEO_MIN_TOKEN_NUM * TOKEN)
    total_pixels = ele.get("total_pixels", MODEL_SEQ_LEN * TOKEN * 0.9)
    limit = max(
        min(VIDEO_MAX_TOKEN_NUM * TOKEN, total_pixels / num_frames * FRAME_FACTOR),
        int(min_pixels * 1.05),
    )
    max_pixels = min(ele.get("max_pixels", limit), limit)
    return smart_resize(height, width, 28, min_pixels=min_pixels, max_pixels=max_pixels)


@given(
    st.integers(16, 3000),
    st.integers(16, 3000),
    st.integers(1, 400).map(lambda n: 2 * n),
    st.sampled_from(
        [{}, {"max_pixels": 256 * TOKEN}, {"min_pixels": 4 * TOKEN, "max_pixels": 112 * TOKEN},
         {"total_pixels": 4000 * TOKEN}, {"min_pixels": 600 * TOKEN}]
    ),
)  # fmt: skip
def test_sizes_equal_those_of_qwen_vl_utils(height, width, num_frames, budget):
    size = expected(height, width, num_frames, **budget)
    assume(min(size) > 0)
    assert Resolution(**budget).size(height, width, num_frames) == size


QWEN3_VL = FrameSizes("clip", 32, 0, 768 * 1024, 24576 * 1024)


@given(
    st.integers(16, 3000),
    st.integers(16, 3000),
    st.integers(1, 200).map(lambda n: 2 * n),
    st.sampled_from([None, 65536, 262144]),
)
def test_sizes_of_clips_equal_those_of_qwen3_vl(height, width, num_frames, max_pixels):
    """T x H x W share one budget; `max_pixels` lowers that of each frame."""
    assume(max(height, width) <= 190 * min(height, width))
    token = 32 * 32
    limit = max(min(768 * token, 24576 * token // num_frames), int(4 * token * 1.05))
    want = clip_size(
        num_frames, height, width, factor=32, min_pixels=4 * token,
        max_pixels=min(limit, max_pixels or limit) * num_frames,
    )  # fmt: skip
    resolution = Resolution(max_pixels=max_pixels).for_model(QWEN3_VL)
    # transformers enlarges a frame below one token first, and rounds it once more
    assume(min(height, width) >= 32)
    assert resolution.size(height, width, num_frames) == want


SQUARES = FrameSizes("square", 42, 384 * 384, 384 * 384, math.inf)
"""Of SmolVLM2-2.2B: 9 tokens and 6 pixels."""


@pytest.mark.parametrize(
    ("asked", "side"),
    [
        ({}, 384),
        ({"max_pixels": 448 * 448, "short_side": 64}, 384),
        ({"min_pixels": 448 * 448}, 384),
        ({"max_pixels": 300 * 300}, 294),
        ({"max_pixels": 42 * 42}, 42),
    ],
)
def test_squares(asked, side):
    resolution = Resolution(**asked).for_model(SQUARES)
    assert resolution.size(720, 1280, 32) == resolution.size(90, 30, 2) == (side, side)
    assert resolution.fewest_tokens(32) == 32 * (side // 42) ** 2


def test_squares_for_a_model_that_takes_others():
    resolution = Resolution(rule="square", max_pixels=100 * 100).for_model(QWEN2_5_VL)
    assert resolution.size(720, 1280, 32) == (84, 84)


def test_other_frames_for_a_model_of_squares():
    with pytest.raises(InputError, match=r"rule is clip, but the model takes squares alone"):
        Resolution(rule="clip").for_model(SQUARES)


@pytest.mark.parametrize(
    ("resolution", "tokens"),
    [
        (Resolution(), 11_520),
        (Resolution(max_pixels=256 * TOKEN), 4_032),
        (Resolution(min_pixels=4 * TOKEN, short_side=224), 1_792),
    ],
)
def test_video_tokens_of_a_720p_clip_with_32_frames(resolution, tokens):
    height, width = resolution.size(720, 1280, 32)
    assert 16 * height * width // TOKEN == tokens


def test_short_side_never_enlarges_and_serves_both_orientations():
    resolution = Resolution(min_pixels=4 * TOKEN, short_side=224)
    assert resolution.size(112, 140, 32) == (112, 140)
    assert resolution.size(1280, 720, 32) == (392, 224)


def test_narrow_frames():
    with pytest.raises(VideoError, match="5628x28 are too narrow"):
        Resolution().size(28, 5628, 32)
    assert Resolution(min_pixels=784, max_pixels=64 * TOKEN).size(10, 1900, 2)[0] == 28


def test_an_empty_budget_names_the_keys():
    with pytest.raises(InputError, match=r"max_pixels \(784\) is below resolution.min_pixels"):
        Resolution(min_pixels=785, max_pixels=784)
    with pytest.raises(InputError, match=r"max_pixels must be 784 \(28x28\) or more"):
        Resolution(max_pixels=783).for_model(QWEN2_5_VL)


def test_a_small_budget_lowers_the_minimum_of_the_model():
    assert Resolution(max_pixels=784).size(720, 1280, 32) == (28, 28)
