"""Every kind of damaged video, through the real decode workers with a deadline.

Each comes out right or fails by name, in bounded time, and the worker pool lives on.
"""

import random
import time

import av
import numpy as np
import pytest

from tests.data.numbered import numbers, remux, write_numbered
from vrts.data.video.frames import UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.types import Question

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def pool():
    made = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, 1, DEADLINE_S)
    yield made
    made.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a sound file, its index at its head."""
    folder = tmp_path_factory.mktemp("good")
    path = write_numbered(
        folder / "a.mp4", 90, size=(320, 192), container_options={"movflags": "faststart"}
    )
    return (folder / path).read_bytes()


def result(pool, path):
    """The sample of a file; an error must name it."""
    began = time.monotonic()
    sample = pool.submit(Question("q", "?", str(path)), 8).result(timeout=2 * DEADLINE_S)
    assert time.monotonic() - began < 2 * DEADLINE_S
    assert (sample.clip is None) == (sample.error is not None)
    if sample.error is not None:
        assert sample.error.startswith(f"{path}: "), sample.error
        assert "\n" not in sample.error
    return sample


def audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame) + stream.encode())


FAILS = {
    "empty.mp4": lambda path, data: path.write_bytes(b""),
    "text.mp4": lambda path, data: path.write_text("no video at all\n" * 50),
    "zeros.mp4": lambda path, data: path.write_bytes(bytes(len(data))),
    "noise.mp4": lambda path, data: path.write_bytes(random.Random(0).randbytes(len(data))),
    "html.webm": lambda path, data: path.write_text("<!doctype html><title>404</title>"),
    "audio.m4a": lambda path, data: audio(path),
    "no head.mp4": lambda path, data: path.write_bytes(data[len(data) // 3 :]),
    "no index.mp4": lambda path, data: path.write_bytes(data.replace(b"moov", b"lost")),
    "header only.mp4": lambda path, data: path.write_bytes(data[: data.find(b"mdat") + 4]),
    "half.mp4": lambda path, data: path.write_bytes(data[: len(data) * 6 // 10]),
    "dangling.mp4": lambda path, data: path.symlink_to(path.with_name("nowhere.mp4")),
    "loop.mp4": lambda path, data: path.symlink_to(path),
    "folder.mp4": lambda path, data: path.mkdir(),
    "absent é 视频.mp4": lambda path, data: None,
}


@pytest.mark.parametrize("name", FAILS)
def test_what_cannot_be_decoded_fails_by_name(tmp_path, pool, good, name):
    path = tmp_path / name
    FAILS[name](path, good)
    assert result(pool, path).clip is None


RIGHT = {
    "names with  spaces, é, 视频 and 'quotes' & %20.mp4": {},
    "one frame.mp4": {"num_frames": 1},
    "16x16.mp4": {"size": (16, 16)},
    "1920x32.mp4": {"size": (1920, 32), "num_frames": 12},
    "two.mkv": {"num_frames": 2},
}


@pytest.mark.parametrize("name", RIGHT)
def test_odd_but_sound_videos_come_out_right(tmp_path, pool, name):
    sample = result(pool, write_numbered(tmp_path / name, **RIGHT[name]))
    assert sample.error is None
    assert numbers(sample.clip) == sample.clip.frame_indices
    assert sample.clip.num_source_frames == RIGHT[name].get("num_frames", 60)


@pytest.mark.parametrize("seed", range(8))
def test_bit_rot_ends_in_a_clip_or_a_name(tmp_path, pool, good, seed):
    """In the images, concealed as players do it, or anywhere in the file."""
    rng = random.Random(seed)
    data = bytearray(good)
    first = data.find(b"mdat") + 8 if seed % 2 else 0
    for _ in range(3 ** (seed // 2 + 1)):
        data[rng.randrange(first, len(data))] = rng.randrange(256)
    path = tmp_path / f"rot {seed}.mp4"
    path.write_bytes(data)
    sample = result(pool, path)
    if sample.clip is not None:
        assert sample.clip.num_frames % 2 == 0
        assert sample.clip.frame_indices[-1] < sample.clip.num_source_frames


def test_packets_missing_in_the_middle(tmp_path, pool):
    options = {"bf": "0", "x264-params": "scenecut=0"}
    path = remux(
        write_numbered(tmp_path / "good.mp4", 90, options=options), tmp_path / "gap.mkv",
        lambda number, packet: None if 36 <= number < 48 else packet,
    )  # fmt: skip
    sample = result(pool, path)
    assert sample.error is None
    kept = [*range(36), *range(48, 90)]
    assert numbers(sample.clip) == tuple(kept[i] for i in sample.clip.frame_indices)


@pytest.mark.slow
def test_real_videos_and_the_pool_after_all_of_this(shared, tmp_path, pool):
    for path in sorted(path for path in (shared / "videos").iterdir() if path.is_file()):
        sample = result(pool, path)
        sound = path.suffix != ".md" and path.stem != "corrupted"
        assert (sample.error is None) == sound, (path, sample.error)
    assert result(pool, write_numbered(tmp_path / "last.mp4")).error is None
