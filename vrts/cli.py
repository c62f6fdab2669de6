"""The command line: ``vrts fit | validate | test | predict --config …``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from vrts.callbacks import densify, export, interruption, samples, writer
from vrts.data import decoding, decord_decoder, pyav_decoder, readers, sampling
from vrts.data.benchmarks import (
    cgbench,
    longvideobench,
    mmvu,
    plain,
    videoholmes,
    videomme,
    videommmu,
)
from vrts.data.datamodule import VideoQADataModule
from vrts.models import advantages, objectives, qwen, reference, rewards
from vrts.models.module import VideoQAModule
from vrts.models.nonfinite import DivergenceError
from vrts.types import InputError

# Importing a plug-in makes its short class name known to YAML files and to --help.
PLUGINS = (
    densify, export, interruption, samples, writer,
    decoding, decord_decoder, pyav_decoder, readers, sampling,
    cgbench, longvideobench, mmvu, plain, videoholmes, videomme, videommmu,
    advantages, objectives, qwen, reference, rewards,
)  # fmt: skip


EXPECTED = (
    "Total length of `list` across ranks is zero",  # no data.val given
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.9 and later
    r"module\(s\) in eval mode at the start of training",  # a frozen reference or vision tower
    "The '.*_dataloader' does not have many workers",  # decode workers are not torch's
    "LightningCLI's args parameter is intended",  # main(args) is also for Python
    "Checkpoint directory .* exists and is not empty",  # runs are resumed in their folder
)
"""Warnings that say nothing to the user of vrts, and why."""


class VrtsCLI(LightningCLI):
    """LightningCLI with vrts's one link between model and data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that belong together are given once."""
        parser.link_arguments("model.updates_per_rollout", "data.updates_per_rollout")

    def before_instantiate_classes(self) -> None:
        """Keep checkpoints in the run's own folder, where ``--ckpt_path last`` finds them again.

        ModelCheckpoint's own default is a new folder for each start of a run.

        Raises:
            InputError: the checkpoint to go on from does not exist.
        """
        config = self.config[self.subcommand]
        _check_checkpoint(config.get("ckpt_path"))
        trainer = config.trainer
        for callback in trainer.callbacks or []:
            arguments = callback.get("init_args") or {}
            if callback.class_path.endswith(".ModelCheckpoint") and not arguments.get("dirpath"):
                callback.init_args.dirpath = str(
                    Path(trainer.default_root_dir or ".") / "checkpoints"
                )


def _check_checkpoint(path: str | None) -> None:
    """Find out before the weights are loaded whether there is a checkpoint."""
    if path in (None, "last", "best", "hpc") or "://" in str(path):
        return
    if not Path(str(path)).exists():
        raise InputError(
            f"--ckpt_path: no checkpoint {path}; give a file that fit wrote (in the checkpoints "
            "folder of its run), or last for the newest one"
        )


def run(args: ArgsType = None) -> VrtsCLI:
    """Run one subcommand; errors come out as they are raised.

    Args:
        args: command-line words; those of the process where None.
    """
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{message}")
    return VrtsCLI(
        VideoQAModule,
        VideoQADataModule,
        args=args,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"parser_mode": "yaml"},
        save_config_kwargs={"overwrite": True},
    )


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the ``vrts`` command.

    Args:
        args: command-line words; those of the process where None.

    Returns:
        The exit status: 0, or 1 after bad input or a run that diverged, told in one message.
    """
    try:
        run(list(args) if args is not None else None)
    except (InputError, DivergenceError) as error:
        print(f"vrts: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0
