"""What the supervised warm-up teaches the embedded model to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
"""A row that `vrts.demo.questions.question_row` made."""


def completion(thought: str, letter: str) -> str:
    """Reasoning and answer in the format that the model is rewarded for."""
    return f"<think>{thought}</think><answer>{letter}</answer>"


def seen_target(row: Row, letter: str) -> str:
    """The reasoning that names an option, right or wrong, and the letter of that option."""
    return completion(f"the {row['kind']} is {_options(row)[letter]}", letter)


def warmup_target(row: Row, frame_indices: Sequence[int], rng: np.random.Generator) -> str:
    """Reasoning and answer for one question on the frames that the model sees.

    The reasoning names what is seen, and the answer looks up its letter. Where the frames do not
    show the evidence, the reasoning says so and the answer is any option: missing evidence then
    makes votes disagree, which is what sparse-to-dense prediction reacts to.

    Args:
        row: the question.
        frame_indices: frames of the video that the model sees.
        rng: draws the guess.
    """
    evidence = row["evidence_frames"]
    if evidence is None or set(evidence) & set(frame_indices):
        return seen_target(row, row["solution"].removeprefix("<answer>").removesuffix("</answer>"))
    return completion(f"no {row['kind']} is seen", str(rng.choice(list(_options(row)))))


def lookup_targets(row: Row, num_targets: int, rng: np.random.Generator) -> list[str]:
    """Targets that name different options at random, each with its letter.

    They teach that the answer is the letter of what the reasoning names, whatever that is.

    Args:
        row: the question.
        num_targets: at most as many as there are options.
        rng: draws the options.
    """
    drawn = rng.permutation(list(_options(row)))[:num_targets]
    return [seen_target(row, str(letter)) for letter in drawn]


def _options(row: Row) -> dict[str, str]:
    """Option texts by letter."""
    return dict(option.split(". ", 1) for option in row["options"])
