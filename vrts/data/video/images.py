"""Images: still ones as clips of one frame, animated ones as videos."""

import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from vrts.data.video.clips import ClipBuilder, resize_frame
from vrts.data.video.decoder import check_video_file
from vrts.data.video.frames import WHOLE, FrameSampler, Source, Window
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, VideoError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
"""Of images that are never videos; files of `ANIMATED` are known by their first bytes."""
ANIMATED = (b"GIF8", b"\x89PNG\r\n\x1a\n", b"RIFF")
"""How GIF, PNG and WebP files begin, the last one like AVI's."""
UNSET_MS = 20.0
"""Frames of animated images that are shown for less have no time set,"""
DEFAULT_MS = 100.0
"""and players show them for this long."""

PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for damaged files."""


def is_image(path: str) -> bool:
    """Whether a file is an image, by its ending or, of a kind that may be animated, its content.

    Raises:
        OSError: it cannot be read.
    """
    # not Path.is_file, which raises for a name that no file can have
    if not os.path.isfile(path):  # noqa: PTH113
        return False
    with Path(path).open("rb") as file:
        head = file.read(12)
    is_avi = head.startswith(b"RIFF") and head[8:] != b"WEBP"
    return (head.startswith(ANIMATED) and not is_avi) or Path(path).suffix.lower() in SUFFIXES


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return an image as a viewer shows it, uint8 ``[H, W, 3]``.

    Turned as its EXIF data tell, on white where it is transparent (as qwen_vl_utils does), and
    greys of 16 bits scaled to 8.

    Raises:
        ValueError: pixels whose range nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        greys = np.asarray(image, dtype=np.int64)
        if greys.min() < 0 or greys.max() > 65535:
            raise ValueError("has greys of 32 bits; convert it to 8 or 16")
        image = Image.fromarray((greys // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("has greys in floating point; convert it to 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_image(path: str) -> npt.NDArray[np.uint8]:
    """Return an image, of an animated one the first frame, uint8 ``[H, W, 3]``.

    Raises:
        VideoError: the file is not an image, or is damaged.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(file)
    except PICTURE_ERRORS as error:
        raise VideoError(f"{path}: cannot be read as an image ({error})") from error


def decode_image(path: str, resolution: Resolution) -> Clip:
    """Return an image as a clip of one frame.

    Args:
        path: Image file, of any format that Pillow reads.
        resolution: Chooses the size; the budget of one frame.

    Raises:
        VideoError: the file is not an image, is damaged or too narrow.
    """
    check_video_file(path)
    image = read_image(path)
    try:
        size = resolution.size(image.shape[0], image.shape[1], num_frames=1)
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    frame = torch.from_numpy(image).permute(2, 0, 1)
    return Clip(resize_frame(frame, *size)[None], (0,), fps=1.0, num_source_frames=1)


def decode_animation(
    path: str,
    num_frames: int,
    sampler: FrameSampler,
    resolution: Resolution,
    window: Window = WHOLE,
) -> Clip:
    """Return an animated image as a clip of its frames, a still one as `decode_image` does.

    Raises:
        VideoError: the file is not an image, is damaged or too narrow, or the window is empty.
    """
    try:
        with Image.open(path) as file:
            if file.format not in ("GIF", "PNG", "WEBP") or not getattr(file, "is_animated", False):
                if window != WHOLE:
                    since = f"from {window.start_s:g} s on"
                    raise VideoError(f"{path}: is a still image, which has no part {since}")
                return decode_image(path, resolution)
            # a PNG may begin with an image for viewers that do not know of animated ones
            first = int(bool(file.info.get("default_image")))
            durations_ms = []
            for index in range(first, getattr(file, "n_frames", 1)):
                file.seek(index)
                file.load()  # WebP tells then
                given = float(file.info.get("duration") or 0)
                durations_ms.append(given if given >= UNSET_MS else DEFAULT_MS)
            ends_s = np.cumsum(durations_ms) / 1000
            fps = len(ends_s) / float(ends_s[-1])
            source = Source(np.concatenate([[0.0], ends_s[:-1]]), fps, float(ends_s[-1]))
            builder = ClipBuilder(path, source, num_frames, sampler, resolution, window)
            for index in builder.wanted:
                file.seek(first + index)
                builder.add(index, to_rgb(file))
            return builder.build()
    except PICTURE_ERRORS as error:
        raise VideoError(f"{path}: cannot be read as an image ({error})") from error


def decode_folder(
    path: str,
    num_frames: int,
    sampler: FrameSampler,
    resolution: Resolution,
    window: Window = WHOLE,
    fps: float | None = None,
) -> Clip:
    """Return a clip of the images in a folder, which are the frames of a video.

    They are in the order of their names, numbers in them by value: ``2.jpg`` before ``10.jpg``.
    Other files and hidden ones are left out.

    Args:
        path: The folder.
        num_frames: Frames asked for; the sampler decides how many there are.
        sampler: Chooses the frames.
        resolution: Chooses their size.
        window: Part of the video that frames are chosen from.
        fps: Frames a second.

    Raises:
        VideoError: no image, no frame rate, a damaged image, or images of different sizes.
    """
    files = frame_files(path)
    if not files:
        raise VideoError(f"{path}: is a folder without images")
    if fps is None or not 0 < fps < float("inf"):
        raise VideoError(
            f"{path}: is a folder of frames without a frame rate; give its row a field 'fps' or "
            "set data.frames_fps"
        )
    source = Source(np.arange(len(files)) / fps, fps, len(files) / fps)
    builder = ClipBuilder(path, source, num_frames, sampler, resolution, window)
    first_shape: tuple[int, ...] | None = None
    for index in builder.wanted:
        image = read_image(str(files[index]))
        first_shape = first_shape or image.shape
        if image.shape != first_shape:
            raise VideoError(
                f"{files[index]}: is {image.shape[1]}x{image.shape[0]}, earlier frames are "
                f"{first_shape[1]}x{first_shape[0]}"
            )
        builder.add(index, image)
    return builder.build()


def frame_files(path: str) -> list[Path]:
    """Return the images of a folder in the order of their frames.

    Raises:
        VideoError: the folder cannot be read.
    """
    try:
        files = [file for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    return sorted((file for file in files if not file.name.startswith(".")), key=_natural)


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Order by text and numbers in turn; by plain text where those are equal (01 and 1)."""
    parts = re.split(r"(\d+)", file.name.casefold(), flags=re.ASCII)
    order = [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
    return order, file.name
