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

from vrts.callbacks.export.folder import (
    complete_folder,
    prepare_target,
    write_manifest,
)
from vrts.callbacks.export.model_card import write_card
from vrts.callbacks.export.recipe import training_facts
from vrts.models.checkpoints.best import WATCHED, recorded_best
from vrts.models.checkpoints.weights import load_trained
from vrts.models.module import VideoQAModule
from vrts.models.policy import Policy
from vrts.models.strategies.fully_sharded import finish_saves
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
        best: write the weights of the best validation, out of the checkpoint of the first
            ModelCheckpoint that watches a metric ``val/…``, and not those of the last step. Where
            null that is done if there is such a callback and it has a checkpoint, with a warning if
            it has none. True insists on both. It takes the memory of the trained weights once more.
    """

    def __init__(
        self, output_dir: str | None = None, merge: bool = False, best: bool | None = None
    ) -> None:
        self.output_dir = output_dir
        self.merge = merge
        self.best = best
        self._validation: dict[str, dict[str, Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the folder can be written: training may take days, its end is no time to miss.

        Raises:
            InputError: it cannot, or holds something else than an earlier export; or `best` is
                asked for, and no ModelCheckpoint keeps it.
        """
        if stage != "fit":
            return
        if self.best and _keeper(trainer) is None:
            raise InputError(
                "ExportPretrained.best is true, but no ModelCheckpoint watches val/accuracy; put "
                "--config configs/validate.yaml after the others, or set it to null"
            )
        policy = cast(VideoQAModule, pl_module).policy
        problem = self._problem(trainer, policy) if trainer.is_global_zero else None
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

    def results(self, trainer: Trainer) -> list[Path]:
        """Return the folder."""
        return [self.folder(trainer)]

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

        The last checkpoint comes first: whatever becomes of the export, nothing is lost.

        Raises:
            InputError: it cannot be written, or the best checkpoint is not there or damaged.
        """
        for keeper in trainer.checkpoint_callbacks:
            keeper.on_train_end(trainer, pl_module)  # a second time does nothing
        finish_saves(trainer.strategy)
        module = cast(VideoQAModule, pl_module)
        facts = self._facts(trainer, pl_module)  # on all processes: metrics may be synchronised
        best = self._best_path(trainer)
        if best is None:
            self._write(trainer, module, facts)
            return
        if not (trainer.is_global_zero or module.is_sharded):
            return
        with _weights_put_back(module):
            try:
                found = load_trained(module, best)
            except InputError as error:
                raise InputError(
                    f"ExportPretrained: the best checkpoint cannot be loaded ({error}); vrts "
                    "export writes the model of another one"
                ) from error
            facts = found.get(FACTS, facts) | selected(found, best)
            self._write(trainer, module, facts)
        rank_zero_info(
            f"wrote the model of step {facts['steps']}, whose validation was the best "
            f"({best.name}), to {self.folder(trainer)}; training ended at step "
            f"{trainer.global_step}"
        )

    def _best_path(self, trainer: Trainer) -> Path | None:
        """The checkpoint to write the weights of; None for those of the last step."""
        keeper = _keeper(trainer)
        if self.best is False or keeper is None:
            return None
        if keeper.best_model_path:
            return Path(keeper.best_model_path)
        problem = f"there was no validation that found {keeper.monitor}"
        if self.best:
            raise InputError(
                f"ExportPretrained.best: {problem}; vrts export writes the model of the last step"
            )
        rank_zero_warn(f"ExportPretrained writes the weights of the last step: {problem}")
        return None

    def _write(self, trainer: Trainer, module: VideoQAModule, facts: dict[str, Any]) -> None:
        """Write the weights that the module has, from one process."""
        folder = self.folder(trainer)
        if not module.is_sharded:
            if trainer.is_global_zero:
                export_model(module.policy, folder, self.merge, facts)
            return
        with ExitStack() as stack:
            problem = None
            if trainer.is_global_zero:
                try:
                    part = stack.enter_context(complete_folder(folder))
                except InputError as error:
                    problem = str(error)
            # no process begins to gather weights where the first one has no place for them
            problem = trainer.strategy.broadcast(problem)
            if problem:
                raise InputError(problem)
            if trainer.is_global_zero:
                _fill(module.policy, part, folder.name, self.merge, facts)
            else:
                module.policy.save_pretrained(folder, self.merge)  # helps to gather, writes nothing

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

    def _problem(self, trainer: Trainer, policy: Policy) -> str | None:
        """Why the folder cannot be written, or None."""
        option, folder = "ExportPretrained.output_dir", self.folder(trainer)
        try:
            check_base_stays(policy, folder, option)
            prepare_target(folder, option)
        except InputError as error:
            return str(error)
        return None

    def folder(self, trainer: Trainer) -> Path:
        """Where the model goes."""
        return Path(self.output_dir or Path(trainer.default_root_dir) / "model")


def check_base_stays(policy: Policy, folder: Path, option: str) -> None:
    """See that an export does not take the place of the model that training begins from.

    An adapter would be left without it, and so would a resumed run.

    Args:
        policy: tells what it is loaded from.
        folder: to write.
        option: that names it, for the message.

    Raises:
        InputError: it would.
    """
    if folder.is_dir() and folder.resolve() in {Path(s).resolve() for s in policy.sources}:
        raise InputError(
            f"{option}: {folder} holds the model that training begins from, and the export would "
            "take its place; give another folder"
        )


def export_model(policy: Policy, folder: Path, merge: bool, facts: dict[str, Any]) -> None:
    """Write a policy with its card, as a whole, from a process that has all of its weights.

    Args:
        policy: loaded.
        folder: as given to `prepare_target`.
        merge: see `ExportPretrained`.
        facts: see `recipe.training_facts`, with ``steps`` and ``metrics``.

    Raises:
        InputError: it cannot be written.
    """
    with complete_folder(folder) as part:
        _fill(policy, part, folder.name, merge, facts)


def _fill(policy: Policy, part: Path, name: str, merge: bool, facts: dict[str, Any]) -> None:
    """Write all files of a model that is called so.

    Where weights are sharded the other processes call the policy's `save_pretrained` meanwhile.
    """
    policy.save_pretrained(part, merge)
    write_card(part, name, merge, facts)
    write_manifest(part, facts)


def selected(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the model card says where a checkpoint was the best of its run when it was saved.

    Args:
        checkpoint: Lightning's.
        path: of it.
    """
    best = recorded_best(checkpoint, path)
    return {} if best is None else {"selected": {"metric": best.metric, "value": best.value}}


def _keeper(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that keeps the best checkpoint."""
    callbacks = trainer.checkpoint_callbacks
    keepers = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    return next((c for c in keepers if str(c.monitor).startswith(WATCHED)), None)


@contextmanager
def _weights_put_back(module: VideoQAModule) -> Iterator[None]:
    """Context after which trained weights are as before: callbacks may save them yet."""
    trained = [p.detach() for p in module.parameters() if p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
    kept = [p.to("cpu", copy=True) for p in local]
    try:
        yield
    finally:
        for own, last in zip(local, kept, strict=True):
            own.copy_(last)


def _logged(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Newest logged metrics whose names begin so."""
    metrics = trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
