"""Checks of options and data, made before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.models.rewards.base import check_all
from vrts.types import InputError, Question

if TYPE_CHECKING:
    from vrts.models.module import VideoQAModule


def check_step(trainer: Trainer) -> None:
    """Refuse options of the Trainer in whose place the data or the model has one.

    Called before `fit`, which has a message of its own for them.

    Raises:
        InputError: one of them is given.
    """
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but a batch is "
            "an optimizer step: give the questions of a step on each rank as data.batch_size, and "
            "those of one forward and backward, which bound the memory, as model.micro_batch_size"
        )
    if trainer.gradient_clip_val or trainer.gradient_clip_algorithm is not None:
        raise InputError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}, but the model clips its "
            "gradient itself; set model.max_grad_norm instead"
        )


def check_context_length(module: VideoQAModule, data: Any, is_fit: bool) -> None:
    """Warn of a number of frames that no prompt has room for.

    Counted are video tokens, the prompt's own text and timestamps, and the completion; a question
    adds its own to them.

    Args:
        module: with its plan.
        data: the data module; others than vrts's own are left alone.
        is_fit: whether the run trains.

    Raises:
        InputError: the model or its processor is not there.
    """
    policy = module.policy
    resolution, limit = getattr(data, "resolution", None), policy.context_length()
    if resolution is None or limit is None:
        return
    levels = module.plan.levels
    numbers = [("will fail", data.num_frames)] if is_fit or not levels else []
    for level, num_frames in enumerate(levels):
        numbers.append(("are decided at the level before" if level else "will fail", num_frames))
    for outcome, num_frames in numbers:
        num_tokens = resolution.fewest_tokens(num_frames) + policy.fewest_text_tokens(num_frames)
        if num_tokens + module.max_new_tokens > limit:
            rank_zero_warn(
                f"a prompt with {num_frames} frames has {num_tokens} tokens or more, which with "
                f"{module.max_new_tokens} new ones exceed the model's {limit}: questions on videos "
                f"that have so many {outcome}; lower data.num_frames (SparseToDense.levels) or "
                "data.resolution.min_pixels"
            )
            return


def check_options(module: VideoQAModule, precision: str) -> None:
    """Refuse combinations of the module's options that cannot train.

    Raises:
        InputError: one of them is given.
    """
    if module.num_generations < 2:
        raise InputError(
            f"model.num_generations is {module.num_generations}; GRPO compares completions of "
            "one question, so give 2 or more"
        )
    names = [reward.name for reward in module.rewards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"model.rewards has two of the name {twice[0]!r}; rename one of them")
    if module.temporal and module.temporal.name in names:
        raise InputError(
            f"model.rewards has one of the name {module.temporal.name!r}, which is that of "
            "model.temporal; rename it or set model.temporal to null"
        )
    if not names:
        raise InputError("model.rewards is empty; give at least one reward")
    if module.objective.beta > 0 and module.reference is None:
        raise InputError(
            f"model.objective has beta {module.objective.beta} but model.reference is null; set "
            "model.reference to vrts.models.AdapterOff (LoRA) or FrozenCopy (full), "
            "or beta to 0"
        )
    if module.updates_per_rollout > 1 and precision == "16-mixed":
        raise InputError(
            f"model.updates_per_rollout is {module.updates_per_rollout} and trainer.precision "
            "16-mixed, whose gradient scaler allows one update a step; set precision to "
            "bf16-mixed, or updates_per_rollout to 1"
        )


def check_data(module: VideoQAModule, data: Any, trainer: Trainer) -> None:
    """Refuse training and validation questions that the run could not use.

    Raises:
        InputError: there are fewer questions in a batch than groups to train on, some cannot be
            rewarded, or validation is at fault (see `check_validation`).
    """
    if module.num_groups is not None and module.num_groups > data.batch_size:
        raise InputError(
            f"model.num_groups is {module.num_groups}, but a batch has {data.batch_size} "
            "questions; set data.batch_size to a multiple of it: the further ones replace groups "
            "whose rewards are all equal"
        )
    check_all(module.rewards, data.questions("train"))
    validated = data.questions("val") if data.readers["val"] is not None else None
    check_validation(trainer, validated, data.steps_per_epoch)


def check_validation(
    trainer: Trainer, questions: Sequence[Question] | None, steps_per_epoch: int
) -> None:
    """Refuse a validation that finds nothing, never comes, or comes at no step that is known.

    Args:
        trainer: of a run that trains.
        questions: of ``data.val``; None without a reader.
        steps_per_epoch: optimizer steps of a pass through the training questions.

    Raises:
        InputError: a callback watches what is not validated; no right answer is known; the
            interval counts something else than steps, or more of them than the run has.
    """
    watching = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if str(getattr(callback, "monitor", None)).startswith("val/")
    ]
    if questions is None or trainer.limit_val_batches == 0:
        if watching:
            raise InputError(
                f"trainer.callbacks: {watching[0]} monitors val/accuracy, but nothing is "
                "validated; give data.val a reader (and trainer.limit_val_batches not 0)"
            )
        return
    if all(question.gold is None for question in questions):
        raise InputError(
            f"data.val: none of its {len(questions)} questions has an answer, so there is no "
            "accuracy to compute; give questions whose right answers are known, or no data.val"
        )
    interval = getattr(trainer, "val_check_interval", None)  # has none by time
    if isinstance(interval, float) or trainer.check_val_every_n_epoch is not None:
        raise InputError(
            f"trainer.val_check_interval is {interval} and check_val_every_n_epoch "
            f"{trainer.check_val_every_n_epoch}: with data.val, give the steps from one validation "
            f"to the next (an epoch has {steps_per_epoch}), and check_val_every_n_epoch: null"
        )
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    limit, max_epochs = trainer.limit_train_batches, trainer.max_epochs
    if max_epochs is not None and max_epochs >= 0 and isinstance(limit, float):
        limits.append(max_epochs * int(steps_per_epoch * limit))
    if isinstance(interval, int) and limits and min(limits) < interval:
        raise InputError(
            f"trainer.val_check_interval is {interval} steps, but the run has {min(limits)}; give "
            "fewer"
        )
