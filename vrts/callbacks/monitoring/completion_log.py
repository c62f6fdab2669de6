"""Keeping and showing what the model writes while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vrts.callbacks.results import RunFile
from vrts.files.json_lines import append_steps, keep_steps
from vrts.models.grpo.rollouts import Group
from vrts.models.module import VideoQAModule
from vrts.terminal import printable


class CompletionLog(RunFile):
    """Appends rollouts to ``completions.jsonl`` and shows some on the terminal.

    A line is ``{"step", "id", "question", "gold", "completion", "rewards": {name: value},
    "advantage"}``. Only the first process writes, its own rollouts. A run that resumes from a
    checkpoint drops the later lines; one that starts over, all of them.

    Args:
        every_n_steps: n; rollouts of optimizer steps 1, 1 + n, 1 + 2n and so on are kept.
        num_shown: completions of the first question that are shown each time.
    """

    file_name = "completions.jsonl"

    def __init__(
        self,
        output_dir: str | None = None,
        every_n_steps: PositiveInt = 10,
        num_shown: NonNegativeInt = 2,
    ) -> None:
        super().__init__(output_dir)
        self.every_n_steps = int(every_n_steps)
        self.num_shown = int(num_shown)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the lines of the steps before; raises `InputError` if it did not write them."""
        if trainer.is_global_zero and self.path(trainer).exists():
            keep_steps(self.path(trainer), trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the rollout of every n-th step, from step 1 on."""
        step, groups = trainer.global_step, cast(VideoQAModule, pl_module).last_rollout
        is_due = trainer.is_global_zero and (step - 1) % self.every_n_steps == 0
        if not is_due or groups is None:  # None without a usable video
            return
        lines = rollout_lines(groups, step)
        append_steps(self.path(trainer), lines)
        if self.num_shown:
            Console().print(completion_table(lines[: self.num_shown]))


def rollout_lines(groups: Sequence[Group], step: int) -> list[dict[str, Any]]:
    """Return the N completions of a step's rollout as plain JSON values."""
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
        table.add_row(text, rewards, f"{line['advantage'] + 0.0:+.2f}")  # no -0.00
    return table
