"""Thumbnails: small images of the frames that a question was decided on."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from PIL import Image

from vrts.files.writing import replacing
from vrts.types import Clip

MOST_FRAMES = 8
"""Frames shown of a clip."""
FRAME_WIDTH, FRAME_HEIGHT = 172, 96
"""Box in pixels that a frame fits into."""
GAP = 2
"""Pixels between two frames."""
QUALITY = 60
"""Of the JPEG."""


def shown_frames(num_frames: int) -> list[int]:
    """Return the frames shown of T: evenly spread, first and last among them."""
    count = min(MOST_FRAMES, num_frames)
    return [int(i) for i in torch.linspace(0, num_frames - 1, count, device="cpu").round()]


def make_thumbnails(clip: Clip) -> bytes:
    """Draw a clip's frames side by side, small, as one JPEG."""
    shown = clip.frames[shown_frames(clip.num_frames)].permute(0, 2, 3, 1)  # [frames, H, W, C]
    H, W = shown.shape[1:3]
    scale = min(FRAME_WIDTH / W, FRAME_HEIGHT / H)
    width, height = max(1, round(W * scale)), max(1, round(H * scale))
    image = Image.new("RGB", (len(shown) * (width + GAP) - GAP, height), "white")
    for place, pixels in enumerate(shown.contiguous().cpu().numpy()):
        frame = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        image.paste(frame, (place * (width + GAP), 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def thumbnails_path(folder: Path, question_id: str) -> Path:
    """Return the file of a question's thumbnails, whatever characters its id has."""
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{digest[:20]}.jpg"


def write_thumbnails(folder: Path, question_id: str, clip: Clip, rank: int) -> None:
    """Write a question's thumbnails atomically; several ranks may write the same file at a time."""
    folder.mkdir(exist_ok=True)
    with replacing(thumbnails_path(folder, question_id), writer=f".rank{rank}") as file:
        file.write(make_thumbnails(clip))
