"""Folders of frames in place of videos."""

import re
from pathlib import Path

import numpy as np

from vrts.data.clips import ClipBuilder
from vrts.data.images import SUFFIXES, read_picture
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.data.windows import WHOLE, Source, Window
from vrts.types import Clip, VideoError


def decode_folder(
    path: str,
    num_frames: int,
    sampler: FrameSampler,
    resolution: Resolution,
    window: Window = WHOLE,
    fps: float | None = None,
) -> Clip:
    """Return a clip of the pictures in a folder, which are the frames of a video.

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
        VideoError: no picture, no frame rate, a damaged picture, or pictures of different sizes.
    """
    files = frame_files(path)
    if not files:
        raise VideoError(f"{path}: is a folder without pictures")
    if fps is None or not 0 < fps < float("inf"):
        raise VideoError(
            f"{path}: is a folder of frames without a frame rate; give its row a field 'fps' or "
            "set data.frames_fps"
        )
    source = Source(np.arange(len(files)) / fps, fps, len(files) / fps)
    builder = ClipBuilder(path, source, num_frames, sampler, resolution, window)
    first_shape: tuple[int, ...] | None = None
    for index in builder.wanted:
        image = read_picture(str(files[index]))
        first_shape = first_shape or image.shape
        if image.shape != first_shape:
            raise VideoError(
                f"{files[index]}: is {image.shape[1]}x{image.shape[0]}, earlier frames are "
                f"{first_shape[1]}x{first_shape[0]}"
            )
        builder.add(index, image)
    return builder.build()


def frame_files(path: str) -> list[Path]:
    """Return the pictures of a folder in the order of their frames.

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
