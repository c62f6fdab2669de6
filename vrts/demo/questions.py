"""Kinds of questions about a scene, and their annotation rows in the format of Video-R1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrts.demo.scenes import COLOURS, DIRECTIONS, Scene
from vrts.types import letters

NUM_OPTIONS = 4


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question about one scene."""

    text: str
    answer: str
    evidence: tuple[int, ...] | None = None  # frames that show the answer; None for any


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A kind of question, for many scenes."""

    name: str  # a noun, used in the annotations and the reasoning
    text: str  # with ``{shape}``
    answer: str  # attribute of the scene
    choices: tuple[str, ...] = tuple(COLOURS)  # in a fixed order; options are drawn from them
    changes: bool | None = None  # whether the shape's colour must change or must not

    def suits(self, scene: Scene) -> bool:
        """Whether the question fits a scene."""
        return self.changes is None or self.changes == scene.changes

    def question(self, scene: Scene) -> SceneQuestion:
        """Return the question about a scene."""
        evidence = scene.flash_frames if self.answer == "flash_colour" else None
        text = self.text.format(shape=scene.shape)
        return SceneQuestion(text, getattr(scene, self.answer), evidence)


# every frame shows the object; sparse samples of frames often miss the flash; first and last need
# the order of frames, and motion needs positions in several
OBJECT = QuestionKind("object", "What colour is the {shape}?", "colour", changes=False)
FLASH = QuestionKind("flash", "What colour is the flash?", "flash_colour")
FIRST = QuestionKind("first", "What colour is the {shape} first?", "colour", changes=True)
LAST = QuestionKind("last", "What colour is the {shape} last?", "later_colour", changes=True)
MOTION = QuestionKind("motion", "Which way does the {shape} move?", "direction", tuple(DIRECTIONS))


def draw_options(
    kind: QuestionKind, answer: str, shuffle: bool, rng: np.random.Generator
) -> list[str]:
    """Draw the wrong options, and shuffle them with the answer.

    Unshuffled options are in the order of the kind's choices: the letter of an answer then depends
    little (with four choices: not at all) on the question.
    """
    wrong = [choice for choice in kind.choices if choice != answer]
    drawn = {answer, *(str(w) for w in rng.permutation(wrong)[: NUM_OPTIONS - 1])}
    options = [choice for choice in kind.choices if choice in drawn]
    return [str(option) for option in rng.permutation(options)] if shuffle else options


def question_row(
    problem_id: int, kind: QuestionKind, question: SceneQuestion, options: Sequence[str], path: str
) -> dict[str, Any]:
    """Return an annotation row in the format of Video-R1, with the kind and the evidence."""
    names = letters(options)
    return {
        "problem_id": problem_id,
        "problem": question.text,
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": [f"{name}. {text}" for name, text in zip(names, options, strict=True)],
        "process": "",
        "solution": f"<answer>{names[options.index(question.answer)]}</answer>",
        "path": path,
        "data_source": "synthetic",
        "kind": kind.name,
        "evidence_frames": None if question.evidence is None else list(question.evidence),
    }
