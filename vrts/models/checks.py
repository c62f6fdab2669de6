"""What training needs, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.models.rewards import Reward
from vrts.models.temporal import TemporalReward
from vrts.types import InputError, Question


def check_comparable(num_generations: int) -> None:
    """Refuse groups of one.

    Args:
        num_generations: G.

    Raises:
        InputError: a completion has no other one to be compared with.
    """
    if num_generations < 2:
        raise InputError(
            f"model.num_generations is {num_generations}; GRPO compares completions of "
            "one question, so give 2 or more"
        )


def check_rewards(rewards: Sequence[Reward], temporal: TemporalReward | None) -> None:
    """Refuse to train without rewards, and two of one name.

    Args:
        rewards: of completions.
        temporal: has a name of its own.

    Raises:
        InputError: there is none, or the temporal one's name is taken.
    """
    if temporal and temporal.name in [reward.name for reward in rewards]:
        raise InputError(
            f"model.rewards has one of the name {temporal.name!r}, which is that of "
            "model.temporal; rename it or set model.temporal to null"
        )
    if not rewards:
        raise InputError("model.rewards is empty; give at least one reward")


def check_updates(updates_per_rollout: int, accumulate_grad_batches: int) -> None:
    """Refuse several updates of a rollout within one optimizer step.

    Args:
        updates_per_rollout: of the module.
        accumulate_grad_batches: of the Trainer.

    Raises:
        InputError: both are above 1.
    """
    if updates_per_rollout > 1 and accumulate_grad_batches > 1:
        raise InputError(
            f"model.updates_per_rollout is {updates_per_rollout} and "
            f"trainer.accumulate_grad_batches {accumulate_grad_batches}: an optimizer step would "
            "take the same batch several times; set one of them to 1, or raise data.batch_size"
        )


def warn_of_checkpoints_within_a_step(trainer: Trainer) -> None:
    """Tell of regular checkpoints that may be of the middle of an optimizer step.

    Lightning's ModelCheckpoint asks after each batch; gradients that are accumulated so far are
    in no checkpoint. In a run that goes on it doesn't know that its newest step is saved already.

    Args:
        trainer: of a run that trains.
    """
    if trainer.accumulate_grad_batches == 1:
        return
    names = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint)
        # one that decides otherwise when to save, as StepCheckpoint does, is fine
        and type(callback).on_train_batch_end is ModelCheckpoint.on_train_batch_end
        and (callback._every_n_train_steps or callback._train_time_interval is not None)
    ]
    if names:
        rank_zero_warn(
            f"trainer.callbacks: {names[0]} with every_n_train_steps or train_time_interval may "
            "save in the middle of an optimizer step, since trainer.accumulate_grad_batches is "
            f"{trainer.accumulate_grad_batches}; a run that goes on from such a checkpoint comes "
            "to other values. Put vrts.callbacks.step_checkpoint.StepCheckpoint (every_n_steps) "
            "in its place"
        )


def check_reference(beta: float, has_reference: bool) -> None:
    """Refuse a KL penalty without anything to hold on to.

    Args:
        beta: weight of the penalty.
        has_reference: whether a reference is configured.

    Raises:
        InputError: there is a penalty and no reference.
    """
    if beta > 0 and not has_reference:
        raise InputError(
            f"model.objective has beta {beta} but model.reference is null; set "
            "model.reference to vrts.models.reference.AdapterOff (LoRA) or FrozenCopy (full), "
            "or beta to 0"
        )


def check_groups(num_groups: int | None, batch_size: int) -> None:
    """Refuse more groups than a batch has questions.

    Args:
        num_groups: that an update is made from; None takes all.
        batch_size: questions of a batch.

    Raises:
        InputError: there are fewer questions.
    """
    if num_groups is not None and num_groups > batch_size:
        raise InputError(
            f"model.num_groups is {num_groups}, but a batch has {batch_size} questions; "
            "set data.batch_size to a multiple of it: the further ones stand in for groups "
            "whose rewards are all equal"
        )


def check_validation(
    trainer: Trainer, questions: Sequence[Question] | None, updates_per_rollout: int
) -> None:
    """Refuse a validation that finds nothing, or comes in the middle of an optimizer step.

    Args:
        trainer: of a run that trains.
        questions: of ``data.val``; None without a reader.
        updates_per_rollout: of the module.

    Raises:
        InputError: a callback watches what is not validated; no right answer is known; Lightning's
            interval, which counts batches, is no whole number of optimizer steps.
    """
    watching = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if str(getattr(callback, "monitor", None)).startswith("val/")
    ]
    if questions is None or trainer.limit_val_batches == 0:
        if watching:
            raise InputError(
                f"trainer.callbacks: {watching[0]} watches val/accuracy, but nothing is validated; "
                "give data.val a reader (and trainer.limit_val_batches not 0)"
            )
        return
    if all(question.gold is None for question in questions):
        raise InputError(
            f"data.val: none of its {len(questions)} questions has an answer, so that there is no "
            "accuracy; give questions whose right answers are known, or no data.val"
        )
    interval = trainer.val_check_interval
    unit = trainer.accumulate_grad_batches * updates_per_rollout
    if isinstance(interval, int) and interval % unit:
        raise InputError(
            f"trainer.val_check_interval is {interval} batches, but {unit} of them belong together "
            "(trainer.accumulate_grad_batches or model.updates_per_rollout); give a multiple, such "
            f"as {max(round(interval / unit), 1) * unit}"
        )


def check_validation_comes(trainer: Trainer) -> None:
    """Refuse a run that ends before its first validation.

    Args:
        trainer: that has its data.

    Raises:
        InputError: it has questions to validate with, but fewer batches than the interval.
    """
    interval = trainer.val_check_batch
    if not trainer.enable_validation or trainer.check_val_every_n_epoch is not None:
        return
    if interval is None or trainer.max_epochs is None:
        return
    limits = []
    if trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * int(trainer.num_training_batches))
    if trainer.max_steps >= 0:
        limits.append(trainer.max_steps * trainer.accumulate_grad_batches)
    if limits and min(limits) < interval:
        raise InputError(
            f"trainer.val_check_interval is {int(interval)} batches, but the run has "
            f"{min(limits)}; give fewer, and count trainer.accumulate_grad_batches a step"
        )
