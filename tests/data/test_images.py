"""Pictures as clips of one frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from vrts.data.decoding import FallbackDecoder
from vrts.data.images import decode_image
from vrts.data.pyav_decoder import PyAVDecoder
from vrts.data.resolution import Resolution
from vrts.data.sampling import UniformSampler
from vrts.data.workers import DecodePool
from vrts.types import Question, VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=112 * 112)


def save(path, size=(84, 56), mode="RGB", seed=0, **options) -> np.ndarray:
    """Save a random picture and return its pixels ``[H, W, C]``."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return pixels


def test_a_picture_is_one_frame_of_its_pixels(tmp_path):
    pixels = save(tmp_path / "a.png")
    clip = decode_image(str(tmp_path / "a.png"), SMALL)
    assert clip.is_image
    assert clip.frames.dtype == torch.uint8
    assert np.array_equal(clip.frames[0].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    save(tmp_path / "a.png", mode=mode)
    assert decode_image(str(tmp_path / "a.png"), SMALL).frames.shape == (1, 3, 56, 84)


def test_orientation_and_budget_are_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save(tmp_path / "a.jpg", size=(400, 200), exif=exif)
    frames = decode_image(str(tmp_path / "a.jpg"), SMALL).frames
    _, _, height, width = frames.shape
    assert height > width
    assert height % 28 == width % 28 == 0
    assert height * width <= 112 * 112


def test_bad_files_are_named(tmp_path):
    save(tmp_path / "cut.png", size=(300, 300))
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    save(tmp_path / "narrow.png", size=(1000, 2))
    for name in ("cut", "text", "empty", "narrow", "absent"):
        with pytest.raises(VideoError, match=f"{name}.png: "):
            decode_image(str(tmp_path / f"{name}.png"), SMALL)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_pool_decodes_pictures_beside_videos(tmp_path, make_video, num_workers):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    video = make_video(tmp_path / "a.mp4")
    pool = DecodePool(FallbackDecoder([PyAVDecoder()]), UniformSampler(), SMALL, num_workers)
    try:
        questions = [
            Question("1", "Which?", str(tmp_path / "a.png"), is_image=True),
            Question("2", "Which?", video),
            Question("3", "Which?", str(tmp_path / "b.png"), is_image=True),
        ]
        futures = [pool.submit(question, 4) for question in questions]
        picture, clip, failed = [future.result() for future in futures]
    finally:
        pool.close()
    assert picture.clip.num_frames == 1
    assert clip.clip.num_frames == 4
    assert "b.png: cannot be read as a picture" in failed.error
