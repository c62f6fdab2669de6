"""Images as clips of one frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.numbered import numbers, oriented, paint
from vrts.data.datamodule import VideoQADataModule
from vrts.data.video.frames import UniformSampler, Window
from vrts.data.video.images import decode_animation, decode_image, is_image
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.types import Question, VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=112 * 112)


def save(path, size=(84, 56), mode="RGB", seed=0, **options) -> np.ndarray:
    """Save a random image and return its pixels ``[H, W, C]``."""
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_and_mirrors_as_viewers_do(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = save(tmp_path / "a.png", exif=exif)
    found = decode_image(str(tmp_path / "a.png"), SMALL).frames[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, oriented(pixels, orientation))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_ground_is_white(tmp_path, mode):
    pixels = np.zeros((56, 84, 4), np.uint8)
    pixels[:, :42, 3] = 255  # black on the left, nothing on the right
    pixels[:, 42:44, 3] = 128
    path = tmp_path / ("a.gif" if mode == "P" else "a.png")
    if mode == "P":
        image = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8), "P")
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.save(path, transparency=0)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    found = decode_image(str(path), SMALL).frames[0].numpy()
    assert (found[:, :, :40] == 0).all()
    assert (found[:, :, 46:] == 255).all()
    if mode != "P":
        assert (found[:, :, 42:44] == 127).all()  # as qwen_vl_utils composites


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_greys_of_16_bits_are_scaled(tmp_path, suffix):
    greys = np.linspace(0, 65535, 56 * 84).astype(np.uint16).reshape(56, 84)
    Image.fromarray(greys).save(tmp_path / f"a.{suffix}")
    found = decode_image(str(tmp_path / f"a.{suffix}"), SMALL).frames[0].numpy()
    assert np.array_equal(found, np.broadcast_to(greys // 257, (3, 56, 84)))
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_greys_of_unknown_range_are_refused(tmp_path, mode):
    Image.fromarray(np.full((56, 84), 70_000, np.int32 if mode == "I" else np.float32)).save(
        tmp_path / "a.tif"
    )
    with pytest.raises(VideoError, match=r"a\.tif: cannot be read as an image \(has greys"):
        decode_image(str(tmp_path / "a.tif"), SMALL)


ANIMATED = {
    "a.gif": {},
    "a.png": {},
    "first apart.png": {"default_image": True},
    "a.webp": {"lossless": True},
    "no suffix": {"format": "GIF"},
}


@pytest.mark.parametrize("name", ANIMATED)
def test_animated_pictures_are_videos(tmp_path, name):
    """At their own times, the frames being 0.1 s each, but the fourth one 1 s."""
    path, options = tmp_path / name, ANIMATED[name]
    frames = [Image.fromarray(paint(i)) for i in range(12)]
    durations = [1000 if i == 3 else 100 for i in range(12)]
    if "default_image" in options:
        Image.fromarray(paint(99)).save(
            path, save_all=True, append_images=frames, duration=durations, default_image=True
        )
    else:
        first, *others = frames
        first.save(path, save_all=True, append_images=others, duration=durations, **options)
    assert is_image(str(path))
    clip = decode_animation(str(path), 32, UniformSampler(), SMALL)
    assert numbers(clip) == clip.frame_indices == tuple(range(12))
    assert clip.num_source_frames == 12
    assert clip.times_s[3:5] == (0.3, 1.3)
    window = decode_animation(str(path), 32, UniformSampler(), SMALL, Window(0.5, 1.0))
    assert numbers(window) == (3, 3)
    pool = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, 0)
    data = VideoQADataModule(video=str(path), question="?", num_workers=0, resolution=SMALL)
    data.setup("predict")
    (asked,) = data.load(data.questions("predict"), 32)
    in_table = pool.submit(Question("1", "?", str(path)), 32).result()
    for sample in (asked, in_table):
        assert torch.equal(sample.clip.frames, clip.frames)


def test_an_animated_picture_without_durations_is_shown_at_ten_a_second(tmp_path):
    first, *others = [Image.fromarray(paint(i)) for i in range(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=0)
    clip = decode_animation(str(tmp_path / "a.gif"), 4, UniformSampler(), SMALL)
    assert (clip.fps, clip.times_s) == (10.0, (0.0, 0.1, 0.2, 0.3))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.jpg", "a.bmp", "a.tiff", "A.JPEG"])
def test_still_pictures_are_images_wherever_they_are_asked_about(tmp_path, name):
    save(tmp_path / name)
    pool = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, 0)
    found = pool.submit(Question("1", "?", str(tmp_path / name)), 32).result()
    assert found.clip.is_image
    windowed = pool.submit(Question("2", "?", str(tmp_path / name), start_s=1.0), 32).result()
    assert windowed.error == f"{tmp_path / name}: is a still image, which has no part from 1 s on"


def test_bad_files_are_named(tmp_path):
    save(tmp_path / "cut.png", size=(300, 300))
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    save(tmp_path / "narrow.png", size=(1000, 2))
    for name in ("cut", "text", "empty", "narrow", "absent"):
        with pytest.raises(VideoError, match=f"{name}.png: "):
            decode_image(str(tmp_path / f"{name}.png"), SMALL)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_pool_decodes_pictures_beside_videos(tmp_path, make_video, num_workers):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    video = make_video(tmp_path / "a.mp4")
    pool = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, num_workers)
    try:
        questions = [
            Question("1", "Which?", str(tmp_path / "a.png"), is_image=True),
            Question("2", "Which?", video),
            Question("3", "Which?", str(tmp_path / "b.png"), is_image=True),
        ]
        futures = [pool.submit(question, 4) for question in questions]
        image, clip, failed = [future.result() for future in futures]
    finally:
        pool.close()
    assert image.clip.num_frames == 1
    assert clip.clip.num_frames == 4
    assert "b.png: cannot be read as an image" in failed.error
