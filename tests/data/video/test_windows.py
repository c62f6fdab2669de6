"""Choosing frames by the times they are shown, against the plain computation."""

import numpy as np
import pytest

from vrts.data.video.frames import WHOLE, FrameSampler, Source, UniformSampler, Window, select
from vrts.types import Clip, VideoError

SAMPLER = UniformSampler()


@pytest.mark.parametrize("total", [1, 2, 3, 31, 1800, 107_999])
@pytest.mark.parametrize("fps", [1.0, 23.976, 30000 / 1001, 60.0])
def test_at_a_constant_rate_the_sampler_has_the_last_word(total, fps):
    times = np.round(7.3 + np.arange(total) / fps, 3)  # as coarse as Matroska's
    found = select(Source(times, fps), 32, SAMPLER)
    assert found.indices == tuple(SAMPLER.indices(total, 32, fps))
    assert (found.fps, found.num_source_frames) == (fps, total)
    assert found.times_s == pytest.approx([i / fps for i in found.indices], abs=1.1e-3)


def shown_in_window(times, start_s, end_s, places):
    """The plain computation: for each of evenly spaced moments the last frame that has started."""
    inside = [i for i, time in enumerate(times) if start_s - 1e-3 <= time <= end_s + 1e-3]
    shown_s = [float(times[i]) for i in inside]
    if inside[0] > 0 and shown_s[0] - start_s > 1.0:  # the frame before is shown for long
        inside, shown_s = [inside[0] - 1, *inside], [start_s, *shown_s]
    span = shown_s[-1] - shown_s[0]
    moments = [shown_s[0] + span * j / (len(inside) - 1) for j in places(len(inside))]
    return [
        max(i for i, time in zip(inside, shown_s, strict=True) if time <= moment + 1e-3 + 1e-6)
        for moment in moments
    ], inside


@pytest.mark.parametrize("seed", range(30))
def test_at_a_variable_rate_the_frames_shown_at_even_moments_are_taken(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([0.017, 0.033, 0.5, 2.0], rng.integers(20, 200)))
    times -= times[0]
    start_s = float(rng.uniform(0, times[-1] / 2))
    end_s = start_s + float(rng.uniform(times[-1] / 4, times[-1]))
    found = select(Source(times + 11.5, 30.0), 16, SAMPLER, Window(start_s, end_s))
    expected, inside = shown_in_window(
        times, start_s, end_s, lambda n: SAMPLER.indices(n, 16, 30.0)
    )
    if len(inside) >= 16:
        assert list(found.indices) == expected
    else:
        assert set(found.indices) == set(inside)
    assert found.num_source_frames == len(inside)
    assert all(start_s - 1e-3 <= time <= end_s + 1e-3 for time in found.times_s)
    assert list(found.indices) == sorted(found.indices)


def test_the_frame_that_is_shown_is_not_the_nearest():
    times = [0.0, 0.9, 10.0, 10.1, 19.0, 20.0]
    assert select(Source(times, 1.0), 2, SAMPLER, WHOLE).indices == (0, 5)
    found = select(Source(times, 1.0), 4, SAMPLER, WHOLE)
    assert found.indices == (0, 1, 3, 5)  # at 0, 8, 12 and 20 s; the nearest to 8 s is at 10 s


def test_a_window_within_a_held_frame_shows_it():
    slides = Source([0.0, 10.0, 20.0, 30.0, 40.0], 0.1, 41.0)
    for window, indices, times_s in [
        (Window(12.0, 18.0), (1, 1), (12.0, 12.0)),
        (Window(12.0, 25.0), (1, 2), (12.0, 20.0)),
        (Window(10.0, 12.0), (1, 1), (10.0, 10.0)),
        (Window(40.5, 43.0), (4, 4), (40.5, 40.5)),
        (Window(12.0), (1, 2, 3, 4), (12.0, 20.0, 30.0, 40.0)),
    ]:
        found = select(slides, 8, SAMPLER, window)
        assert (found.indices, found.times_s) == (indices, times_s)
    with pytest.raises(VideoError, match="has no frame from 41"):
        select(slides, 8, SAMPLER, Window(41.0, 43.0))
    # as qwen_vl_utils: at usual rates a window begins with its first frame
    found = select(Source(np.arange(100) / 25, 25.0, 4.0), 4, SAMPLER, Window(0.81, 1.7))
    assert (found.indices[0], found.indices[-1]) == (21, 42)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 31])
