"""Scenes of synthetic videos, and their rendering.

A coloured shape moves steadily in one of four directions on a grey background, and may change its
colour once. A coloured border flashes for 2 or 3 of the 32 frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_FRAMES, FPS, SIZE = 32, 8, 56
"""Frames per video, frames per second, and side of a frame in pixels."""

COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 190, 55),
    "blue": (45, 75, 235),
    "yellow": (240, 220, 45),
    "purple": (190, 50, 205),
    "cyan": (50, 205, 215),
}
"""RGB of each colour, far enough apart to survive h264's halved colour resolution."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps in x and y; y grows downwards."""

RADIUS, BORDER = 10, 9
TRAVEL = 14.0  # pixels that a shape moves from the first frame to the last

Frames = NDArray[np.uint8]
Offsets = NDArray[np.float64]
Mask = NDArray[np.bool_]


SHAPES: dict[str, Callable[[Offsets, Offsets], Mask]] = {
    "circle": lambda dx, dy: dx**2 + dy**2 <= RADIUS**2,
    "square": lambda dx, dy: np.maximum(np.abs(dx), np.abs(dy)) <= RADIUS - 1,
    "triangle": lambda dx, dy: (np.abs(dy) <= RADIUS) & (np.abs(dx) <= (dy + RADIUS) / 2),
}
"""Which pixels a shape covers, from their offsets to its centre."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What happens in one video."""

    shape: str
    colour: str  # of the shape, before `change_frame`
    later_colour: str  # of the shape from then on; the same if it does not change
    change_frame: int
    flash_colour: str
    flash_start: int
    flash_length: int
    direction: str
    start: tuple[float, float]  # x and y of the shape's centre in the first frame, in pixels
    background: int  # grey level

    @property
    def changes(self) -> bool:
        """Whether the shape changes its colour."""
        return self.later_colour != self.colour

    @property
    def flash_frames(self) -> tuple[int, ...]:
        """Indices of the frames that show the flash."""
        return tuple(range(self.flash_start, self.flash_start + self.flash_length))

    def centre(self, frame: int) -> tuple[float, float]:
        """X and y of the shape's centre in a frame, in pixels."""
        distance = TRAVEL * frame / (NUM_FRAMES - 1)
        dx, dy = DIRECTIONS[self.direction]
        return self.start[0] + dx * distance, self.start[1] + dy * distance

    def shape_colour(self, frame: int) -> str:
        """The shape's colour in a frame."""
        return self.colour if frame < self.change_frame else self.later_colour


def random_scene(rng: np.random.Generator, changes: bool = False) -> Scene:
    """Draw a scene with independent properties.

    ``changes`` is whether the shape changes its colour, in the middle half of the video.
    """
    names = list(COLOURS)
    colour, other = (str(name) for name in rng.permutation(names)[:2])
    flash_length = int(rng.integers(2, 4))
    direction = str(rng.choice(list(DIRECTIONS)))
    # the path stays inside the border: draw its middle, then go back half the way
    margin = BORDER + RADIUS + TRAVEL / 2
    x, y = (float(v) for v in rng.uniform(margin, SIZE - 1 - margin, 2))
    dx, dy = DIRECTIONS[direction]
    return Scene(
        shape=str(rng.choice(list(SHAPES))),
        colour=colour,
        later_colour=other if changes else colour,
        change_frame=int(rng.integers(NUM_FRAMES // 4, 3 * NUM_FRAMES // 4 + 1)),
        flash_colour=str(rng.choice(names)),
        flash_start=int(rng.integers(0, NUM_FRAMES - flash_length + 1)),
        flash_length=flash_length,
        direction=direction,
        start=(x - dx * TRAVEL / 2, y - dy * TRAVEL / 2),
        background=int(rng.integers(10, 90)),
    )


def render(scene: Scene) -> Frames:
    """Draw the frames of a scene, uint8 ``[T, H, W, C]``, RGB."""
    frames = np.full((NUM_FRAMES, SIZE, SIZE, 3), scene.background, dtype=np.uint8)
    flash = frames[list(scene.flash_frames)]
    flash[:] = COLOURS[scene.flash_colour]
    flash[:, BORDER:-BORDER, BORDER:-BORDER] = scene.background
    frames[list(scene.flash_frames)] = flash
    covers = SHAPES[scene.shape]
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    for index, frame in enumerate(frames):
        x, y = scene.centre(index)
        frame[covers(xs - x, ys - y)] = COLOURS[scene.shape_colour(index)]
    return frames
