"""Prompt texts: preamble, question, options and answer format."""

from __future__ import annotations

from dataclasses import dataclass

from vrts.types import InputError, Question, letters

R1_PREAMBLE = (
    "A conversation between User and Assistant. The User asks a question and the Assistant answers "
    "it. The Assistant first works out the reasoning in its mind and then gives the User the "
    "answer. The reasoning stands within <think> </think> tags and the answer within "
    "<answer> </answer> tags, like this: <think> the reasoning </think><answer> the answer "
    "</answer>."
)
"""The template of DeepSeek-R1 (arXiv 2501.12948, table 1), paraphrased."""


@dataclass(frozen=True)
class PromptTemplate:
    """Turns a question into the text of the user's turn. Any part may be empty.

    Args:
        preamble: Text before the question.
        multiple_choice: Instruction after the options of a multiple-choice question.
        numerical: Instruction after a question for a number.
        regression: Instruction after a question for a number that can be nearly right.
        ocr: Instruction after a question for text in the video.
        free_form: Instruction after a question for a short text.
        temporal_grounding: Instruction after a question for a time span.

    Example:
        >>> template = PromptTemplate(preamble="", multiple_choice="Letter only.")
        >>> print(template.render(Question("1", "Which colour?", "a.mp4", options=("red", "blue"))))
        Which colour?
        A. red
        B. blue
        Letter only.
    """

    preamble: str = R1_PREAMBLE
    multiple_choice: str = (
        "Give only the letter of the right option (A, B, C, …) within the <answer> </answer> tags."
    )
    numerical: str = "Give only a number (such as 42 or 3.14) within the <answer> </answer> tags."
    regression: str = numerical
    ocr: str = "Give the text exactly as it is written within the <answer> </answer> tags."
    free_form: str = "Give your answer as a short text within the <answer> </answer> tags."
    temporal_grounding: str = (
        "Give the start and the end in seconds (such as 12.5 to 20.0) within the <answer> "
        "</answer> tags."
    )

    def render(self, question: Question) -> str:
        """Return the text of the user's turn, without the video.

        Raises:
            InputError: more options than letters.
        """
        names = letters(question.options)
        if len(names) < len(question.options):
            raise InputError(
                f"{question.source or question.id}: {len(question.options)} options, but letters "
                f"reach only to {names[-1]}; drop some options"
            )
        options = [
            f"{name}. {text.strip()}" for name, text in zip(names, question.options, strict=True)
        ]
        instruction: str = getattr(self, question.problem_type.name.lower())
        parts = [self.preamble.strip(), question.text.strip(), *options, instruction.strip()]
        return "\n".join(part for part in parts if part)
