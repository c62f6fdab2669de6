"""Going on from a checkpoint, also with other ranks or batches than those that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from vrts.data.ordering import epoch_order
from vrts.data.position import Course, Layout, from_state
from vrts.types import InputError

STAGES = ("ready", "started", "processed", "completed")
"""Of Lightning's counters."""


def go_on(
    trainer: Trainer,
    state: Mapping[str, Any],
    layout: Layout,
    ids: Sequence[str],
    seed: int,
    shuffle: bool,
) -> Course:
    """Begin where a checkpoint was made, and tell what has changed since.

    Args:
        trainer: has the counters of the checkpoint, which are set right.
        state: of the data module in the checkpoint.
        layout: of this run.
        ids: of the training questions.
        seed: of the shuffling.
        shuffle: whether the questions are shuffled.

    Raises:
        InputError: batches are of another size, and epochs are cut short by a number of them.
    """
    now = asdict(layout) | {"seed": seed, "shuffle": shuffle}
    changed = {key: f"{key} {state[key]} -> {now[key]}" for key in now if state[key] != now[key]}
    changes = ", ".join(changed.values())
    if changed.keys() & {"num_questions", "seed", "shuffle"}:
        rank_zero_warn(
            f"the training data changed since the checkpoint ({changes}): the rest of this epoch "
            "may repeat or miss questions"
        )
    if trainer.limit_train_batches != 1.0:
        if changed.keys() & {"batch_size", "world_size", "updates_per_rollout"}:
            raise InputError(
                f"--ckpt_path: {changes}, and trainer.limit_train_batches ends epochs after a "
                "number of batches that means something else now; go on with the same values, or "
                "without a limit"
            )
        return Course(layout)
    course = Course(layout, from_state(state, layout))
    _move_counters(trainer.fit_loop, course)
    if changed:
        order = epoch_order(len(ids), seed, course.start.epoch, shuffle)
        left_out = [ids[i] for i in order[course.end :]]
        named = f" ({', '.join(left_out[:10])}{', …' if len(left_out) > 10 else ''})"
        rank_zero_info(
            f"Going on with {changes}: {course.start.num_seen} of {len(ids)} questions of epoch "
            f"{course.start.epoch} are done, and the last {len(left_out)}"
            f"{named if left_out else ''} fill no batch on every rank and are left out"
        )
    return course


def _move_counters(loop: _FitLoop, course: Course) -> None:
    """Let Lightning's counters of batches and epochs say where a course begins.

    Lightning ends an epoch by the number of its batches, which depends on how many ranks there
    are. It also takes an epoch that ``max_steps`` cut short for a whole one, and would then train
    nothing more under ``max_epochs: 1``. Counters of a run that goes on as it was stay the same.
    """
    batches, epoch_batches = loop.epoch_loop.batch_progress, course.layout.num_batches
    total = course.num_batches_before
    position = course.at(total, epoch_batches)
    epoch, batch = position.epoch, total - position.epoch * epoch_batches
    is_mid_epoch = position.num_seen > 0 or position.num_repeats > 0
    if not is_mid_epoch and batches.current.ready > 0:
        batch = epoch_batches  # of the epoch before, whose end Lightning has yet to see
    for tracker, ready in ((batches.total, total), (batches.current, batch)):
        moved = ready - tracker.ready
        for stage in STAGES:
            # which of them the batch had come to when it was saved tells Lightning where to go on
            setattr(tracker, stage, getattr(tracker, stage) + moved)
    batches.is_last_batch = not is_mid_epoch
    if is_mid_epoch:
        for epochs in (loop.epoch_progress.total, loop.epoch_progress.current):
            begun, ended = dict.fromkeys(STAGES[:2], epoch + 1), dict.fromkeys(STAGES[2:], epoch)
            epochs.load_state_dict(begun | ended)
        loop.restarting = True
