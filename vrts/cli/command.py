"""The command line: ``vrts fit | validate | test | predict | export --config …``."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import Namespace, dict_to_namespace
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.distributed import DistNetworkError, DistStoreError

from vrts import callbacks, data, models
from vrts.callbacks import PredictionWriter, SaveOnInterrupt
from vrts.callbacks.checkpoints.run_folders import check_run_folders
from vrts.callbacks.results import report, report_results
from vrts.callbacks.trainer import callbacks_of
from vrts.cli import usage
from vrts.cli.checkpoint_paths import check_kind, find_checkpoint, keep_in_run_folder
from vrts.cli.export import VrtsTrainer, prepare_export
from vrts.cli.plugins import descendants
from vrts.data.datamodule import VideoQADataModule
from vrts.files.shipped import find_config
from vrts.models.checkpoints.checkpoint_io import AtomicCheckpointIO
from vrts.models.grpo.checks import check_step
from vrts.models.grpo.guards import DivergenceError
from vrts.models.module import VideoQAModule
from vrts.models.rewards import RewardError
from vrts.models.strategies.environment import (
    check_precision,
    check_strategy,
    end_others,
    explain,
    why_no_cuda,
)
from vrts.terminal import printable
from vrts.types import InputError
from vrts.voting import VoteError

for part in (callbacks, data, models):
    for plug_in in part.__all__:
        getattr(part, plug_in)  # importing it makes its short name known to YAML files and --help
for strategy in descendants(Strategy):  # by their class names; Lightning lowers what is given
    StrategyRegistry.register(strategy.__name__.lower(), strategy)


EXPECTED = (
    r"Total length of `(list|SampleStream)` across ranks is zero",  # no data.val; nothing left
    "is_gradient_checkpointing` is deprecated",  # peft asks transformers so
    "gradient_checkpointing_enable` is deprecated",  # older transformers know no other name
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.9 and later
    r"module\(s\) in eval mode at the start of training",  # a frozen reference or vision tower
    "The '.*_dataloader' does not have many workers",  # decode workers are not torch's
    "LightningCLI's args parameter is intended",  # main(args) is also for Python
    "Checkpoint directory .* exists and is not empty",  # runs are resumed in their folder
)
"""Warnings that say nothing to the user of vrts, and why."""


REFUSED = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip
"""What a disk without room, a quota, permissions, or a file in the place of a folder answer: no
fault of the program."""


INTERRUPTED = 128 + signal.SIGINT
"""Exit status, as shells give it."""


class VrtsCLI(LightningCLI):
    """LightningCLI with one subcommand more, and errors before the long work."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and export."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; its checkpoints are written atomically.

        Raises:
            InputError: its options contradict each other, or the machine cannot do what they say.
        """
        config = self.config[self.subcommand]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except (ValueError, TypeError, RuntimeError, ModuleNotFoundError) as error:
            raise InputError(usage.explain_trainer(error)) from error
        if self.subcommand != "export":  # that converts weights and computes nothing
            check_precision(config.trainer.precision, trainer)
            check_strategy(trainer)
            check_kind(config.ckpt_path, trainer.strategy)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _add_instantiators(self) -> None:
        """Leave out Lightning's: they keep hyperparameters, which checkpoints of ours do not hold.

        Each command would write its configuration as YAML and read it again for them.
        """

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand; if this process fails, end those that would wait for it."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            end_others(self.trainer)
            if isinstance(error, DistNetworkError | DistStoreError):
                raise explain(error) from error
            if subcommand == "fit" and isinstance(error, OSError) and error.filename is None:
                check_run_folders(self.trainer)  # names the folder, where its disk is full
            raise

    def before_instantiate_classes(self) -> None:
        """Settle what depends on several options.

        Raises:
            InputError: the checkpoint to resume from does not exist.
        """
        config = self.config[self.subcommand]
        if self.subcommand == "export":
            prepare_export(config)
            return
        if config.get("return_predictions", False) is None:
            config.return_predictions = False  # the writer has them; a long run's fill the memory
        _spare_cores(config.data.num_workers)
        if self.subcommand == "predict":
            _predict_what_is_replayed(config)
        keep_in_run_folder(config.trainer)
        find_checkpoint(config, str(self.subcommand))

    def before_fit(self) -> None:
        """Let signals end the run from now on; refuse bad options and folders.

        Raises:
            InputError: an option of the Trainer has another place here, or a folder cannot be
                written to.
        """
        check_step(self.trainer)
        cast(VideoQAModule, self.model).policy.train()  # refused by those without weights
        for callback in callbacks_of(self.trainer, SaveOnInterrupt):
            callback.begin()
        check_run_folders(self.trainer)

    def before_predict(self) -> None:
        """Give the writer the checkpoint; it refuses to mix predictions of two models."""
        for writer in callbacks_of(self.trainer, PredictionWriter):
            writer.checkpoint = self.config.predict.ckpt_path

    def after_fit(self) -> None:
        """Warn if nothing was left to train, and report where the results are."""
        module = cast(VideoQAModule, self.model)
        if not module.num_steps_trained:
            trainer = self.trainer
            rank_zero_warn(
                f"nothing was trained: the checkpoint is of step {trainer.global_step}, where "
                f"trainer.max_steps {trainer.max_steps} or trainer.max_epochs "
                f"{trainer.max_epochs} ends the run; raise both to continue"
            )
        report_results(self.trainer)
        if self.trainer.is_global_zero and (warning := module.reward_watch.warning()):
            report(f"warning: {warning}")

    def after_validate(self) -> None:
        """Report where the results are."""
        report_results(self.trainer)

    after_test = after_validate

    def after_predict(self) -> None:
        """Report where the results are; raises InputError where every question failed."""
        report_results(self.trainer)
        for writer in callbacks_of(self.trainer, PredictionWriter):
            writer.check_answered()

    def _parse_ckpt_path(self) -> None:
        """Leave checkpoints alone: Lightning looks for hyperparameters, which ours do not have."""


class ConfigLogger(SaveConfigCallback):
    """Writes config.yaml, and gives loggers the same: hyper-parameters are a part of it."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        config = config.clone()
        config.pop("overwrite", None)  # it is about one start of the run
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write and log all options, once, from the first process."""
        folder = trainer.log_dir  # of the first process, for which the others wait
        if self.already_saved or not trainer.is_global_zero:
            return
        # validation was the parser's work already, and takes as long as all else here
        options = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        path = Path(str(folder), self.config_filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(options, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(options))
        self.already_saved = True


def _predict_what_is_replayed(config: Any) -> None:
    """Read the questions that were recorded, where no others are given."""
    policy = config.model.policy
    is_replay = policy is not None and policy.class_path.endswith(".ReplayPolicy")
    if is_replay and config.data.predict is None and config.data.video is None:
        path = {"path": policy.init_args.path}
        reader = {"class_path": "vrts.data.RecordedReader", "init_args": path}
        config.data.predict = dict_to_namespace(reader)


def _spare_cores(num_workers: int) -> None:
    """Leave cores to the decode workers, unless the user has set a number of threads.

    More threads than cores make small models up to a hundred times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) - num_workers))


