"""Thumbnails: the right frames, small, in complete files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vrts.callbacks.report.callback import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    GAP,
    MOST_FRAMES,
    make_thumbnails,
    shown_frames,
    thumbnails_path,
    write_thumbnails,
)
from vrts.types import Clip


def clip_of(num_frames: int, height: int = 56, width: int = 84) -> Clip:
    """Frame i is grey of level 5 * i."""
    levels = torch.arange(num_frames, dtype=torch.uint8) * 5
    frames = levels[:, None, None, None].expand(-1, 3, height, width)
    return Clip(frames, tuple(range(num_frames)), 8.0, num_frames)


def read(thumbnails: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(thumbnails))
    assert image.format == "JPEG"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("num_frames", "shown"),
    [(1, [0]), (4, [0, 1, 2, 3]), (8, list(range(8))), (36, [0, 5, 10, 15, 20, 25, 30, 35])],
)
def test_thumbnails_have_frames_from_the_first_to_the_last(num_frames, shown):
    assert shown_frames(num_frames) == shown
    thumbnails = read(make_thumbnails(clip_of(num_frames)))
    width = (thumbnails.shape[1] + GAP) / len(shown)
    assert width == int(width)
    middles = [
        thumbnails[thumbnails.shape[0] // 2, int(width * (i + 0.5)), 0] for i in range(len(shown))
    ]
    assert np.abs(np.array(middles, int) - 5 * np.array(shown)).max() <= 3


@pytest.mark.parametrize(
    ("height", "width"), [(56, 84), (720, 1280), (1280, 720), (28, 1932), (1932, 28)]
)
def test_frames_of_any_shape_fit_into_their_box(height, width):
    thumbnails = read(make_thumbnails(clip_of(2, height, width)))
    shown = (thumbnails.shape[1] - GAP) // 2
    assert shown <= FRAME_WIDTH
    assert thumbnails.shape[0] <= FRAME_HEIGHT
    assert shown == FRAME_WIDTH or thumbnails.shape[0] == FRAME_HEIGHT


def test_thumbnails_of_real_looking_frames_are_small():
    noise = torch.randint(0, 256, (128, 3, 224, 392), dtype=torch.uint8)
    thumbnails = make_thumbnails(Clip(noise, tuple(range(128)), 8.0, 128))
    assert len(thumbnails) < 120_000, "noise is the worst case"
    assert read(thumbnails).shape[1] <= MOST_FRAMES * (FRAME_WIDTH + GAP)


@pytest.mark.parametrize("id", ["q1", "../../etc/passwd", "a" * 500, "\ud800", "ü\n"])
def test_each_id_has_its_own_file(id, tmp_path):
    folder = tmp_path / "thumbnails"
    write_thumbnails(folder, id, clip_of(2), rank=0)
    path = thumbnails_path(folder, id)
    assert [path] == list(folder.iterdir())
    read(path.read_bytes())
    assert thumbnails_path(folder, id + "x") != path