def test_a_short_source_loses_no_frame(total):
    times = np.cumsum(np.random.default_rng(total).choice([0.1, 3.0], total))
    found = select(Source(times, 1.0), 32, SAMPLER)
    assert found.indices == (*range(total), *[total - 1] * (total % 2))


def test_the_nearest_sound_frame_stands_in_for_a_damaged_one():
    source = Source(np.arange(40) / 10, 10.0, 4.0, damaged={0, *range(10, 20), 39})
    found = select(source, 4, SAMPLER)  # samples 0, 13, 26 and 39
    assert (found.indices, found.num_damaged) == ((1, 9, 26, 38), 3)
    assert found.times_s == (0.1, 0.9, 2.6, 3.8)
    inside = select(source, 4, SAMPLER, Window(1.5, 3.0))
    assert set(inside.indices) <= set(range(20, 31))
    with pytest.raises(VideoError, match="no frame that is not damaged"):
        select(source, 4, SAMPLER, Window(1.1, 1.8))


def test_seconds_between_sampled_frames_are_those_of_the_window():
    times = np.arange(3000) / 25
    for start_s, end_s in [(0.0, None), (30.0, 50.0), (100.0, 130.0)]:
        found = select(Source(times, 25.0), 20, SAMPLER, Window(start_s, end_s))
        clip = Clip(None, found.indices, found.fps, found.num_source_frames, found.times_s)
        length_s = min(end_s or 120.0, 120.0) - start_s
        assert 1 / clip.sampled_fps == pytest.approx(length_s / 20, rel=0.01)


def test_a_window_takes_both_its_ends_and_reaches_beyond_the_videos():
    times = np.arange(100) / 10
    found = select(Source(times, 10.0), 4, SAMPLER, Window(2.0, 3.0))
    assert (found.indices[0], found.indices[-1], found.num_source_frames) == (20, 30, 11)
    found = select(Source(times, 10.0), 4, SAMPLER, Window(9.0, 500.0))
    assert (found.indices[0], found.indices[-1]) == (90, 99)
    found = select(Source(times, 10.0), 4, SAMPLER, Window(5.01, 5.05))
    assert (found.indices, found.times_s) == ((50, 50), (5.01, 5.01))
    found = select(Source(times, 10.0), 4, SAMPLER, Window(2.0, 2.05))
    assert (found.indices, found.num_source_frames) == ((20, 20), 1)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(10.0, None), "has no frame from 10 s to the end; its last one is at 9.9 s"),
        (Window(20.0, 30.0), "has no frame from 20 s to 30 s"),
        (Window(9.9995, 12.0), r"has no frame from 9\.9995 s to 12 s"),
    ],
)
def test_a_window_without_a_frame_is_an_error(window, message):
    with pytest.raises(VideoError, match=message):
        select(Source(np.arange(100) / 10, 10.0, 10.0), 4, SAMPLER, window)


def test_wrong_rates_are_corrected_and_unusable_ones_named():
    times = np.arange(50) / 25
    assert select(Source(times, 25.0), 4, SAMPLER).fps == 25.0
    for stated in (0.0, 90000.0, float("inf"), float("nan"), 50.0):
        assert select(Source(times, stated), 4, SAMPLER).fps == pytest.approx(25.0)
    with pytest.raises(VideoError, match="no usable frame rate"):
        select(Source([0.0], 0.0), 4, SAMPLER)
    with pytest.raises(VideoError, match="has no frame"):
        select(Source([], 25.0), 4, SAMPLER)


def test_any_sampler_is_mapped_in_the_same_way():
    class Ends(FrameSampler):
        def indices(self, num_source_frames, num_frames, fps):
            return [0, num_source_frames - 1]

    times = [0.0, 1.0, 1.1, 1.2, 9.0]
    assert select(Source(times, 1.0), 2, Ends(), WHOLE).indices == (0, 4)
    assert select(Source(times, 1.0), 2, Ends(), Window(0.5, 1.5)).indices == (1, 3)
