"""Answers on the terminal, for single questions."""

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
from vrts.types import InputError, Prediction, Round, letters

SHOWN_TIMES = 16
"""Frames whose times are printed; the middle ones of more are left out."""


class AnswerPrinter(Callback):
    """Prints each answer with its reasoning, votes and frames."""

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
        """Raise `InputError` with the last reason if all questions failed."""
        if self._error is not None and not self._num_answered:
            raise InputError(self._error)


def answer_panel(prediction: Prediction) -> Panel:
    """Show a prediction that did not fail; no text in it is markup."""
    question, last = prediction.question, prediction.rounds[-1]
    answer = prediction.answer or "no answer"
    if (place := letters(question.options).find(answer)) >= 0:
        answer = f"{answer}. {question.options[place]}"
    parts = [Text(printable(answer), style="bold")]
    # of the first completion that gave the answer
    reasoning, _ = split_completion(last.completions[last.answers.index(prediction.answer)])
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
    title = escape(printable(question.text))
    return Panel(Group(*parts), title=title, title_align="left")


def times_text(times_s: Sequence[float]) -> str:
    """The times; of many the first and the last ones."""
    times = [f"{time_s:.2f}" for time_s in times_s]
    if len(times) > SHOWN_TIMES:
        times = [*times[: SHOWN_TIMES // 2], "…", *times[-SHOWN_TIMES // 2 :]]
    return ", ".join(times)


def votes_text(found: Round) -> str:
    """The votes of a round, the most frequent answer first."""
    votes = Counter(answer for answer in found.answers if answer is not None)
    cancelled = sum(found.cancelled)
    others = {"no answer": len(found.answers) - votes.total() - cancelled, "cancelled": cancelled}
    counts = [*votes.most_common(), *((name, count) for name, count in others.items() if count)]
    return ", ".join(f"{name}: {count}" for name, count in counts)
