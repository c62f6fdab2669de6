"""The strategy of fully sharded training, FSDP2. Plug-in point ``trainer.strategy``."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed import new_group
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.fsdp import FSDPModule

from vrts.files.writing import GONE, OLD, PART, delete, replace_folder, to_disk
from vrts.models.checkpoints.contents import check_same_model, check_sharded
from vrts.models.checkpoints.finding import REST, is_complete, surviving
from vrts.models.checkpoints.reading import (
    WEIGHTS,
    listed_weights,
    load_shards,
    read_contents,
    read_file,
)
from vrts.models.checkpoints.writing import Background, BackgroundCheckpointIO, reason_of, unwritten
from vrts.types import InputError


class FullySharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all processes for FSDP2, however many there are.

    Each process writes its own part of a checkpoint, which is a folder.

    Args:
        process_group_backend: of torch; null takes NCCL on CUDA and gloo on CPUs.
        timeout_s: processes that wait so long for one another end with an error.
        save_in_background: copy what is saved to the host, and write it while training continues. A
            save that failed ends the run at the next one, or at the end.
    """

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout_s: PositiveInt = 1800,
        save_in_background: bool = False,
    ) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=True,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=int(timeout_s)),
        )
        self._save_in_background = save_in_background
        self._saves = Background()
        self._host_group: Any = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None
    ) -> None:
        """Save a checkpoint beside an older one of that name, and only then replace it.

        Lightning writes into the older folder. A run that is killed meanwhile would leave a
        mixture of both, which loads without a word.

        Raises:
            InputError: it cannot be written, or, in the background, the one before; older ones are
                whole.
        """
        self._saves.wait()
        path = Path(self.broadcast(filepath))
        fresh = path.with_name(path.name + PART)
        if self.global_rank == 0:
            _clear(path)
        self.barrier()
        if self._save_in_background:
            self._begin_to_save(checkpoint, fresh, path)
            return
        with naming(path):
            super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.global_rank == 0:
            replace_folder(path, fresh, path.with_name(path.name + OLD))
        self.barrier()

    def _begin_to_save(self, checkpoint: dict[str, Any], fresh: Path, path: Path) -> None:
        """Copy a checkpoint to the host, and have it written while training continues.

        Processes tell one another over gloo when they have written, beside what they exchange in
        training. The first one learns of all of them, and gives the folder its name.
        """
        if self._host_group is None:
            self._host_group = new_group(backend="gloo", timeout=self._timeout)
        parts = {"state_dict": checkpoint.pop("state_dict")}
        for index, state in enumerate(checkpoint.pop("optimizer_states", [])):
            parts[f"optimizer_{index}"] = state
        written = async_save(parts, checkpoint_id=fresh, process_group=self._host_group)
        assert isinstance(written, Future)
        rest = io.BytesIO()
        torch.save(checkpoint, rest)
        self._saves.submit(_finish, written, rest if self.global_rank == 0 else None, fresh, path)

    def remove_checkpoint(self, filepath: _PATH) -> None:
        """Remove a checkpoint, after those that are to take its place are written.

        It loses its name first: of one whose removal was cut short nothing is taken for whole.
        """
        if self.global_rank == 0:
            self.when_saved(_remove, Path(filepath))

    def when_saved(self, work: Callable[..., None], *args: Any) -> None:
        """Do something on this process when all checkpoints so far are written, unless that fails.

        Args:
            work: to do.
            args: of it.
        """
        self._saves.submit(work, *args)
        if not self._save_in_background:
            self._saves.wait()

    def wait_for_saves(self) -> None:
        """Wait until this process has written its checkpoints; raises as `save_checkpoint`."""
        self._saves.wait()

    def teardown(self) -> None:
        """Finish what is being saved."""
        try:
            self._saves.close()
        finally:
            super().teardown()

    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint, into the shards.

        Raises:
            InputError: it is of another model, incomplete, of a run that was not sharded, or holds
                anything but tensors and plain values.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_file():
            check_sharded(path, read_file(path))
            return super().load_checkpoint(path, weights_only=True)
        if not is_complete(path):
            raise InputError(
                f"--ckpt_path: {path} is not a checkpoint, or an incomplete one; give another"
            )
        contents = read_contents(path)
        _check_shards(path, contents)
        module, model = self.lightning_module, self.model
        assert module is not None
        assert model is not None
        check_same_model(module, {WEIGHTS: listed_weights(contents)})
        # as Lightning does it, but for its readers, which run code that is in the files
        weights = {WEIGHTS: get_model_state_dict(model)}
        load_shards(weights, path)
        model.load_state_dict(weights[WEIGHTS], strict=module.strict_loading)
        for index, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{index}"
            state: dict[str, Any] = {name: get_optimizer_state_dict(model, optimizer)}
            load_shards(state, path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(model, optimizer, state[name], options=options)
        return read_file(path / REST)

    def model_to_device(self) -> None:
        """Move what is not sharded: FSDP has put shards where they belong, offloaded ones too."""
        assert self.model is not None
        sharded = {n: m for n, m in self.model.named_children() if isinstance(m, FSDPModule)}
        for name in sharded:
            del self.model._modules[name]
        super().model_to_device()
        self.model._modules.update(sharded)

    def setup_environment(self) -> None:
        """Take all processes; Lightning's ``auto`` would take one a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def when_saved(strategy: Strategy, work: Callable[..., None], *args: Any) -> None:
    """Do something when all checkpoints so far are written: now, or in the background.

    Args:
        strategy: of any kind.
        work: to do; where checkpoints are written in the background, not if that fails.
        args: of it.
    """
    if isinstance(strategy, FullySharded):
        strategy.when_saved(work, *args)
    elif isinstance(strategy.checkpoint_io, BackgroundCheckpointIO):
        strategy.checkpoint_io.when_saved(work, *args)
    else:
        work(*args)


def wait_for_saves(strategy: Strategy) -> None:
    """Wait until this process has written its checkpoints, where that is done in the background.

    Args:
        strategy: of any kind.
    """
    strategy.checkpoint_io.teardown()
    if isinstance(strategy, FullySharded):
        strategy.wait_for_saves()


def finish_saves(strategy: Strategy) -> None:
    """Wait until all processes have written their checkpoints; all have to call it.

    Args:
        strategy: of any kind.
    """
    wait_for_saves(strategy)
    strategy.barrier()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context in which a disk's refusal becomes a message that names the checkpoint.

    Args:
        path: of the checkpoint.

    Raises:
        InputError: it could not be written.
    """
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        # what the system said does not survive the way between processes
        said = reason_of(failure) or f"is the disk full? torch says: {failure}"
        raise InputError(unwritten(path, said)) from error
    except (OSError, RuntimeError) as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise InputError(unwritten(path, reason)) from error


def _clear(path: Path) -> None:
    """Make room for a checkpoint: put what is left of one of its name in order."""
    survivor = surviving(path)
    if survivor != path:  # perhaps what this run went on from, and the only one
        path.unlink(missing_ok=True)  # a link that leads nowhere
        survivor.replace(path)
    for end in (PART, OLD):
        delete(path.with_name(path.name + end))
    for left in path.parent.glob(f"*{GONE}"):
        delete(left)


def _finish(written: Future[Any], rest: io.BytesIO | None, fresh: Path, path: Path) -> None:
    """Wait until all processes have written their parts; the one that has the rest adds it."""
    with naming(path):
        written.result()
        if rest is None:
            return
        with (fresh / REST).open("wb") as out:
            out.write(rest.getbuffer())
            to_disk(out)
        replace_folder(path, fresh, path.with_name(path.name + OLD))


def _remove(path: Path) -> None:
    """Remove a checkpoint, its name first, and what a swap that was cut short has left of it."""
    gone, *left = (path.with_name(path.name + end) for end in (GONE, PART, OLD))
    if path.exists():
        path.replace(gone)
    for other in (gone, *left):
        delete(other)


def _check_shards(path: Path, contents: Metadata) -> None:
    """See that all parts of a checkpoint are there, before processes read their own.

    Raises:
        InputError: one is missing, or too short.
    """
    needed: dict[str, int] = {}
    for part in contents.storage_data.values():
        needed[part.relative_path] = max(
            needed.get(part.relative_path, 0), part.offset + part.length
        )
    for name, size in sorted(needed.items()):
        file = path / name
        if not file.is_file() or file.stat().st_size < size:
            raise InputError(
                f"--ckpt_path: {path} is incomplete: {name} is missing or cut off; give another"
            )
