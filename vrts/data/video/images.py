"""Images: still ones as clips of one frame, animated ones and folders of frames as videos."""

import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from vrts.data.video.decoder import ClipBuilder, check_video_file, error_context, resize_frame
from vrts.data.video.frames import WHOLE, FrameSampler, Source, Window
from vrts.data.video.resolution import Resolution
from vrts.types import Clip, VideoError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
"""Of images that are never videos; those of `ANIMATED` are recognised by their first bytes."""
ANIMATED = (b"GIF8", b"\x89PNG\r\n\x1a\n", b"RIFF")
"""First bytes of GIF, PNG and WebP files; an AVI file begins with RIFF too."""
UNSET_MS, DEFAULT_MS = 20.0, 100.0
"""A shorter duration of a frame in an animated image means none, and how long players show it."""
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Raised by Pillow for damaged files."""


def is_image(path: str) -> bool:
    """Whether a file is an image, by its suffix or its first bytes; raises OSError."""
    if not os.path.isfile(path):
        return False
    with Path(path).open("rb") as file:
        head = file.read(12)
    is_avi = head.startswith(b"RIFF") and head[8:] != b"WEBP"
    return (head.startswith(ANIMATED) and not is_avi) or Path(path).suffix.lower() in SUFFIXES


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return an image as in a viewer, uint8 ``[H, W, 3]``.

    Rotated by its EXIF data, on white where it is transparent (as in qwen_vl_utils), and 16-bit
    greys scaled to 8 bits. Raises `ValueError` for pixels of unknown range.
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
    """Return an image, or the first frame of an animated one, uint8 ``[H, W, 3]``.

    Raises:
        VideoError: the file is not an image, or is damaged.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(file)
    except IMAGE_ERRORS as error:
        raise VideoError(f"{path}: cannot be read as an image ({error})") from error


def decode_image(path: str, resolution: Resolution) -> Clip:
    """Return an image, of any format that Pillow reads, as a clip of one frame.

    Raises:
        VideoError: the file is not an image, is damaged or too narrow.
    """
    check_video_file(path)
    image = read_image(path)
    with error_context(path):
        size = resolution.size(image.shape[0], image.shape[1], num_frames=1)
    frame = torch.from_numpy(image).permute(2, 0, 1)  # [C, H, W]
    return Clip(resize_frame(frame, *size)[None], (0,), fps=1.0, num_source_frames=1)


def decode_animation(
    path: str,
    num_frames: int,
    sampler: FrameSampler,
    resolution: Resolution,
    window: Window = WHOLE,
) -> Clip:
    """Return an animated image as a clip, a still one as `decode_image`.

    Raises:
        VideoError: the file is not an image, is damaged or too narrow, or the window is empty.
    """
    try:
        with Image.open(path) as file:
            if file.format not in ("GIF", "PNG", "WEBP") or not getattr(file, "is_animated", False):
                if window != WHOLE:
                    part = f"part from {window.start_s:g} s on"
                    raise VideoError(f"{path}: is a still image, which has no {part}")
                return decode_image(path, resolution)
            # a PNG may begin with an image for viewers without support of animation
            first = int(bool(file.info.get("default_image")))
            durations_ms = []
            for index in range(first, getattr(file, "n_frames", 1)):
                file.seek(index)
                file.load()  # only then does WebP have the duration
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
    except IMAGE_ERRORS as error:
        raise VideoError(f"{path}: cannot be read as an image ({error})") from error


def decode_folder(
    path: str,
    num_frames: int,
    sampler: FrameSampler,
    resolution: Resolution,
    window: Window = WHOLE,
    fps: float | None = None,
) -> Clip:
    """Return a clip of a folder's images (`frame_files`), see `Decoder.decode`.

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
    """Return the images of a folder in natural order: ``2.jpg`` before ``10.jpg``.

    Hidden files are left out. Raises `VideoError` if the folder cannot be read.
    """
    try:
        files = [file for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    return sorted((file for file in files if not file.name.startswith(".")), key=_natural)


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key of text and numbers in turn, then of plain text (01 and 1)."""
    parts = re.split(r"(\d+)", file.name.casefold(), flags=re.ASCII)
    order = [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
    return order, file.name
