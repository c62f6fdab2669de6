"""Answers on the terminal, for questions that are asked one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning import Callback, LightningModule, Trainer
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from vrts.answers import split_completion
from vrts.terminal import printable
from vrts.types import InputError, Prediction, Question, Round, letters

SHOWN_TIMES = 16
"""Frames whose times are printed; the other ones of a longer row are between them."""


class AnswerPrinter(Callback):
    """Prints each answer with its reasoning, its votes and the frames that it is from."""

    def __init__(self) -> None:
        self._num_answered = 0
        self._error: str | None = None

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Print answers."""
        for prediction in predictions:
            if prediction.error is None:
                Console().print(answer_panel(prediction))
                self._num_answered += 1
            else:
                self._error = prediction.error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make a run without any answer a failure.

        Raises:
            InputError: all questions failed; the message has the last reason.
        """
        if self._error is not None and not self._num_answered:
            raise InputError(self._error)


def answer_panel(prediction: Prediction) -> Panel:
    """Show a prediction that did not fail; all texts are shown as they are, without markup.

    Args:
        prediction: with one round or more.
    """
    last = prediction.rounds[-1]
    parts = [Text(printable(answer_text(prediction.answer, prediction.question)), style="bold")]
    reasoning = reasoning_for(prediction.answer, last)
    if reasoning:
        parts += [Text(), Text(printable(reasoning, None), style="italic")]
    parts.append(Text())
    for number, found in enumerate(prediction.rounds, start=1):
        votes = printable(votes_text(found))
        parts.append(Text(f"round {number}: {found.num_frames} frames; {votes}"))
    if last.times_s:
        parts.append(Text(f"frames at {times_text(last.times_s)} s", style="dim"))
    if last.num_damaged:
        parts.append(
            Text(f"{last.num_damaged} frames are damaged; the nearest sound ones are used")
        )
    title = escape(printable(prediction.question.text))
    return Panel(Group(*parts), title=title, title_align="left")


def answer_text(answer: str | None, question: Question) -> str:
    """An answer for people: of a multiple choice the letter with its option."""
    if answer is None:
        return "no answer"
    place = letters(question.options).find(answer)
    return answer if place < 0 else f"{answer}. {question.options[place]}"


def reasoning_for(answer: str | None, found: Round) -> str | None:
    """Reasoning of the first completion that gave an answer, or None where it has none."""
    for text, given in zip(found.completions, found.answers, strict=True):
        if given == answer:
            return split_completion(text)[0]
    return None


def times_text(times_s: Sequence[float]) -> str:
    """Times for people: of very many the first and the last ones."""
    times = [f"{time_s:.2f}" for time_s in times_s]
    if len(times) > SHOWN_TIMES:
        times = [*times[: SHOWN_TIMES // 2], "…", *times[-SHOWN_TIMES // 2 :]]
    return ", ".join(times)


def votes_text(found: Round) -> str:
    """How the completions voted, the most frequent answer first."""
    votes = Counter(answer for answer in found.answers if answer is not None)
    gone = sum(found.cancelled)
    silent = len(found.answers) - votes.total() - gone
    parts = [f"{answer}: {count}" for answer, count in votes.most_common()]
    parts += [f"no answer: {silent}"] if silent else []
    parts += [f"cancelled: {gone}"] if gone else []
    return ", ".join(parts)
