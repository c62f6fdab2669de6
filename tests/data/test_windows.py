"""Choosing frames by the times they are shown, against the plain computation."""

import numpy as np
import pytest

from vrts.data.sampling import FrameSampler, UniformSampler
from vrts.data.windows import WHOLE, Window, select
from vrts.types import Clip, VideoError

SAMPLER = UniformSampler()


@pytest.mark.parametrize("total", [1, 2, 3, 31, 1800, 107_999])
@pytest.mark.parametrize("fps", [1.0, 23.976, 30000 / 1001, 60.0])
def test_at_a_constant_rate_the_sampler_has_the_last_word(total, fps):
    times = np.round(7.3 + np.arange(total) / fps, 3)  # as coarse as Matroska's
    found = select(times, fps, 32, SAMPLER)
    assert found.indices == tuple(SAMPLER.indices(total, 32, fps))
    assert (found.fps, found.num_source_frames) == (fps, total)
    assert found.times_s == pytest.approx([i / fps for i in found.indices], abs=1.1e-3)


def nearest_in_window(times, start_s, end_s, count):
    """The plain computation: for each of evenly spaced moments the frame nearest to it."""
    inside = [i for i, time in enumerate(times) if start_s - 1e-3 <= time <= end_s + 1e-3]
    span = times[inside[-1]] - times[inside[0]]
    moments = [times[inside[0]] + span * j / (len(inside) - 1) for j in count(len(inside))]
    return [min(inside, key=lambda i: (abs(times[i] - m), i)) for m in moments], inside


@pytest.mark.parametrize("seed", range(30))
def test_at_a_variable_rate_frames_are_evenly_spaced_in_time(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([0.017, 0.033, 0.5, 2.0], rng.integers(20, 200)))
    times -= times[0]
    start_s = float(rng.uniform(0, times[-1] / 2))
    end_s = start_s + float(rng.uniform(times[-1] / 4, times[-1]))
    found = select(times + 11.5, 30.0, 16, SAMPLER, Window(start_s, end_s))
    expected, inside = nearest_in_window(
        times, start_s, end_s, lambda n: SAMPLER.indices(n, 16, 30.0)
    )
    apart = [abs(times[a] - times[b]) for a, b in zip(found.indices, expected, strict=True)]
    assert max(apart) < 1e-6  # the same frames but for ties
    assert found.num_source_frames == len(inside)
    assert all(start_s - 1e-3 <= time <= end_s + 1e-3 for time in found.times_s)
    assert list(found.indices) == sorted(found.indices)


def test_seconds_between_sampled_frames_are_those_of_the_window():
    times = np.arange(3000) / 25
    for start_s, end_s in [(0.0, None), (30.0, 50.0), (100.0, 130.0)]:
        found = select(times, 25.0, 20, SAMPLER, Window(start_s, end_s))
        clip = Clip(None, found.indices, found.fps, found.num_source_frames, found.times_s)
        length_s = min(end_s or 120.0, 120.0) - start_s
        assert 1 / clip.sampled_fps == pytest.approx(length_s / 20, rel=0.01)


def test_a_window_takes_both_its_ends_and_reaches_beyond_the_videos():
    times = np.arange(100) / 10
    found = select(times, 10.0, 4, SAMPLER, Window(2.0, 3.0))
    assert (found.indices[0], found.indices[-1], found.num_source_frames) == (20, 30, 11)
    found = select(times, 10.0, 4, SAMPLER, Window(9.0, 500.0))
    assert (found.indices[0], found.indices[-1]) == (90, 99)
    found = select(times, 10.0, 4, SAMPLER, Window(2.0, 2.05))
    assert (found.indices, found.num_source_frames) == ((20, 20), 1)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(10.0, None), "has no frame from 10 s to the end; its last one is at 9.9 s"),
        (Window(20.0, 30.0), "has no frame from 20 s to 30 s"),
        (Window(5.01, 5.05), r"has no frame from 5\.01 s to 5\.05 s"),
    ],
)
def test_a_window_without_a_frame_is_an_error(window, message):
    with pytest.raises(VideoError, match=message):
        select(np.arange(100) / 10, 10.0, 4, SAMPLER, window)


def test_wrong_rates_are_corrected_and_unusable_ones_named():
    times = np.arange(50) / 25
    assert select(times, 25.0, 4, SAMPLER).fps == 25.0
    for stated in (0.0, 90000.0, float("inf"), float("nan"), 50.0):
        assert select(times, stated, 4, SAMPLER).fps == pytest.approx(25.0)
    with pytest.raises(VideoError, match="no usable frame rate"):
        select([0.0], 0.0, 4, SAMPLER)
    with pytest.raises(VideoError, match="has no frame"):
        select([], 25.0, 4, SAMPLER)


def test_any_sampler_is_mapped_in_the_same_way():
    class Ends(FrameSampler):
        def indices(self, num_source_frames, num_frames, fps):
            return [0, num_source_frames - 1]

    times = [0.0, 1.0, 1.1, 1.2, 9.0]
    assert select(times, 1.0, 2, Ends(), WHOLE).indices == (0, 4)
    assert select(times, 1.0, 2, Ends(), Window(0.5, 1.5)).indices == (1, 3)
