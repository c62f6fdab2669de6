"""One rule for damage: no damaged frame is shown, few are replaced, many fail the video by name."""

import av
import numpy as np
import pytest

from tests.data.numbered import numbers, remux, write_numbered
from vrts.data.datamodule import VideoQADataModule
from vrts.data.video.frames import WHOLE, UniformSampler, Window
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.types import Question, VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)
SIZE = (320, 160)
TOTAL = 120
X264 = {"preset": "veryfast", "bf": "2", "x264-params": "scenecut=0"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound video of ten groups of frames."""
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    return write_numbered(
        path, TOTAL, size=SIZE, gop=12, options=X264, container_options={"movflags": "faststart"}
    )


def decode(path, num_frames=32, window=WHOLE):
    return PyAVDecoder().decode(str(path), num_frames, UniformSampler(), SMALL, window)


def wanted(num_frames=32):
    return UniformSampler().indices(TOTAL, num_frames, 25)


def check(clip, lost, offset=0):
    """A clip with these damaged frames, each replaced by the nearest intact one."""
    sound = [i for i in range(clip.num_source_frames) if i not in lost]
    nearest = [min(sound, key=lambda s: (abs(s - i), s)) for i in wanted(len(clip.frames))]
    assert list(clip.frame_indices) == nearest
    assert clip.num_damaged == sum(i in lost for i in wanted(len(clip.frames)))
    assert numbers(clip) == clip.frame_indices
    assert clip.num_source_frames == TOTAL


def spoil(first, last=None):
    """Damage the images' data in these packets, by decoding order, after their headers."""

    def change(number, packet):
        if not first <= number <= (first if last is None else last):
            return packet
        data = bytearray(bytes(packet))
        data[len(data) * 2 // 3 :] = b"\xff" * (len(data) - len(data) * 2 // 3)
        return bytes(data)

    return change


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_a_damaged_key_frame_spoils_its_group_and_no_other(tmp_path, good, name):
    path = remux(good, tmp_path / name, spoil(60))
    check(decode(path), range(60, 72))


def test_a_damaged_frame_at_the_end_costs_itself(tmp_path, good):
    path = remux(good, tmp_path / "a.mkv", spoil(TOTAL - 1))
    clip = decode(path)
    assert clip.num_damaged <= 1
    assert set(clip.frame_indices) <= set(range(TOTAL))
    assert numbers(clip) == clip.frame_indices


def test_a_packet_that_cannot_be_decoded_is_a_damaged_frame(tmp_path, good):
    path = remux(good, tmp_path / "a.mp4", lambda n, p: b"\0\0\0\1\x65" if n == 96 else p)
    check(decode(path), range(96, 108))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "flv", "ts"])
@pytest.mark.parametrize("share", [0.5, 0.94])
def test_a_cut_file_is_not_taken_for_the_whole(tmp_path, ending, share):
    codec, options = ("mpeg4", {}) if ending == "avi" else ("libx264", X264)
    # at 10 a second: 12 s, of which the cut takes more than the half second that headers are off
    source = write_numbered(
        tmp_path / f"a.{ending}", TOTAL, rate=10, size=SIZE, gop=12, codec=codec, options=options,
        container_options={"movflags": "faststart"} if ending == "mp4" else {},
    )  # fmt: skip
    data = (tmp_path / f"a.{ending}").read_bytes()
    # an AVI's index is at its end
    length = data.find(b"idx1") if ending == "avi" else len(data)
    (tmp_path / f"cut.{ending}").write_bytes(data[: int(length * share)])
    clip = decode(tmp_path / f"cut.{ending}")
    assert decode(source).num_damaged == 0
    # by their times: one may be missing where the cut falls between reordered frames
    assert numbers(clip) == tuple(round(10 * time_s) for time_s in clip.times_s)
    if ending == "ts":  # its length is not recorded
        assert clip.num_source_frames < TOTAL * (share + 0.05)
        return
    assert clip.num_source_frames == pytest.approx(TOTAL, abs=2)
    lost = sum(i > max(clip.frame_indices) for i in wanted())
    assert clip.num_damaged == pytest.approx(lost, abs=2)
    assert 0.3 < clip.num_damaged / 32 < 0.7 if share == 0.5 else 1 <= clip.num_damaged <= 5


def test_sound_longer_than_the_pictures_is_no_cut(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(20):
            grey = np.full((64, 64, 3), 10 * i, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(video.encode())
        for i in range(100):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    clip = decode(tmp_path / "a.mkv", 8)
    assert (clip.num_source_frames, clip.num_damaged) == (20, 0)


def test_nothing_sound_in_the_window_fails_by_name(tmp_path, good):
    path = remux(good, tmp_path / "a.mp4", spoil(60))
    with pytest.raises(VideoError, match=r"a\.mp4: has no frame that is not damaged"):
        decode(path, window=Window(2.4, 2.6))
    clip = decode(path, 8, Window(2.0, 4.0))
    assert clip.num_damaged > 0
    assert all(50 <= i <= 100 and not 60 <= i < 72 for i in clip.frame_indices)


def test_frames_that_lean_on_a_damaged_b_frame_alone_are_damaged_with_it(tmp_path, good):
    with av.open(good) as container:
        kinds = [(frame.pts, frame.pict_type) for frame in container.decode(video=0)]
    b = next(i for i, (_, kind) in enumerate(kinds) if i > 60 and kind == 3)
    times = sorted(time for time, _ in kinds)
    path = remux(good, tmp_path / "a.mp4", lambda n, p: spoil(n)(n, p) if p.pts == times[b] else p)
    clip = decode(path, TOTAL)
    assert b not in clip.frame_indices
    assert 1 <= clip.num_damaged <= 2
    assert numbers(clip) == clip.frame_indices


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_share_that_may_be_damaged_decides(tmp_path, good, num_workers):
    path = remux(good, tmp_path / "a.mp4", spoil(60))
    share = decode(path).num_damaged / 32
    assert 0 < share < 0.15
    found = {}
    tried = [0.0] if num_workers else [0.0, share - 0.01, share, 1.0]
    for most in tried:
        pool = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, num_workers, max_damaged=most)
        try:
            found[most] = pool.submit(Question("q", "?", path), 32).result(timeout=300)
        finally:
            pool.close()
    for most in tried[:2]:
        assert found[most].clip is None
        assert found[most].error == (
            f"{path}: 3 of 32 frames are damaged, more than data.max_damaged ({most:g}) allows"
        ), found[most].error
    for most in tried[2:]:
        check(found[most].clip, range(60, 72))


def test_the_data_module_takes_the_share(tmp_path, good):
    path = remux(good, tmp_path / "a.mp4", spoil(60))
    assert VideoQADataModule().max_damaged == 0.1
    for most in (0.0, 0.3):
        data = VideoQADataModule(
            video=path, question="?", num_workers=0, resolution=SMALL, max_damaged=most
        )
        data.setup("predict")
        try:
            (sample,) = data.load(data.questions("predict"), 32)
        finally:
            data.close()
        assert (sample.clip is None) == (most == 0.0)
        assert data.fingerprint()["max_damaged"] == most
