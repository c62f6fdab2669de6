"""Writing the trained model as a folder that transformers, peft and vrts load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.distributed.tensor import DTensor

from vrts.callbacks.export.folder import complete_folder, prepare_target, write_manifest
from vrts.callbacks.export.model_card import write_card
from vrts.callbacks.export.recipe import training_facts
from vrts.callbacks.trainer import callbacks_of, check_on_rank_zero, data_of, logged_metrics
from vrts.models.checkpoints.best import WATCHED, recorded_best
from vrts.models.checkpoints.weights import load_trained
from vrts.models.module import VideoQAModule
from vrts.models.policy import Policy
from vrts.models.strategies.fully_sharded import finish_saves
from vrts.types import InputError

FACTS = "training"
"""Key in a checkpoint of what it was trained with, for the model card of `vrts export`."""


class ExportPretrained(Callback):
    """Writes a Hugging Face folder when training ends.

    Full weights after full fine-tuning, the adapter after LoRA; with tokenizer, processor,
    generation config and a model card. The complete folder replaces an earlier export atomically. A
    folder that contains anything else is refused before training.

    Args:
        output_dir: folder to write; ``model`` in ``trainer.default_root_dir`` where null.
        merge: after LoRA write the full model with the adapter merged in, in the base model's
            dtype. In bfloat16 that rounds part of a small update away (a warning reports how much);
            the adapter keeps it exactly.
        best: write the weights of the best validation, from the checkpoint of the first
            ModelCheckpoint that monitors a metric ``val/…``, if there is one; it takes the memory
            of the trained weights once more. False writes those of the last step.
    """

    def __init__(
        self, output_dir: str | None = None, merge: bool = False, best: bool = True
    ) -> None:
        self.output_dir = output_dir
        self.merge = merge
        self.best = best
        self._validation: dict[str, dict[str, Any]] = {}

    def folder(self, trainer: Trainer) -> Path:
        """Return where the model goes."""
        return Path(self.output_dir or Path(trainer.default_root_dir) / "model")

    def results(self, trainer: Trainer) -> list[Path]:
        """See `HasResults`."""
        return [self.folder(trainer)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the folder can be written, before training costs anything.

        Raises:
            InputError: it cannot, or contains something else than an earlier export.
        """
        if stage != "fit":
            return
        option, folder = "ExportPretrained.output_dir", self.folder(trainer)

        def check() -> None:
            check_base_stays(cast(VideoQAModule, pl_module).policy, folder, option)
            prepare_target(folder, option)

        check_on_rank_zero(trainer, check)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best accuracy, for the model card."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in logged_metrics(trainer, "val/").items():
            if "accuracy" not in name:
                continue
            best = self._validation.setdefault(name, {"best": value, "step": trainer.global_step})
            if value > best["best"]:
                best |= {"best": value, "step": trainer.global_step}
            best["last"] = value

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save what the run has trained with so far."""
        checkpoint[FACTS] = self._facts(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the best values so far."""
        self._validation = checkpoint.get(FACTS, {}).get("metrics", {}).get("validation", {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, from one process; all take part if weights are sharded.

        The last checkpoint is saved before: a failed export loses nothing.

        Raises:
            InputError: it cannot be written, or the best checkpoint is missing or damaged.
        """
        for keeper in trainer.checkpoint_callbacks:
            keeper.on_train_end(trainer, pl_module)  # Lightning calls it again, which does nothing
        finish_saves(trainer.strategy)
        module = cast(VideoQAModule, pl_module)
        facts = self._facts(trainer, pl_module)
        best = self._best_path(trainer)
        if not (trainer.is_global_zero or module.is_sharded):
            return
        if best is None:
            self._write(trainer, module, facts)
            return
        with _restored_weights(module):
            try:
                found = load_trained(module, best)
            except InputError as error:
                raise InputError(
                    f"ExportPretrained: the best checkpoint cannot be loaded ({error}); write that "
                    "of another one with vrts export"
                ) from error
            facts = found.get(FACTS, facts) | selected(found, best)
            self._write(trainer, module, facts)
        rank_zero_info(
            f"wrote the model of step {facts['steps']}, whose validation was the best "
            f"({best.name}), to {self.folder(trainer)}; training ended at step "
            f"{trainer.global_step}"
        )

    def _best_path(self, trainer: Trainer) -> Path | None:
        """The checkpoint to export; None for the weights of the last step."""
        keepers = callbacks_of(trainer, ModelCheckpoint)
        keeper = next((c for c in keepers if str(c.monitor).startswith(WATCHED)), None)
        if not self.best or keeper is None:
            return None
        if keeper.best_model_path:
            return Path(keeper.best_model_path)
        rank_zero_warn(
            "ExportPretrained writes the weights of the last step: no validation has logged "
            f"{keeper.monitor}"
        )
        return None

    def _write(self, trainer: Trainer, module: VideoQAModule, facts: dict[str, Any]) -> None:
        """Write the module's present weights from the first rank; all gather sharded ones."""
        folder = self.folder(trainer)
        if not module.is_sharded:
            export_model(module.policy, folder, self.merge, facts)
            return
        with ExitStack() as stack:
            parts: list[Path] = []
            # before any rank starts to gather weights for a folder that cannot be made
            check_on_rank_zero(
                trainer, lambda: parts.append(stack.enter_context(complete_folder(folder)))
            )
            if parts:
                _fill(module.policy, parts[0], folder.name, self.merge, facts)
            else:
                module.policy.save_pretrained(folder, self.merge)  # gathers, writes nothing

    def _facts(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the model card contains, of this run so far; on all ranks, for the metrics."""
        return {
            **training_facts(trainer, cast(VideoQAModule, pl_module), data_of(trainer)),
            "steps": trainer.global_step,
            "metrics": {
                "training": logged_metrics(trainer, "train/"),
                "validation": {name: dict(best) for name, best in self._validation.items()},
            },
        }


def check_base_stays(policy: Policy, folder: Path, option: str) -> None:
    """Raise `InputError` if an export would replace the model that training starts from.

    Adapters and resumed runs need it. The option is that which names the folder.
    """
    if folder.is_dir() and folder.resolve() in {Path(s).resolve() for s in policy.sources}:
        raise InputError(
            f"{option}: {folder} holds the model that training starts from, and the export would "
            "replace it; give another folder"
        )


def export_model(policy: Policy, folder: Path, merge: bool, facts: dict[str, Any]) -> None:
    """Write a loaded policy with its card atomically, from a process that has all of its weights.

    The folder went through `prepare_target`; the facts are `recipe.training_facts`, with ``steps``
    and ``metrics``. Raises `InputError` if it cannot be written.
    """
    with complete_folder(folder) as part:
        _fill(policy, part, folder.name, merge, facts)


def _fill(policy: Policy, part: Path, name: str, merge: bool, facts: dict[str, Any]) -> None:
    """Write all files of a model; if weights are sharded, other ranks call `save_pretrained`."""
    policy.save_pretrained(part, merge)
    write_card(part, name, merge, facts)
    write_manifest(part, facts)


def selected(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the model card's fact that a checkpoint was the best of its run when saved."""
    best = recorded_best(checkpoint, path)
    return {} if best is None else {"selected": {"metric": best.metric, "value": best.value}}


@contextmanager
def _restored_weights(module: VideoQAModule) -> Iterator[None]:
    """Context after which trained weights are as before: callbacks may save them yet."""
    trained = [p.detach() for p in module.parameters() if p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
    kept = [p.to("cpu", copy=True) for p in local]
    try:
        yield
    finally:
        for own, last in zip(local, kept, strict=True):
            own.copy_(last)
