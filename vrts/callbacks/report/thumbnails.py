"""Small images of the frames that a question was decided on."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from PIL import Image

from vrts.files.writing import replacing
from vrts.types import Clip

MOST_FRAMES = 8
"""Frames in a strip, evenly spread over those of the clip."""
FRAME_WIDTH, FRAME_HEIGHT = 172, 96
"""Box in pixels that a frame fits into."""
GAP = 2
"""Pixels between two frames."""
QUALITY = 60
"""Of the JPEG."""


def shown_frames(num_frames: int) -> list[int]:
    """Which of a clip's frames a strip has, evenly spread, first and last among them.

    Args:
        num_frames: T.
    """
    count = min(MOST_FRAMES, num_frames)
    return [int(i) for i in torch.linspace(0, num_frames - 1, count, device="cpu").round()]


def make_strip(clip: Clip) -> bytes:
    """Draw a clip's frames side by side, small, as a JPEG."""
    height, width = clip.frames.shape[-2:]
    scale = min(FRAME_WIDTH / width, FRAME_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = shown_frames(clip.num_frames)
    strip = Image.new("RGB", (len(shown) * (size[0] + GAP) - GAP, size[1]), "white")
    for place, index in enumerate(shown):
        frame = Image.fromarray(clip.frames[index].permute(1, 2, 0).contiguous().cpu().numpy())
        resized = frame.resize(size, Image.Resampling.BILINEAR)
        strip.paste(resized, (place * (size[0] + GAP), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def strip_path(folder: Path, question_id: str) -> Path:
    """Where a question's strip is kept, whatever characters its id has.

    Args:
        folder: of the run's strips.
        question_id: its id.
    """
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{digest[:20]}.jpg"


def keep_strip(folder: Path, question_id: str, clip: Clip, rank: int) -> None:
    """Write a question's strip, whole or not at all.

    Args:
        folder: of the run's strips, made where it is missing.
        question_id: its id.
        clip: frames of its deciding round.
        rank: of this process; several may write the same strip at a time.
    """
    folder.mkdir(exist_ok=True)
    path = strip_path(folder, question_id)
    with replacing(path, writer=f".rank{rank}") as file:
        file.write(make_strip(clip))
