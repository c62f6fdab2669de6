"""Synthetic video questions as real .mp4 files.

Each video shows a coloured shape that moves all the time, and a coloured border that flashes up
for 2 or 3 of its 32 frames. One question asks for the shape's colour, which any frame answers; the
other for the flash's, which a few sparse frames mostly miss.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

NUM_FRAMES, FPS, SIZE = 32, 8, 56
COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 190, 55),
    "blue": (45, 75, 235),
    "yellow": (240, 220, 45),
}
SHAPES = ("circle", "square", "triangle")
RADIUS, BORDER = 10, 9

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scene:
    """What happens in one video."""

    shape: str
    colour: str
    flash_colour: str
    flash_start: int
    flash_length: int
    start: tuple[float, float]
    """x and y of the shape's centre in the first frame, in pixels."""
    end: tuple[float, float]
    """x and y of the shape's centre in the last frame, in pixels."""
    background: int

    @property
    def flash_frames(self) -> list[int]:
        """Frames in which the flash is visible."""
        return list(range(self.flash_start, self.flash_start + self.flash_length))


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; all its properties are independent of each other."""
    low, high = BORDER + RADIUS, SIZE - BORDER - RADIUS
    length = int(rng.integers(2, 4))
    x0, y0, x1, y1 = (float(v) for v in rng.uniform(low, high, 4))
    return Scene(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        flash_colour=str(rng.choice(list(COLOURS))),
        flash_start=int(rng.integers(0, NUM_FRAMES - length + 1)),
        flash_length=length,
        start=(x0, y0),
        end=(x1, y1),
        background=int(rng.integers(10, 90)),
    )


def render(scene: Scene) -> Frames:
    """Draw all frames of a scene, uint8 ``[32, 56, 56, 3]``."""
    frames = np.full((NUM_FRAMES, SIZE, SIZE, 3), scene.background, dtype=np.uint8)
    ys, xs = np.mgrid[:SIZE, :SIZE]
    for index, frame in enumerate(frames):
        if index in scene.flash_frames:
            frame[:] = COLOURS[scene.flash_colour]
            frame[BORDER:-BORDER, BORDER:-BORDER] = scene.background
        progress = index / (NUM_FRAMES - 1)
        x = scene.start[0] + progress * (scene.end[0] - scene.start[0])
        y = scene.start[1] + progress * (scene.end[1] - scene.start[1])
        dx, dy = np.abs(xs - x), ys - y
        inside = {
            "circle": dx**2 + dy**2 <= RADIUS**2,
            "square": np.maximum(dx, np.abs(dy)) <= RADIUS - 1,
            "triangle": (np.abs(dy) <= RADIUS) & (dx <= (dy + RADIUS) / 2),
        }[scene.shape]
        frame[inside] = COLOURS[scene.colour]
    return frames


def write_video(path: Path, frames: Frames) -> None:
    """Encode frames as h264 in mp4."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "crf": "18", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def question_rows(index: int, scene: Scene) -> list[dict[str, object]]:
    """The two questions about a scene as Video-R1-style rows.

    ``evidence_frames`` lists the frames that show the answer; null means all of them.
    """
    names = list(COLOURS)
    options = [f"{letter}. {name}" for letter, name in zip("ABCD", names, strict=True)]
    asked = (
        ("object", f"What colour is the {scene.shape}?", scene.colour, None),
        ("flash", "What colour is the flash?", scene.flash_colour, scene.flash_frames),
    )
    return [
        {
            "problem_id": 2 * index + n,
            "problem": text,
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": options,
            "process": "",
            "solution": f"<answer>{'ABCD'[names.index(colour)]}</answer>",
            "path": f"videos/{index:05d}.mp4",
            "data_source": "synthetic",
            "kind": kind,
            "evidence_frames": evidence,
        }
        for n, (kind, text, colour, evidence) in enumerate(asked)
    ]


def make_dataset(folder: Path, num_videos: int, seed: int) -> Path:
    """Write videos and their questions; the same for the same seed.

    Args:
        folder: gets ``videos/*.mp4`` and ``questions.jsonl``.
        num_videos: two questions are asked about each.
        seed: different seeds give different videos.

    Returns:
        Path of the annotation file.
    """
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    annotations = folder / "questions.jsonl"
    with annotations.open("w") as file:
        for index in range(num_videos):
            scene = random_scene(np.random.default_rng([seed, index]))
            write_video(folder / "videos" / f"{index:05d}.mp4", render(scene))
            file.writelines(json.dumps(row) + "\n" for row in question_rows(index, scene))
    return annotations
