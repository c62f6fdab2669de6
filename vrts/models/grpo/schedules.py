"""Learning rate schedules that YAML cannot say with torch's own classes.

Any of torch's, and Lightning's ``ReduceLROnPlateau``, can stand under ``model.lr_scheduler``.
"""

from __future__ import annotations

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, SequentialLR
from transformers import get_cosine_schedule_with_warmup


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
