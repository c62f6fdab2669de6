"""Frame numbers painted into the pixels: the decoded frames are those that the clip lists."""

import random
import re
from fractions import Fraction

import numpy as np
import pytest

from tests.data.numbered import number_of, numbers, paint, remux, upright, write_numbered
from vrts.data.video.decord import DecordDecoder
from vrts.data.video.frames import WHOLE, UniformSampler, Window
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.types import VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)
TINY = (112, 56)
NUM_FRAMES = 40


def decode(path, num_frames=12, window=WHOLE, decoder=None):
    return (decoder or PyAVDecoder()).decode(str(path), num_frames, UniformSampler(), SMALL, window)


def uneven(num_frames, seed, start=0):
    steps = np.random.default_rng(seed).choice([20, 40, 200], num_frames)
    return (np.cumsum(steps) + start).tolist()


X265 = "keyint=12:min-keyint=12:scenecut=0:log-level=none:pools=none:frame-threads=1"
ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast", "bf": "2", "x264-params": "scenecut=0"}),
    "h264 open": (
        "libx264",
        {"preset": "veryfast", "bf": "2", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"},
    ),
    "h264 refresh": ("libx264", {"bf": "0", "x264-params": "intra-refresh=1"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=0"}),
    "hevc open": (
        "libx265", {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=1:bframes=3"},
    ),
    "mpeg4": ("mpeg4", {"bf": "0"}),
    "mpeg4 b": ("mpeg4", {"bf": "2"}),
    "mpeg2": ("mpeg2video", {"bf": "2"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}  # fmt: skip
CONTAINERS = {
    "mp4": {"h264", "h264 open", "h264 refresh", "hevc", "hevc open", "mpeg4", "mpeg4 b", "mpeg2",
            "vp9"},
    "mov": {"h264", "h264 open", "hevc open", "mpeg4", "mpeg2"},
    "mkv": set(ENCODERS),
    "webm": {"vp8", "vp9"},
    "ts": {"h264", "h264 open", "h264 refresh", "hevc", "hevc open", "mpeg2"},
    "mpg": {"mpeg2"},
    "avi": {"mpeg4", "mpeg4 b", "mpeg2"},
    "flv": {"h264", "h264 open"},
}  # fmt: skip
GOPS = ["as encoded", "one key frame", "all sync", "none"]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A short video of each encoder and GOP, encoded once."""
    folder, made = tmp_path_factory.mktemp("encoded"), {}

    def encode(name, gop):
        if (name, gop) not in made:
            codec, options = ENCODERS[name]
            if gop > 12 and codec == "libx265":
                options = {
                    key: value.replace("int=12", "int=250") for key, value in options.items()
                }
            path = folder / f"{name} {gop}.{'webm' if name == 'vp8' else 'mp4'}"
            made[name, gop] = write_numbered(
                path, NUM_FRAMES, codec=codec, options=options, gop=gop, size=TINY
            )
        return made[name, gop]

    return encode


@pytest.mark.parametrize("gop", GOPS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_frames_asked_for_in_every_container_codec_and_kind_of_gop(
    tmp_path, encoded, container, gop
):
    def flags(number, packet):
        if gop in ("all sync", "none"):
            packet.is_keyframe = gop == "all sync"
        return packet

    for orientation, codec in enumerate(sorted(CONTAINERS[container]), start=1):
        turned = orientation % 8 + 1 if container in ("mp4", "mov", "mkv") else 1
        source = encoded(codec, 250 if gop == "one key frame" else 12)
        path = remux(source, tmp_path / f"{codec}.{container}", flags, orientation=turned)
        for num_frames, window in [(8, WHOLE), (4, Window(0.5, 1.0)), (2, Window(1.3))]:
            clip = decode(path, num_frames, window)
            shown = tuple(map(number_of, upright(clip, turned)))
            case = (codec, turned, window)
            assert shown == clip.frame_indices, case
            assert clip.num_damaged == 0, case
            if window is WHOLE:
                assert clip.frame_indices == tuple(UniformSampler().indices(NUM_FRAMES, 8, 25)), (
                    case
                )
            else:
                assert clip.frame_indices[0] == (13 if window.end_s else 33), case


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_all_orientations_are_those_of_players(tmp_path, encoded, container, orientation):
    path = remux(encoded("h264", 12), tmp_path / f"a.{container}", orientation=orientation)
    clip = decode(path, 4)
    assert tuple(map(number_of, upright(clip, orientation))) == clip.frame_indices
    assert (clip.frames.shape[-2] > clip.frames.shape[-1]) == (orientation > 4)


ODD = {
    "vfr.mp4": {"times": uneven(60, 0)},
    "vfr.mkv": {"times": uneven(60, 1)},
    "offset.mp4": {"times": [5000 + 40 * i for i in range(60)]},
    "offset.mkv": {"times": uneven(60, 2, start=90_000)},
    "ten-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "odd.mp4": {"size": (161, 97), "pix_fmt": "yuv444p"},
    "only key frames.mp4": {"gop": 1},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "16x16.mp4": {"size": (16, 16)},
    "no times.h264": {},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
}  # fmt: skip


@pytest.mark.parametrize("window", [WHOLE, Window(0.8, 1.7), Window(1.5)])
@pytest.mark.parametrize("name", ODD)
def test_odd_encodings(tmp_path, name, window):
    clip = decode(write_numbered(tmp_path / name, **ODD[name]), window=window)
    assert numbers(clip) == clip.frame_indices
    assert window.start_s - 1e-3 <= clip.times_s[0]
    assert window.end_s is None or clip.times_s[-1] <= window.end_s + 1e-3
    assert window is not WHOLE or clip.num_source_frames == 60


def test_fragments_that_call_all_samples_sync(tmp_path, encoded):
    def sync(number, packet):
        packet.is_keyframe = True
        return packet

    for codec in ("mpeg4", "h264"):
        path = remux(
            encoded(codec, 12), tmp_path / f"{codec}.mp4", sync,
            {"movflags": "empty_moov+default_base_moof", "frag_duration": "400000"},
        )  # fmt: skip
        data = (tmp_path / f"{codec}.mp4").read_bytes()
        assert b"moof" in data
        clip = decode(path, 16)
        assert numbers(clip) == clip.frame_indices
        assert clip.num_source_frames == NUM_FRAMES


def test_a_cut_by_an_edit_list_counts_the_frames_that_are_shown(tmp_path):
    def earlier(number, packet):
        packet.pts, packet.dts = packet.pts - 5 * 512, packet.dts - 5 * 512
        return packet

    path = remux(
        write_numbered(tmp_path / "a.mp4"), tmp_path / "cut.mp4", earlier,
        {"avoid_negative_ts": "disabled", "use_editlist": "1"},
    )  # fmt: skip
    clip = decode(path)
    assert (clip.num_source_frames, clip.num_damaged) == (55, 0)
    assert numbers(clip) == tuple(i + 5 for i in clip.frame_indices)


def test_a_cut_head_begins_with_the_first_frame_that_comes_out(tmp_path):
    source = write_numbered(tmp_path / "a.ts", options={"bf": "0"})
    path = remux(source, tmp_path / "cut.ts", lambda number, packet: packet if number > 4 else None)
    clip = decode(path)
    shown = numbers(clip)
    assert shown[0] >= 5
    assert shown == tuple(i + 60 - clip.num_source_frames for i in clip.frame_indices)


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2", "h264"])
def test_frames_before_the_first_key_frame_are_not_shown(tmp_path, encoded, codec):
    """MPEG-4 comes out grey there, unmarked."""

    def cut(number, packet):
        return None if number < 3 else packet

    def cut_and_marked(number, packet):
        packet.is_keyframe = True
        return cut(number, packet)

    clip = decode(remux(encoded(codec, 12), tmp_path / "cut.mkv", cut), 36)
    assert numbers(clip)[0] == 12
    assert (clip.num_source_frames, clip.num_damaged) == (NUM_FRAMES - 12, 0)
    assert numbers(clip) == tuple(i + 12 for i in clip.frame_indices)
    if codec == "mpeg4":
        clip = decode(remux(encoded(codec, 12), tmp_path / "marked.mp4", cut_and_marked), 36)
        assert clip.num_source_frames == NUM_FRAMES - 3
        assert clip.num_damaged == 9
        assert numbers(clip) == tuple(i + 3 for i in clip.frame_indices)


SOME = [
    ("libx264", ["mp4", "mkv", "mov", "ts"]),
    ("libvpx-vp9", ["webm", "mkv", "mp4"]),
    ("libvpx", ["webm", "mkv"]),
    ("mpeg4", ["avi", "mp4", "mkv"]),
]


@pytest.mark.parametrize("seed", range(16))
def test_random_encodings_times_and_windows(tmp_path, seed):
    rng = random.Random(seed)
    codec, endings = rng.choice(SOME)
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
        gop=rng.choice([1, 5, 12, 250]), options=options, size=TINY,
    )  # fmt: skip
    length_s = decode(path, 2).times_s[-1]
    window = Window(rng.uniform(0, length_s / 2)) if rng.random() < 0.5 and length_s else WHOLE
    clip = decode(path, rng.choice([2, 6, 16, 32]), window)
    assert numbers(clip) == clip.frame_indices
    assert clip.times_s[0] >= window.start_s - 1e-3


def test_pixels_that_are_not_square_are_shown_as_players_do(tmp_path):
    wide = write_numbered(
        tmp_path / "wide.mp4", 4, size=(112, 112), pixel_aspect=Fraction(2), codec="mpeg4"
    )
    assert decode(wide).frames.shape[-2:] == (112, 224)
    as_qwen = Resolution(28 * 28, 64 * 28 * 28, square_pixels=False)
    clip = PyAVDecoder().decode(wide, 4, UniformSampler(), as_qwen)
    assert clip.frames.shape[-2:] == (112, 112)
    turned = remux(wide, tmp_path / "turned.mp4", orientation=6)
    clip = decode(turned)
    assert clip.frames.shape[-2:] == (224, 112)
    assert tuple(map(number_of, upright(clip, 6))) == (0, 1, 2, 3)


@pytest.mark.parametrize("window", [WHOLE, Window(0.8, 1.7)])
@pytest.mark.parametrize("name", ["constant.mp4", "constant.mkv", "vfr.mkv", "odd.webm"])
def test_decord_agrees_where_it_counts_right(tmp_path, name, window):
    decord = pytest.importorskip("decord")
    options = {"vfr.mkv": {"times": uneven(60, 1)}, "odd.webm": {"codec": "libvpx-vp9",
               "size": (161, 97), "options": {"cpu-used": "8"}}}.get(name, {})  # fmt: skip
    path = write_numbered(tmp_path / name, **options)
    ours, theirs = (decode(path, window=window, decoder=d) for d in (None, DecordDecoder()))
    assert numbers(theirs) == numbers(ours) == ours.frame_indices == theirs.frame_indices
    assert theirs.times_s == pytest.approx(ours.times_s, abs=1e-3)
    assert theirs.sampled_fps == pytest.approx(ours.sampled_fps, rel=1e-3)
    assert decord.__version__ == "0.6.0"


@pytest.mark.parametrize("decoder", [PyAVDecoder(), DecordDecoder()])
def test_a_path_is_a_path(tmp_path, monkeypatch, decoder):
    monkeypatch.chdir(tmp_path)
    source = write_numbered(tmp_path / "a.mp4", 4, size=TINY)
    names = ["12:30:45.mp4", "lecture: part 1.mp4", "http:clip.mp4", "concat:a|b.mp4", "file:x.mp4",
             "100%d?.mp4", "-a.mp4", "pipe:0"]  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes((tmp_path / "a.mp4").read_bytes())
        for path in (name, f"./{name}", str(tmp_path / name)):
            assert numbers(decode(path, 4, decoder=decoder)) == (0, 1, 2, 3), path
    assert numbers(decode(source, 4, decoder=decoder)) == (0, 1, 2, 3)
    with pytest.raises(VideoError, match=re.escape("concat:a.mp4|a.mp4: no such file")):
        decode("concat:a.mp4|a.mp4", decoder=decoder)


def test_a_playlist_does_not_reach_for_the_network(tmp_path):
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXTINF:4,\nhttp://127.0.0.1:1/a.ts\n")
    with pytest.raises(VideoError, match=r"a\.m3u8: "):
        decode(tmp_path / "a.m3u8")


def test_metadata_that_is_not_utf8_is_no_fault(tmp_path):
    path = remux(
        write_numbered(tmp_path / "a.mp4", 4, size=TINY, codec="mpeg4"), tmp_path / "b.avi",
        metadata={"title": "BadTitle"},
    )  # fmt: skip
    data = (tmp_path / "b.avi").read_bytes()
    assert b"BadTitle" in data
    (tmp_path / "b.avi").write_bytes(data.replace(b"BadTitle", b"B\xe4dT\xeftl\xe9"))
    assert numbers(decode(path, 4)) == (0, 1, 2, 3)


def test_numbers_can_be_read():
    for number in (0, 1, 85, 170, 255):
        assert number_of(paint(number).transpose(2, 0, 1)) == number
