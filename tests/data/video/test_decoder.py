"""Decoding: what comes out of good files, short ones and files that are none."""

import re
import time

import av
import numpy as np
import pytest
import torch
from qwen_vl_utils.vision_process import fetch_video

from tests.data.numbered import numbers, write_numbered
from vrts.data.video.decord import DecordDecoder
from vrts.data.video.frames import WHOLE, UniformSampler, Window
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.data.video.timeline import open_video
from vrts.types import VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)


@pytest.fixture(autouse=True)
def decord_speaks_like_qwen(monkeypatch):
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")


def decode(decoder, path, num_frames=8, resolution=SMALL, window=WHOLE):
    return decoder.decode(str(path), num_frames, UniformSampler(), resolution, window)


def levels(clip):
    return clip.frames.float().mean((1, 2, 3))


@pytest.mark.parametrize("decoder", [DecordDecoder(), PyAVDecoder()])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("fragmented.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {}),
        ("with spaces, é and 视频.mp4", "libx264", {}),
    ],
)
def test_the_right_frames_with_their_rate(tmp_path, make_video, decoder, name, codec, options):
    path = make_video(tmp_path / name, 31, 10, (80, 60), codec, options=options)
    clip = decode(decoder, path)
    assert clip.frame_indices == tuple(UniformSampler().indices(31, 8, 10.0))
    assert (clip.fps, clip.num_source_frames, clip.num_frames) == (10.0, 31, 8)
    assert (clip.frames.dtype, clip.frames.shape) == (torch.uint8, (8, 3, 56, 84))
    truth = torch.tensor([8 + 240 * i // 30 for i in clip.frame_indices], dtype=torch.float)
    assert (levels(clip) - truth).abs().max() < 4


@pytest.mark.parametrize("decoder", [DecordDecoder(), PyAVDecoder()])
def test_pixels_equal_those_of_qwen_vl_utils(tmp_path, make_video, decoder):
    noise = np.random.default_rng(0).integers(0, 255, (20, 15, 20, 3), np.uint8)
    path = make_video(
        tmp_path / "a.mp4", 20, size=(160, 120), frames=noise.repeat(8, 1).repeat(8, 2)
    )
    budget = {"min_pixels": 4 * 784, "max_pixels": 16 * 784}
    theirs, fps = fetch_video({"video": path, "nframes": 6} | budget, return_video_sample_fps=True)
    clip = decode(decoder, path, 6, Resolution(**budget))
    assert clip.frames.shape == theirs.shape
    assert (clip.frames.float() - theirs).abs().max() <= 1
    assert clip.sampled_fps == pytest.approx(fps)


@pytest.mark.parametrize("size", [(16, 16), (1920, 32), (322, 242)])
def test_odd_shapes(tmp_path, make_video, size):
    path = make_video(tmp_path / "a.mp4", 12, size=size)
    clip = decode(PyAVDecoder(), path)
    assert clip.num_frames == 8
    assert clip.frames.shape[-1] % 28 == clip.frames.shape[-2] % 28 == 0
    assert levels(clip).diff().min() > 0


@pytest.mark.parametrize("decoder", [DecordDecoder(), PyAVDecoder()])
@pytest.mark.parametrize(
    ("count", "expected"), [(1, (0, 0)), (2, (0, 1)), (3, (0, 1, 2, 2)), (5, (0, 1, 2, 3, 4, 4))]
)
def test_clips_shorter_than_asked_lose_no_frame(tmp_path, make_video, decoder, count, expected):
    clip = decode(decoder, make_video(tmp_path / "a.mp4", count), 32)
    assert clip.frame_indices == expected
    assert len(clip.frames) == len(expected)
    assert clip.sampled_fps == clip.fps


def test_slides_are_shown_for_as_long_as_they_are(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 5, times=[10_000 * i for i in range(5)])
    assert numbers(decode(PyAVDecoder(), path, 32)) == (0, 1, 2, 3, 4, 4)
    for window, expected in [
        (Window(12.0, 18.0), (1, 1)), (Window(12.0, 25.0), (1, 2)), (Window(20.0, 25.0), (2, 2)),
        (Window(40.001), (4, 4)),
    ]:  # fmt: skip
        clip = decode(PyAVDecoder(), path, 32, window=window)
        assert numbers(clip) == clip.frame_indices == expected
        assert clip.times_s[0] == pytest.approx(window.start_s, abs=1e-3)
    with pytest.raises(VideoError, match=r"a\.mp4: has no frame from 60 s"):
        decode(PyAVDecoder(), path, window=Window(60.0))


def test_decord_fails_by_name_where_it_cannot(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 12, size=(16, 16))
    with pytest.raises(VideoError, match=r"a\.mp4: .*size must exactly match"):
        decode(DecordDecoder(), path)
    assert decode(PyAVDecoder(), path).num_frames == 8
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(VideoError, match=r"a\.mp4: decord is not installed; use PyAVDecoder"):
        decode(DecordDecoder(), path)


def test_a_container_without_usable_times_is_decoded_in_order(tmp_path, make_video):
    raw = make_video(tmp_path / "a.h264", 30, 25)
    clip = decode(PyAVDecoder(), raw)
    assert clip.num_source_frames == 30
    assert clip.frame_indices == tuple(UniformSampler().indices(30, 8, 25.0))
    assert levels(clip).diff().min() > 0


def hide_frames(source, path, first):
    """Mark VP8 packets from one on as not to be shown: the container promises too many frames."""
    with av.open(source) as inside, av.open(path, "w") as outside:
        stream = outside.add_stream_from_template(inside.streams.video[0])
        for number, packet in enumerate(inside.demux(video=0)):
            if packet.dts is None:
                continue
            data = bytearray(bytes(packet))
            if number >= first:
                data[0] &= ~0x10  # show_frame, RFC 6386 section 9.1
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            outside.mux(copy)
    return path


def test_frames_that_do_not_come_out_are_not_counted(tmp_path, make_video):
    source = make_video(tmp_path / "a.webm", 32, 8, codec="libvpx")
    path = hide_frames(source, str(tmp_path / "lies.webm"), 16)
    began = time.monotonic()
    clip = decode(PyAVDecoder(), path)
    assert time.monotonic() - began < 10
    assert (clip.num_source_frames, clip.num_damaged) == (16, 0)
    assert clip.frame_indices[-1] == 15
    assert levels(clip).diff().min() > 0


def no_video(tmp_path, make_video):
    make_video(tmp_path / "good.mp4", 40, size=(320, 240))
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    (tmp_path / "head.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "tail.mp4").write_bytes(data[len(data) // 2 :])
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with av.open(str(tmp_path / "audio.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame) + stream.encode())


@pytest.mark.parametrize("decoder", [DecordDecoder(), PyAVDecoder()])
def test_files_that_are_no_video_fail_by_name(tmp_path, make_video, decoder):
    no_video(tmp_path, make_video)
    for name in ("empty.mp4", "text.mp4", "head.mp4", "tail.mp4", "folder.mp4", "link.mp4",
                 "audio.m4a", "gone.mp4"):  # fmt: skip
        with pytest.raises(VideoError, match=name) as caught:
            decode(decoder, tmp_path / name)
        assert "Stack" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", [DecordDecoder(), PyAVDecoder()])
def test_a_name_that_no_file_can_have_fails_by_name(decoder):
    for name in ("/" + "x" * 300 + ".mp4", "a\0b.mp4"):
        with pytest.raises(VideoError, match="no such file"):
            decode(decoder, name)


def test_music_with_a_cover_is_no_video(tmp_path):
    """An ID3 tag with an image (id3.org/id3v2.4.0-frames, section 4.14) before silent MP3."""
    with av.open(str(tmp_path / "plain.mp3"), "w") as container:
        stream = container.add_stream("mp3", rate=16000, layout="mono")
        for i in range(20):
            silence = np.zeros((1, 576), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 576 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "cover.png"), "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        grey = np.full((64, 64, 3), 90, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    body = b"\0image/png\0\3\0" + (tmp_path / "cover.png").read_bytes()

    def size(count):
        return bytes(count >> shift & 127 for shift in (21, 14, 7, 0))

    tag = b"APIC" + size(len(body)) + b"\0\0" + body
    data = b"ID3\4\0\0" + size(len(tag)) + tag + (tmp_path / "plain.mp3").read_bytes()
    (tmp_path / "song.mp3").write_bytes(data)
    with open_video(str(tmp_path / "song.mp3")) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match=r"song\.mp3: has no video stream, only a cover image"):
        decode(PyAVDecoder(), tmp_path / "song.mp3")


@pytest.mark.parametrize("decoder", [PyAVDecoder()])
def test_a_codec_that_ffmpeg_does_not_know_fails_by_name(tmp_path, make_video, decoder):
    make_video(tmp_path / "good.mp4", 8)
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "odd.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match=r"odd\.mp4: has a video stream of a codec that FFmpeg"):
        decode(decoder, tmp_path / "odd.mp4")


REAL_OPEN = av.open


class LateStreams:
    """A container that ends as PyAV's do where FFmpeg has found further streams on the way."""

    def __init__(self, path, **options):
        self._container = REAL_OPEN(path, **options)
        self.streams, self.format = self._container.streams, self._container.format

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._container.close()

    def demux(self, stream):
        yield from (packet for packet in self._container.demux(stream) if packet.size)
        raise IndexError("list index out of range")


def test_streams_found_on_the_way_fail_by_name(tmp_path, make_video, monkeypatch):
    make_video(tmp_path / "good.mp4", 8)
    monkeypatch.setattr(av, "open", LateStreams)
    with pytest.raises(VideoError, match=r"good\.mp4: has streams that begin in its middle"):
        decode(PyAVDecoder(), tmp_path / "good.mp4")


def test_only_one_large_frame_is_kept(tmp_path, make_video):
    clip = decode(PyAVDecoder(), make_video(tmp_path / "a.mp4", 16, size=(640, 480)))
    assert clip.frames.is_contiguous()
    assert clip.frames.untyped_storage().nbytes() == clip.frames.numel()


def test_a_custom_sampler_may_leave_an_end_out(tmp_path):
    class Third(UniformSampler):
        def indices(self, num_source_frames, num_frames, fps):
            return [num_source_frames // 3] * 2

    path = write_numbered(tmp_path / "a.mkv", 30)
    clip = PyAVDecoder().decode(path, 2, Third(), SMALL)
    assert numbers(clip) == (10, 10)


REAL = {
    "nasa_13013.mp4": (390, 29.97),
    "nasa_13013_rotated.mp4": (17, 29.97),
    "nasa_13013_hdr.mp4": (325, 25.0),
    "av1_video.mkv": (125, 25.0),
    "odd_size_vp9.mp4": (25, 25.0),
    "non_zero_start.mp4": (12, 30.0),
    "flipping_a_pancake.mkv": (310, 30.0),
    "rotated_90.mov": (3, 30.0),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_videos(shared, name):
    path = str(shared / "videos" / name)
    count, fps = REAL[name]
    clip = decode(PyAVDecoder(), path)
    assert (clip.num_source_frames, clip.num_damaged) == (count, 0)
    assert clip.fps == pytest.approx(fps, abs=0.01)
    assert clip.frame_indices == tuple(UniformSampler().indices(count, 8, fps))
    if name.startswith(("nasa_13013_rot", "rotated")):
        assert clip.frames.shape[-2] > clip.frames.shape[-1]
    if name == "av1_video.mkv":
        with pytest.raises(VideoError, match=re.escape(name)):
            decode(DecordDecoder(), path)
        return
    other = decode(DecordDecoder(), path)
    assert other.frame_indices == clip.frame_indices
    # colour conversion of 10-bit and odd sizes differs a little between the two FFmpegs
    assert (other.frames.float() - clip.frames.float()).abs().mean() < 1


def test_the_best_of_several_streams_is_taken(shared):
    path = shared / "videos" / "nasa_13013.mp4"
    for decoder in (DecordDecoder(), PyAVDecoder()):
        clip = decode(decoder, path, resolution=Resolution(784, 768 * 784))
        assert clip.num_source_frames == 390  # those of the larger stream; the smaller has 325
        assert clip.frames.shape[-2:] == (280, 476)


def test_windows_of_a_real_video(shared):
    path = shared / "videos" / "non_zero_start.mp4"
    for decoder in (DecordDecoder(), PyAVDecoder()):
        clip = decode(decoder, path, 4, window=Window(0.1, 0.3))
        assert (clip.frame_indices[0], clip.frame_indices[-1]) == (3, 9)
        assert clip.num_source_frames == 7
        assert clip.sampled_fps == pytest.approx(4 / 7 * 30)
        with pytest.raises(VideoError, match=r"non_zero_start\.mp4.*no frame from 8\.4 s to 8\.6"):
            decode(decoder, path, 4, window=Window(8.4, 8.6))
