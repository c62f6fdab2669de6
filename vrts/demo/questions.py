"""Kinds of question about a scene, and their annotation rows in the style of Video-R1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrts.demo.scenes import COLOURS, DIRECTIONS, Scene
from vrts.types import letters

NUM_OPTIONS = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about one scene."""

    text: str
    answer: str
    evidence: tuple[int, ...] | None = None
    """Frames that show the answer; None where any sample of frames does."""


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A sort of question, to be asked about many scenes."""

    name: str  # a noun for what is asked about; it is used in the annotations and the reasoning
    ask: Callable[[Scene], Asked]
    choices: tuple[str, ...]  # possible answers, in their fixed order; options are drawn from them
    changes: bool | None = None
    """Whether the shape's colour must change (True) or must not (False) in the scene."""

    def suits(self, scene: Scene) -> bool:
        """Whether the question can be asked about a scene."""
        return self.changes is None or self.changes == scene.changes


def _object(scene: Scene) -> Asked:
    return Asked(f"What colour is the {scene.shape}?", scene.colour)


def _flash(scene: Scene) -> Asked:
    return Asked("What colour is the flash?", scene.flash_colour, scene.flash_frames)


def _first(scene: Scene) -> Asked:
    return Asked(f"What colour is the {scene.shape} first?", scene.colour)


def _last(scene: Scene) -> Asked:
    return Asked(f"What colour is the {scene.shape} last?", scene.later_colour)


def _motion(scene: Scene) -> Asked:
    return Asked(f"Which way does the {scene.shape} move?", scene.direction)


OBJECT = QuestionKind("object", _object, tuple(COLOURS), changes=False)
"""Colour of the shape, which every frame shows."""
FLASH = QuestionKind("flash", _flash, tuple(COLOURS))
"""Colour of the flash, which few sampled frames mostly miss."""
FIRST = QuestionKind("first", _first, tuple(COLOURS), changes=True)
"""Colour of the shape before it changes; needs the order of frames."""
LAST = QuestionKind("last", _last, tuple(COLOURS), changes=True)
"""Colour of the shape after it has changed; needs the order of frames."""
MOTION = QuestionKind("motion", _motion, tuple(DIRECTIONS))
"""Direction in which the shape moves; needs positions in several frames."""


def draw_options(
    kind: QuestionKind, answer: str, shuffle: bool, rng: np.random.Generator
) -> list[str]:
    """Draw option texts, the answer among them.

    Args:
        kind: gives the possible answers.
        answer: the right one.
        shuffle: any order; otherwise the order of the kind's choices, so that the letter of an
            answer depends little (with four choices: not at all) on the question.
        rng: draws the wrong options and the order.
    """
    wrong = [choice for choice in kind.choices if choice != answer]
    drawn = {answer, *(str(w) for w in rng.permutation(wrong)[: NUM_OPTIONS - 1])}
    options = [choice for choice in kind.choices if choice in drawn]
    return [str(option) for option in rng.permutation(options)] if shuffle else options


def question_row(
    problem_id: int, kind: QuestionKind, asked: Asked, options: Sequence[str], path: str
) -> dict[str, Any]:
    """One annotation row.

    ``evidence_frames`` lists the frames that show the answer, null means that any frames do;
    ``kind`` is the name of the question's kind.
    """
    names = letters(options)
    return {
        "problem_id": problem_id,
        "problem": asked.text,
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": [f"{name}. {text}" for name, text in zip(names, options, strict=True)],
        "process": "",
        "solution": f"<answer>{names[options.index(asked.answer)]}</answer>",
        "path": path,
        "data_source": "synthetic",
        "kind": kind.name,
        "evidence_frames": None if asked.evidence is None else list(asked.evidence),
    }
