"""The command line: ``vrts fit | validate | test | predict --config …``."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jsonargparse import dict_to_namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts import votes
from vrts.callbacks import (
    asking,
    curves,
    densify,
    export,
    interruption,
    progress,
    replay,
    samples,
    throughput,
    writer,
)
from vrts.callbacks.report import callback as report
from vrts.data import decoding, decord_decoder, pyav_decoder, readers, recorded, sampling
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
from vrts.models import advantages, objectives, qwen, reference, rewards, strategy
from vrts.models import replay as replay_policy
from vrts.models.module import VideoQAModule
from vrts.models.nonfinite import DivergenceError
from vrts.models.rewards import RewardError
from vrts.types import InputError

# Importing a plug-in makes its short class name known to YAML files and to --help.
PLUGINS = (
    votes, asking, curves, densify, export, interruption, progress, replay, report, samples,
    throughput, writer,
    decoding, decord_decoder, pyav_decoder, readers, recorded, sampling,
    cgbench, longvideobench, mmvu, plain, videoholmes, videomme, videommmu,
    advantages, objectives, qwen, reference, replay_policy, rewards, strategy,
)  # fmt: skip


EXPECTED = (
    r"Total length of `(list|SampleStream)` across ranks is zero",  # no data.val; nothing left
    "is_gradient_checkpointing` is deprecated",  # peft asks transformers so
    "gradient_checkpointing_enable` is deprecated",  # older transformers know no other name
    "`weights_only` was not set",  # of a checkpoint that this run wrote itself
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.9 and later
    r"module\(s\) in eval mode at the start of training",  # a frozen reference or vision tower
    "The '.*_dataloader' does not have many workers",  # decode workers are not torch's
    "LightningCLI's args parameter is intended",  # main(args) is also for Python
    "Checkpoint directory .* exists and is not empty",  # runs are resumed in their folder
)
"""Warnings that say nothing to the user of vrts, and why."""


FOLDER_STRATEGIES = ("FullySharded", "ModelParallel", "FSDP", "fsdp", "DeepSpeed", "deepspeed")
"""In the names of those whose checkpoints may be folders."""


class VrtsCLI(LightningCLI):
    """LightningCLI with vrts's one link between model and data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that belong together are given once."""
        parser.link_arguments("model.updates_per_rollout", "data.updates_per_rollout")

    def before_instantiate_classes(self) -> None:
        """Settle what depends on several options.

        Checkpoints stay in the run's own folder, where ``--ckpt_path last`` finds them again:
        ModelCheckpoint's own default is a new folder for each start of a run. Predictions are not
        kept in memory. On a CPU, cores that decode are not computed on as well.

        Raises:
            InputError: the checkpoint to go on from does not exist.
        """
        config = self.config[self.subcommand]
        strategy = config.trainer.strategy
        _check_checkpoint(config.get("ckpt_path"), strategy)
        if config.get("return_predictions", False) is None:
            config.return_predictions = False
        _spare_cores(config.data.num_workers)
        if self.subcommand == "predict":
            _ask_what_is_replayed(config)
        trainer = config.trainer
        for callback in trainer.callbacks or []:
            arguments = callback.get("init_args") or {}
            if callback.class_path.endswith(".ModelCheckpoint") and not arguments.get("dirpath"):
                folder = str(Path(trainer.default_root_dir or ".") / "checkpoints")
                callback.init_args.dirpath = folder
                if config.get("ckpt_path") == "last":
                    _check_last(Path(folder), str(self.subcommand), strategy)