def run(words: Sequence[str]) -> VrtsCLI:
    """Run the subcommand of a command line; errors come out as they are raised."""
    if os.getcwd() not in sys.path:  # noqa: PTH109 text is what is needed
        sys.path.append(os.getcwd())  # noqa: PTH109 class paths of the user's own modules
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_needed)
    usage.UsageParser.words = words = _find_configs(words)

    class OneCommand(VrtsCLI):
        """With one subcommand only: options of all take half a second more."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {words[0]: VrtsCLI.subcommands()[words[0]]}

    return OneCommand(
        VideoQAModule,
        VideoQADataModule,
        trainer_class=VrtsTrainer,
        args=words,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_class=usage.UsageParser,
        parser_kwargs={"parser_mode": "yaml"},
        save_config_callback=ConfigLogger,
        save_config_kwargs={"overwrite": True},
    )


def _find_configs(words: Sequence[str]) -> list[str]:
    """Put paths in place of the names of configurations that come with vrts."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, name = word.partition("=")
        if before in ("-c", "--config"):
            word = find_config(word)
        elif option in ("-c", "--config") and equals:
            word = f"{option}={find_config(name)}"
        found.append(word)
    return found


def _is_needed(record: logging.LogRecord) -> bool:
    """False for Lightning's tips of its vendor's packages, and its word on an interruption."""
    message = record.getMessage()
    return "Tip: For seamless cloud" not in message and "Detected KeyboardInterrupt" not in message


def main(words: Sequence[str]) -> int:
    """Run a subcommand and report its errors; see `vrts.cli.main`.

    Returns:
        The exit status: 0; 1 after bad input or a run that diverged, which one message reports; 130
        after an interruption.
    """
    try:
        run(words)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning ends an interrupted run with status 1
        if KeyboardInterrupt not in (type(stop), type(stop.__context__)):
            raise
        return INTERRUPTED
    except MisconfigurationException as error:
        return _fail(f"trainer: {error}; {_hint(error)}")
    except (DivergenceError, RewardError, VoteError) as error:
        return _fail(f"{error}{_frame_of_user(error.__cause__)}")
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        name = f"{error.filename}: " if error.filename else ""
        again = "give the same command again (fit: with --ckpt_path last)"
        return _fail(f"{name}{error.strerror}; fix this, then {again}")
    except Exception as error:
        found = _input_error(error)
        if found is not None:
            return _fail(found)
        if "Problem with given class_path" not in str(error):
            raise
        return _fail(usage.explain(str(error), usage.UsageParser.words))
    return 0


def _frame_of_user(error: BaseException | None) -> str:
    """The place in the user's code that an error of a plug-in came from, and its line."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(__file__).parents[1]), sysconfig.get_path("purelib"))
    own = [f for f in frames if not f.filename.startswith(libraries)] or frames
    return f"\n  in {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def _hint(error: MisconfigurationException) -> str:
    """What to do about an option of the Trainer that this machine cannot follow."""
    if "deepspeed" in str(error).lower():  # Lightning would have it installed
        return "vrts shards with FSDP2 instead: --trainer.strategy=FullySharded"
    reason = why_no_cuda() if "CUDA" in str(error) else None
    return reason or "without such a device, put --config configs/cpu.yaml after the others"


def _fail(message: object) -> int:
    """Print an error, whose text may come from outside, and return the exit status."""
    print(f"vrts: error: {printable(str(message))}", file=sys.stderr)  # noqa: T201
    return 1


def _input_error(error: BaseException | None) -> InputError | None:
    """Find an `InputError` behind an error: jsonargparse wraps those of constructors."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None
