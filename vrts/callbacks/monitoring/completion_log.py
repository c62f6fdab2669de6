"""Keeping and showing what the model says while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vrts.files.json_lines import append_steps, keep_steps
from vrts.files.writing import check_file, make_folder
from vrts.models.grpo.rollouts import Group
from vrts.models.module import VideoQAModule
from vrts.terminal import printable

FILE_NAME = "completions.jsonl"


class CompletionLog(Callback):
    """Appends rollouts to ``completions.jsonl`` and shows some on the terminal.

    A line is ``{"step", "id", "question", "gold", "completion", "rewards": {name: value},
    "advantage"}``. Only the first process writes, its own rollouts. A run that resumes from a
    checkpoint drops what lies behind it; one that starts over, everything.

    Args:
        output_dir: folder to write to; ``trainer.default_root_dir`` where null.
        every_n_steps: optimizer steps from one rollout that is kept to the next, from step 1 on.
        num_shown: completions of the first question that are shown each time.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        every_n_steps: PositiveInt = 10,
        num_shown: NonNegativeInt = 2,
    ) -> None:
        self.output_dir = output_dir
        self.every_n_steps = int(every_n_steps)
        self.num_shown = int(num_shown)
        self._next = 1

    def results(self, trainer: Trainer) -> list[Path]:
        """Return the file."""
        return [self.path(trainer)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made, or a folder is in the place of the file.
        """
        if stage == "fit" and trainer.is_global_zero:
            make_folder(self.path(trainer).parent, "CompletionLog.output_dir")
            check_file(self.path(trainer), "CompletionLog.output_dir")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the lines of the steps that this run resumes after.

        Raises:
            InputError: the file is not one of ours.
        """
        self._next = 1
        path = self.path(trainer)
        if trainer.is_global_zero and path.exists():
            last = keep_steps(path, trainer.global_step)
            if last:
                self._next = self._after(last)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the newest rollout where its turn has come."""
        step = trainer.global_step
        groups = cast(VideoQAModule, pl_module).last_rollout
        if groups is None or step < self._next or not trainer.is_global_zero:
            return
        self._next = self._after(step)
        lines = record_lines(groups, step)
        append_steps(self.path(trainer), lines)
        if self.num_shown:
            Console().print(completion_table(lines[: self.num_shown]))

    def _after(self, step: int) -> int:
        """The step at which the rollout after that of a step is due."""
        return step + self.every_n_steps - (step - 1) % self.every_n_steps

    def path(self, trainer: Trainer) -> Path:
        """Where the lines go."""
        return Path(self.output_dir or trainer.default_root_dir) / FILE_NAME


def record_lines(groups: Sequence[Group], step: int) -> list[dict[str, Any]]:
    """Give a rollout's N completions as plain JSON values.

    Args:
        groups: of the rollout.
        step: that it was trained on in.
    """
    return [
        {
            "step": step,
            "id": group.sample.question.id,
            "question": group.sample.question.text,
            "gold": group.sample.question.gold,
            "completion": completion.text,
            "rewards": {name: float(values[n]) for name, values in group.rewards.items()},
            "advantage": float(group.advantages[n]),
        }
        for group in groups
        for n, completion in enumerate(group.completions)
    ]


def completion_table(lines: list[dict[str, Any]]) -> Table:
    """Show completions of one question."""
    first = lines[0]
    title = f"step {first['step']}: {first['question']} (right: {first['gold']})"
    table = Table(title=escape(printable(title)))
    table.add_column("completion", overflow="fold")
    table.add_column("rewards")
    table.add_column("advantage", justify="right")
    for line in lines:
        rewards = ", ".join(f"{name} {value:g}" for name, value in line["rewards"].items())
        text = escape(printable(line["completion"], None))
        table.add_row(text, rewards, f"{line['advantage'] + 0.0:+.2f}")
    return table
