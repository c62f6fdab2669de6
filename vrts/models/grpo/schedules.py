"""The optimizer and its learning rate schedule.

Any schedule of torch's, and Lightning's ``ReduceLROnPlateau``, can stand under
``model.lr_scheduler``; here are those that YAML cannot express with torch's own classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, SequentialLR
from transformers import get_cosine_schedule_with_warmup

from vrts.types import InputError


class SequentialSchedule(SequentialLR):
    """One schedule after the other, such as a warm-up and then a cosine.

    Torch's class takes schedules that have their optimizer already.

    Args:
        optimizer: whose learning rate is scheduled.
        schedulers: one more than there are milestones.
        milestones: steps at which the next one begins.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable], milestones: list[int]
    ) -> None:
        super().__init__(optimizer, [make(optimizer) for make in schedulers], milestones)


class CosineWithWarmup(LambdaLR):
    """Transformers' ``get_cosine_schedule_with_warmup``: up from 0, then a half cosine to 0.

    Args:
        optimizer: whose learning rate is scheduled.
        num_warmup_steps: steps up to the optimizer's learning rate.
        num_training_steps: steps in all.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_warmup_steps: NonNegativeInt,
        num_training_steps: PositiveInt,
    ) -> None:
        made = get_cosine_schedule_with_warmup(
            optimizer, int(num_warmup_steps), int(num_training_steps)
        )
        super().__init__(optimizer, made.lr_lambdas[0])


def make_optimizer(
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    parameters: Iterable[nn.Parameter],
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns: an optimizer, and its schedule by step.

    Raises:
        InputError: the optimizer or the schedule refuses one of its options.
    """
    try:
        made = optimizer(parameters)
    except (ValueError, TypeError) as error:
        raise InputError(f"model.optimizer: {error}; correct its init_args") from error
    if scheduler is None:
        return made
    try:
        schedule: Any = scheduler(made)
    except (ValueError, TypeError) as error:
        raise InputError(f"model.lr_scheduler: {error}; correct its init_args") from error
    config = {"scheduler": schedule, "interval": "step"}
    if isinstance(schedule, ReduceLROnPlateau):
        config["monitor"] = monitor_of(schedule)
    return {"optimizer": made, "lr_scheduler": config}  # type: ignore[return-value]


def monitor_of(scheduler: ReduceLROnPlateau) -> str:
    """The metric that a plateau's schedule monitors.

    Raises:
        InputError: it is torch's class, which does not know.
    """
    monitor = getattr(scheduler, "monitor", None)
    if not monitor:
        raise InputError(
            "model.lr_scheduler: torch's ReduceLROnPlateau has no metric to monitor; take "
            "lightning.pytorch.cli.ReduceLROnPlateau with monitor: val/accuracy and mode: max"
        )
    return str(monitor)
