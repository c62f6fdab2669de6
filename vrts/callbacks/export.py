"""Writing the trained model as a folder that transformers, peft and vrts load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from vrts.callbacks.export_folder import (
    partial_folder,
    prepare_target,
    whole_folder,
    write_manifest,
)
from vrts.callbacks.model_card import write_card
from vrts.callbacks.recipe import training_facts
from vrts.models.module import VideoQAModule
from vrts.models.policy import Policy
from vrts.types import InputError

FACTS = "training"
"""Key in a checkpoint under which it says what it was trained with, for `vrts export`."""


class ExportPretrained(Callback):
    """Writes a Hugging Face folder when training ends.

    Full weights after full fine-tuning, the adapter after LoRA; with tokenizer, processor,
    generation config and a model card. The folder gets its name when it is whole, and then takes
    the place of an earlier export. One that holds anything else is refused before training.

    Args:
        output_dir: folder to write; ``model`` in ``trainer.default_root_dir`` where null.
        merge: after LoRA write the whole model with the adapter merged in, in the base model's
            dtype. In bfloat16 that rounds a part of a small update away (a warning tells how much);
            the adapter keeps it exactly.
    """

    def __init__(self, output_dir: str | None = None, merge: bool = False) -> None:
        self.output_dir = output_dir
        self.merge = merge
        self._validation: dict[str, dict[str, Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the folder can be written: training may take days, its end is no time to miss.

        Raises:
            InputError: it cannot, or holds something else than an earlier export.
        """
        if stage != "fit":
            return
        problem = self._problem(trainer) if trainer.is_global_zero else None
        # all processes raise what the first one found, so that none waits for it in vain
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise InputError(problem)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best accuracy, for the model card."""
        found = _logged(trainer, "val/")
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in found.items():
            if "accuracy" not in name:
                continue
            best = self._validation.setdefault(name, {"best": value, "step": trainer.global_step})
            if value > best["best"]:
                best |= {"best": value, "step": trainer.global_step}
            best["last"] = value

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the checkpoint say what it was trained with."""
        checkpoint[FACTS] = self._facts(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the best values."""
        self._validation = checkpoint.get(FACTS, {}).get("metrics", {}).get("validation", {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, from one process; all take part where weights are sharded.

        Raises:
            InputError: it cannot be written.
        """
        module = cast(VideoQAModule, pl_module)
        facts = self._facts(trainer, pl_module)  # on all processes: metrics may be synchronised
        if trainer.is_global_zero:
            export_model(module.policy, self._folder(trainer), self.merge, facts)
        elif module.is_sharded:
            module.policy.save_pretrained(partial_folder(self._folder(trainer)), self.merge)

    def _facts(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the model card tells of this run so far."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return {
            **training_facts(trainer, cast(VideoQAModule, pl_module), data),
            "steps": trainer.global_step,
            "metrics": {
                "training": _logged(trainer, "train/"),
                "validation": {name: dict(best) for name, best in self._validation.items()},
            },
        }

    def _problem(self, trainer: Trainer) -> str | None:
        """Why the folder cannot be written, or None."""
        try:
            prepare_target(self._folder(trainer), "ExportPretrained.output_dir")
        except InputError as error:
            return str(error)
        return None

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.output_dir or Path(trainer.default_root_dir) / "model")


def export_model(policy: Policy, folder: Path, merge: bool, facts: dict[str, Any]) -> None:
    """Write a policy with its card, as a whole.

    Where weights are sharded the other processes call the policy's `save_pretrained` meanwhile.

    Args:
        policy: loaded.
        folder: as given to `prepare_target`.
        merge: see `ExportPretrained`.
        facts: see `recipe.training_facts`, with ``steps`` and ``metrics``.

    Raises:
        InputError: it cannot be written.
    """
    with whole_folder(folder) as part:
        policy.save_pretrained(part, merge)
        write_card(part, folder.name, merge, facts)
        write_manifest(part, facts)


def _logged(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Newest logged metrics whose names begin so."""
    metrics = trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
