"""Frame numbers painted into the pixels: each decoder gives the very frames it says it gives."""

import random

import numpy as np
import pytest

from tests.data.numbered import number_of, numbers, remux, write_numbered
from vrts.data.decoding import FallbackDecoder
from vrts.data.decord_decoder import DecordDecoder
from vrts.data.pyav_decoder import PyAVDecoder
from vrts.data.resolution import Resolution
from vrts.data.sampling import UniformSampler
from vrts.data.windows import WHOLE, Window
from vrts.types import VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)
BOTH = FallbackDecoder([DecordDecoder(), PyAVDecoder()])


def decode(decoder, path, num_frames=12, window=WHOLE):
    return decoder.decode(str(path), num_frames, UniformSampler(), SMALL, window)


def uneven(num_frames, seed, start=0):
    steps = np.random.default_rng(seed).choice([20, 40, 200], num_frames)
    return (np.cumsum(steps) + start).tolist()


AGREED = {
    "constant.mp4": {},
    "constant.mkv": {},
    "vfr.mp4": {"times": uneven(60, 0)},
    "vfr.mkv": {"times": uneven(60, 1)},
    "offset.mp4": {"times": [5000 + 40 * i for i in range(60)]},
    "offset.mkv": {"times": uneven(60, 2, start=90_000)},
    "ten-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "odd.mp4": {"size": (161, 97), "pix_fmt": "yuv444p"},
    "odd.webm": {"codec": "libvpx-vp9", "size": (161, 97), "options": {"cpu-used": "8"}},
    "one key frame.mp4": {"gop": 250},
    "only key frames.mp4": {"gop": 1},
}


@pytest.mark.parametrize("window", [WHOLE, Window(0.8, 1.7), Window(1.5)])
@pytest.mark.parametrize("name", AGREED)
def test_both_decoders_agree_on_the_right_frames(tmp_path, name, window):
    path = write_numbered(tmp_path / name, **AGREED[name])
    clips = [decode(decoder, path, window=window) for decoder in (DecordDecoder(), PyAVDecoder())]
    for clip in clips:
        assert numbers(clip) == clip.frame_indices
        assert window.start_s - 1e-3 <= clip.times_s[0]
        assert window.end_s is None or clip.times_s[-1] <= window.end_s + 1e-3
    assert clips[0].frame_indices == clips[1].frame_indices
    assert clips[0].sampled_fps == clips[1].sampled_fps


FALLBACK = {
    "av1.mkv": ({"codec": "libsvtav1", "num_frames": 30, "options": {"preset": "12"}}, "relied on"),
    "tiny.mp4": ({"size": (16, 16)}, "size must exactly match"),
    "open gops.mp4": (
        {"options": {"bf": "2", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}},
        "open GOPs",
    ),
    "hevc.mp4": (
        {"codec": "libx265", "options": {"x265-params": "open-gop=1:log-level=none"},
         "pix_fmt": "yuv420p10le"},
        "not relied on for hevc",
    ),
    "intra refresh.mp4": (
        {"options": {"x264-params": "intra-refresh=1", "bf": "0"}, "num_frames": 99},
        "open GOPs",
    ),
    "stream.ts": ({}, "cannot seek exactly in mpegts"),
    "stream.mpg": ({"codec": "mpeg2video"}, "cannot seek exactly in mpeg"),
    "no times.avi": ({"codec": "mpeg4", "options": {"bf": "2"}}, "no unique times"),
    "no times.h264": ({}, "no unique times"),
}  # fmt: skip


@pytest.mark.parametrize("name", FALLBACK)
def test_what_decord_gets_wrong_is_left_to_pyav(tmp_path, name):
    options, reason = FALLBACK[name]
    path = write_numbered(tmp_path / name, **options)
    with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
        decode(DecordDecoder(), path)
    clip = decode(BOTH, path)
    assert clip.num_source_frames == options.get("num_frames", 60)
    assert numbers(clip) == clip.frame_indices
    half = decode(BOTH, path, window=Window(0.5, 1.0))
    assert numbers(half) == half.frame_indices
    assert (half.frame_indices[0], half.frame_indices[-1]) == (13, 25)


def test_a_cut_by_an_edit_list_counts_the_frames_that_are_shown(tmp_path):
    def earlier(number, packet):
        packet.pts, packet.dts = packet.pts - 5 * 512, packet.dts - 5 * 512
        return packet

    path = remux(
        write_numbered(tmp_path / "a.mp4"), tmp_path / "cut.mp4", earlier,
        {"avoid_negative_ts": "disabled", "use_editlist": "1"},
    )  # fmt: skip
    clip = decode(BOTH, path)
    assert clip.num_source_frames == 55
    assert numbers(clip) == tuple(i + 5 for i in clip.frame_indices)


