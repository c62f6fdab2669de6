from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from qwen_vl_utils.vision_process import smart_nframes
from transformers import Qwen3VLVideoProcessor, SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata

from vrts.data.video.frames import NestedPairSampler, UniformSampler
from vrts.types import FrameSizes, VideoError


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
        assert indices == [*range(total), *[total - 1] * (total % 2)]


@pytest.mark.parametrize(
    ("total", "asked", "expected"),
    [
        (1, 32, [0, 0]),
        (2, 32, [0, 1]),
        (3, 32, [0, 1, 2, 2]),
        (5, 32, [0, 1, 2, 3, 4, 4]),
        (5, 6, [0, 1, 2, 3, 4, 4]),
        (5, 4, [0, 1, 3, 4]),
        (10, 1, [0, 9]),
        (10, 3, [0, 3, 6, 9]),
        (10, 5, [0, 3, 6, 9]),
    ],
)
def test_short_clips_lose_no_frame(total, asked, expected):
    assert UniformSampler().indices(total, asked, 25.0) == expected


def test_no_frame():
    with pytest.raises(VideoError, match="no frame"):
        UniformSampler().indices(0, 32, 25.0)


def pairs_of(indices: list[int]) -> list[tuple[int, int]]:
    return list(zip(indices[::2], indices[1::2], strict=True))


@settings(deadline=None)
@given(st.integers(1, 100_000), st.integers(1, 40), st.integers(1, 4))
def test_pairs_of_a_level_are_among_those_of_denser_ones(total, first, doublings):
    levels = [2 * first * 2**i for i in range(doublings + 1)]
    sampler = NestedPairSampler(densest=levels[-1])
    shown = [sampler.indices(total, level, 25.0) for level in levels]
    for level, sparse, dense in zip(levels, shown, [*shown[1:], shown[-1]], strict=True):
        uniform = UniformSampler().indices(total, level, 25.0)
        assert len(sparse) == len(uniform)
        assert set(pairs_of(sparse)) <= set(pairs_of(dense))
        assert sparse == sorted(sparse)
        # evenly spaced over the video: a pair begins less than one stride from its even place
        stride = total / len(pairs_of(sparse))
        assert all(abs(a - j * stride) <= stride + 2 for j, (a, _) in enumerate(pairs_of(sparse)))
    assert shown[-1] == UniformSampler().indices(total, levels[-1], 25.0)


def test_pairs_of_the_usual_levels():
    sampler = NestedPairSampler(16)
    assert sampler.indices(16, 4, 25.0) == [0, 1, 8, 9]
    assert sampler.indices(16, 8, 25.0) == [0, 1, 4, 5, 8, 9, 12, 13]
    assert sampler.indices(16, 16, 25.0) == list(range(16))
    assert sampler.indices(6, 4, 25.0) == [0, 1, 2, 3]
    assert sampler.indices(16, 1, 25.0) == [0, 1]
    assert sampler.indices(64, 32, 25.0) == UniformSampler().indices(64, 32, 25.0)


def test_pairs_of_no_frame():
    with pytest.raises(VideoError, match="no frame"):
        NestedPairSampler().indices(0, 32, 25.0)


@given(st.integers(2, 400_000), st.integers(1, 200).map(lambda n: 2 * n))
def test_each_family_rounds_as_its_own_processor_does(total, num_frames):
    """Of videos with more frames than are asked for."""
    assume(num_frames <= total)
    metadata = VideoMetadata(total_num_frames=total, fps=30.0, duration=total / 30)
    qwen = UniformSampler().for_model(FrameSizes("clip", 32, 0, 1, 1.0))
    processor = Qwen3VLVideoProcessor()
    processor.fps = None  # the number of frames alone
    want = processor.sample_frames(metadata, num_frames=num_frames)
    assert qwen.indices(total, num_frames, 30.0) == want.tolist()
    smol = UniformSampler().for_model(FrameSizes("square", 64, 1, 1, 1.0))
    want = SmolVLMVideoProcessor().sample_frames(metadata, num_frames=num_frames, fps=10_000)
    if total / 30 - 2 <= num_frames:  # of longer ones it leaves out the ends
        assert smol.indices(total, num_frames, 30.0) == want.tolist()


@given(
    st.integers(1, 400_000),
    st.integers(1, 200).map(lambda n: 2 * n),
    st.sampled_from([0.1, 0.5, 1.0, 10.0, 24000 / 1001, 25.0, 29.97, 60.0]),
)
@example(30 * 34, 32, 30.0)  # as many seconds as frames, and one at each end
@example(30 * 34 + 1, 32, 30.0)
def test_ends_of_long_videos_are_left_out_where_smolvlm2s_processor_leaves_them_out(
    total, num_frames, fps
):
    """Its default of a frame a second at most, of videos that have more than are asked for."""
    duration_s = total / fps
    assume(duration_s >= num_frames)
    metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=duration_s)
    processor = SmolVLMVideoProcessor(
        video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 384}}
    )
    want = processor.sample_frames(metadata, num_frames=num_frames).tolist()
    sampler = UniformSampler().for_model(FrameSizes("square", 64, 1, 1, 1.0))
    found = sampler.indices(total, num_frames, fps)
    if total < num_frames:  # all of them, the last one twice where their number is odd
        assert sorted(set(found)) == want == list(range(total))
    else:
        assert found == want
    if duration_s - 2 > num_frames and fps >= 1:
        assert found[0] == int(fps)


def test_nested_pairs_are_of_the_familys_frames():
    sizes = FrameSizes("square", 64, 1, 1, 1.0)
    nested = NestedPairSampler(8).for_model(sizes)
    assert nested.densest == 8
    assert nested.indices(100, 8, 30.0) == UniformSampler().for_model(sizes).indices(100, 8, 30.0)


class EveryOther(UniformSampler):
    def __init__(self, start):  # without super().__init__(), as users write it
        self.start = start


class FirstPairs(NestedPairSampler):
    pass


def test_a_users_subclass_stays_what_it_is():
    sizes = FrameSizes("square", 64, 1, 1, 1.0)
    own = EveryOther(3).for_model(sizes)
    assert (type(own), own.start) == (EveryOther, 3)
    assert own.indices(100, 8, 30.0) == UniformSampler().for_model(sizes).indices(100, 8, 30.0)
    nested = FirstPairs(8)
    assert type(nested.for_model(sizes)) is FirstPairs
    assert nested.indices(100, 8, 30.0) == NestedPairSampler(8).indices(100, 8, 30.0)
