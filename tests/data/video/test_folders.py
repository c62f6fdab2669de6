"""Folders of frames in place of videos."""

import numpy as np
import pytest
from PIL import Image

from tests.data.numbered import numbers, paint
from vrts.data.video.frames import WHOLE, UniformSampler, Window
from vrts.data.video.images import decode_folder, frame_files
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.types import Question, VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)


def make_folder(folder, count=30, name="{}.jpg"):
    folder.mkdir()
    for i in range(count):
        Image.fromarray(paint(i)).save(folder / name.format(i))
    return str(folder)


def decode(path, num_frames=8, window=WHOLE, fps=10.0):
    return decode_folder(path, num_frames, UniformSampler(), SMALL, window, fps)


@pytest.mark.parametrize("name", ["{}.jpg", "frame_{:05d}.png", "Frame {}.JPEG", "a{}b.webp"])
def test_frames_come_in_the_order_of_their_numbers(tmp_path, name):
    path = make_folder(tmp_path / "clip é", name=name)
    for extra in ("notes.txt", ".hidden.jpg", "Thumbs.db"):
        (tmp_path / "clip é" / extra).write_text("no frame")
    clip = decode(path)
    assert clip.frame_indices == tuple(UniformSampler().indices(30, 8, 10.0))
    assert numbers(clip) == clip.frame_indices
    assert (clip.fps, clip.num_source_frames, clip.times_s[-1]) == (10.0, 30, 2.9)
    window = decode(path, 4, Window(1.0, 2.0))
    assert numbers(window) == (10, 13, 17, 20)
    assert window.num_source_frames == 11


def test_names_are_ordered_naturally(tmp_path):
    for name in ("10.jpg", "9.jpg", "1.jpg", "01.jpg", "b2.jpg", "B10.jpg", "x.jpg"):
        (tmp_path / name).touch()
    found = [file.name for file in frame_files(str(tmp_path))]
    assert found == ["01.jpg", "1.jpg", "9.jpg", "10.jpg", "b2.jpg", "B10.jpg", "x.jpg"]


def test_bad_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty: is a folder without images"):
        decode(str(tmp_path / "empty"))
    path = make_folder(tmp_path / "clip", 8)
    for fps in (None, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(VideoError, match=r"clip: .*field 'fps' or set data\.frames_fps"):
            decode(path, fps=fps)
    with pytest.raises(VideoError, match="clip: has no frame from 5 s"):
        decode(path, window=Window(5.0))
    Image.fromarray(paint(3, 80, 48)).save(tmp_path / "clip" / "3.jpg")
    with pytest.raises(VideoError, match=r"3\.jpg: is 80x48, earlier frames are 160x96"):
        decode(path)
    (tmp_path / "clip" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"3\.jpg: cannot be read as an image"):
        decode(path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_pool_takes_folders_with_their_rates(tmp_path, num_workers):
    path = make_folder(tmp_path / "clip", 12)
    pool = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, num_workers, frames_fps=3.0)
    try:
        asked = [Question("1", "?", path), Question("2", "?", path, metadata={"fps": 6})]
        first, second = [pool.submit(q, 4).result(timeout=300) for q in asked]
    finally:
        pool.close()
    assert (first.clip.fps, second.clip.fps) == (3.0, 6.0)
    assert first.clip.sampled_fps * 2 == second.clip.sampled_fps
    assert np.array_equal(first.clip.frames, second.clip.frames)