def _check_checkpoint(path: str | None, strategy: Any) -> None:
    """Find out before the weights are loaded whether there is a checkpoint for the strategy."""
    if path in (None, "last", "best", "hpc") or "://" in str(path):
        return
    file = Path(str(path))
    if file.is_file() and not zipfile.is_zipfile(file):
        raise InputError(f"--ckpt_path: {path} is no checkpoint, or a damaged one; give another")
    if not file.exists():
        raise InputError(
            f"--ckpt_path: no checkpoint {path}; give a file that fit wrote (in the checkpoints "
            "folder of its run), or last for the newest one"
        )
    name = str(getattr(strategy, "class_path", strategy))
    if file.is_dir() and not any(kind in name for kind in FOLDER_STRATEGIES):
        raise InputError(
            f"--ckpt_path: {path} is a folder, as sharded training (FSDP) writes it, but "
            f"trainer.strategy is {name}; put --config configs/fsdp.yaml behind the others"
        )


def _check_last(folder: Path, subcommand: str, strategy: Any) -> None:
    """Check the checkpoints that ``--ckpt_path last`` chooses from."""
    found = sorted(folder.glob("last*.ckpt"), key=lambda file: file.stat().st_mtime)
    if found:
        _check_checkpoint(str(found[-1]), strategy)
    elif subcommand != "fit":
        raise InputError(f"--ckpt_path last: no checkpoint in {folder}; give the path of one")
    else:
        rank_zero_info(f"--ckpt_path last: no checkpoint in {folder} yet, so the run begins anew")


def _ask_what_is_replayed(config: Any) -> None:
    """Replay the questions that were recorded, where no others are given."""
    policy = config.model.policy
    is_replay = policy is not None and policy.class_path.endswith(".ReplayPolicy")
    if is_replay and config.data.predict is None and config.data.video is None:
        reader = {
            "class_path": "vrts.data.recorded.RecordedReader",
            "init_args": {"path": policy.init_args.path},
        }
        config.data.predict = dict_to_namespace(reader)


def _spare_cores(num_workers: int) -> None:
    """Leave cores to the decode workers, unless the user has set a number of threads.

    More threads than cores make small models up to a hundred times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) - num_workers))


def run(args: ArgsType = None) -> VrtsCLI:
    """Run one subcommand; errors come out as they are raised.

    Args:
        args: command-line words; those of the process where None.
    """
    if os.getcwd() not in sys.path:  # noqa: PTH109 text is what is needed
        sys.path.append(os.getcwd())  # noqa: PTH109 class paths of the user's own modules
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advert)
    return VrtsCLI(
        VideoQAModule,
        VideoQADataModule,
        args=args,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"parser_mode": "yaml"},
        save_config_kwargs={"overwrite": True},
    )


def _is_no_advert(record: logging.LogRecord) -> bool:
    """False for Lightning's tips to install its vendor's cloud packages, given at every start."""
    return "Tip: For seamless cloud" not in record.getMessage()


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the ``vrts`` command.

    Args:
        args: command-line words; those of the process where None.

    Returns:
        The exit status: 0, or 1 after bad input or a run that diverged, told in one message.
    """
    try:
        run(list(args) if args is not None else None)
    except MisconfigurationException as error:
        hint = "without such a device, put --config configs/cpu.yaml behind the others"
        print(f"vrts: error: trainer: {error}; {hint}", file=sys.stderr)  # noqa: T201
        return 1
    except (DivergenceError, RewardError) as error:
        if isinstance(error, RewardError) and error.__cause__ is not None:
            raise  # the traceback shows where in the user's code
        print(f"vrts: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        name = f" for {error.filename}" if error.filename else ""
        print(  # noqa: T201
            f"vrts: error: no space left on the device{name}; free some, then give the same "
            "command again (fit: with --ckpt_path last)",
            file=sys.stderr,
        )
        return 1
    except UnpicklingError:
        # LightningCLI opens the checkpoint before anything of ours is asked
        print(  # noqa: T201
            "vrts: error: --ckpt_path: the file is no checkpoint, or a damaged one; give another",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        found = _input_error(error)
        if found is None:
            raise
        print(f"vrts: error: {found}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _input_error(error: BaseException | None) -> InputError | None:
    """Find an `InputError` behind an error: jsonargparse wraps those of constructors."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None