def test_a_cut_head_begins_with_the_first_frame_that_comes_out(tmp_path):
    source = write_numbered(tmp_path / "a.ts", options={"bf": "0"})
    path = remux(source, tmp_path / "cut.ts", lambda number, packet: packet if number > 4 else None)
    clip = decode(BOTH, path)
    shown = numbers(clip)
    assert shown[0] >= 5
    assert shown == tuple(i + 60 - clip.num_source_frames for i in clip.frame_indices)


def test_a_lost_packet_does_not_shift_the_others(tmp_path):
    source = write_numbered(tmp_path / "a.mkv", options={"bf": "0"})
    path = remux(source, tmp_path / "b.mkv", lambda n, packet: packet if n != 20 else None)
    clip = decode(BOTH, path, 32)
    kept = [i for i in range(60) if i != 20]
    assert clip.num_source_frames == 59
    right = [kept[i] for i in clip.frame_indices]
    # up to the next key frame the pictures suffer, the numbers do not
    assert [a for a, b in zip(numbers(clip), right, strict=True) if not 20 < b < 24] == [
        b for b in right if not 20 < b < 24
    ]


ENCODERS = [
    ("libx264", ["mp4", "mkv", "mov", "ts"]),
    ("libvpx-vp9", ["webm", "mkv", "mp4"]),
    ("libvpx", ["webm", "mkv"]),
    ("mpeg4", ["avi", "mp4", "mkv"]),
]


@pytest.mark.parametrize("seed", range(24))
def test_random_encodings_times_and_windows(tmp_path, seed):
    rng = random.Random(seed)
    codec, endings = rng.choice(ENCODERS)
    ending = rng.choice(endings)
    num_frames = rng.randrange(1, 90)
    options = {"cpu-used": "8"}
    if codec == "libx264":
        params = (
            f"open-gop={rng.randrange(2)}:b-pyramid={rng.randrange(3)}:ref={rng.randrange(1, 5)}"
        )
        options = {"preset": "veryfast", "bf": str(rng.randrange(4)), "x264-params": params}
    elif codec == "mpeg4":
        options = {"bf": str(rng.randrange(3))}
    times = uneven(num_frames, seed) if rng.random() < 0.5 and ending != "avi" else None
    path = write_numbered(
        tmp_path / f"a.{ending}", num_frames, times=times, codec=codec,
        gop=rng.choice([1, 5, 12, 250]), options=options,
    )  # fmt: skip
    length_s = decode(PyAVDecoder(), path, 2).times_s[-1]
    window = Window(rng.uniform(0, length_s / 2)) if rng.random() < 0.5 else WHOLE
    if length_s == 0:
        window = WHOLE
    clip = decode(BOTH, path, rng.choice([2, 6, 16, 32]), window)
    assert numbers(clip) == clip.frame_indices
    assert clip.times_s[0] >= window.start_s - 1e-3


def test_both_decoders_take_the_best_of_several_streams(shared):
    path = shared / "videos" / "nasa_13013.mp4"
    for decoder in (DecordDecoder(), PyAVDecoder()):
        clip = decoder.decode(
            str(path), 8, UniformSampler(), Resolution(min_pixels=784, max_pixels=768 * 784)
        )
        assert clip.num_source_frames == 390  # those of the larger stream; the smaller has 325
        assert clip.frames.shape[-2:] == (280, 476)


def test_windows_of_a_real_video(shared):
    path = shared / "videos" / "non_zero_start.mp4"
    for decoder in (DecordDecoder(), PyAVDecoder()):
        clip = decode(decoder, path, 4, Window(0.1, 0.3))
        assert (clip.frame_indices[0], clip.frame_indices[-1]) == (3, 9)
        assert clip.num_source_frames == 7
        assert clip.sampled_fps == pytest.approx(4 / 7 * 30)
        with pytest.raises(VideoError, match=r"non_zero_start\.mp4.*no frame from 8\.4 s to 8\.6"):
            decode(decoder, path, 4, Window(8.4, 8.6))


def test_numbers_can_be_read():
    from tests.data.numbered import paint

    for number in (0, 1, 85, 170, 255):
        assert number_of(paint(number).transpose(2, 0, 1)) == number
