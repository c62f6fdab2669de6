"""The strategy of fully sharded training, FSDP2. Plug-in point ``trainer.strategy``."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed import new_group
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
from vrts.models.checkpoints.checkpoint_io import Background, BackgroundCheckpointIO, error_context
from vrts.models.checkpoints.contents import check_same_model, check_sharded
from vrts.models.checkpoints.finding import REST, is_complete, surviving
from vrts.models.checkpoints.reading import (
    WEIGHTS,
    listed_weights,
    load_shards,
    read_contents,
    read_file,
)
from vrts.types import InputError


class FullySharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with FSDP2 over all ranks, however many there are.

    Each rank writes its own part of a checkpoint, which is a folder.

    Args:
        process_group_backend: of torch; null takes NCCL on CUDA and gloo on CPUs.
        timeout_s: ranks that wait so long for one another end with an error.
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
        """Save a checkpoint next to an older one of that name, and only then replace it.

        Lightning writes into the older folder. A run that is killed meanwhile would leave a
        mixture of both, which loads without an error.

        Raises:
            InputError: it cannot be written, or, in the background, the one before; older ones
                stay complete.
        """
        self._saves.wait()
        path = Path(self.broadcast(filepath))
        fresh = path.with_name(path.name + PART)
        if self.global_rank == 0:
            _clear(path)
        self.barrier()
        if self._save_in_background:
            self._save_async(checkpoint, fresh, path)
            return
        with error_context(path):
            super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.global_rank == 0:
            replace_folder(path, fresh, path.with_name(path.name + OLD))
        self.barrier()

    def _save_async(self, checkpoint: dict[str, Any], fresh: Path, path: Path) -> None:
        """Copy a checkpoint to the host, and write it while training continues.

        A gloo group of its own keeps the ranks' messages apart from those of training. Rank 0
        learns when all have written, and gives the folder its name.
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
        """Remove a checkpoint, after those that replace it are written.

        It loses its name first: what a removal that is cut short leaves does not pass for complete.
        """
        if self.global_rank == 0:
            self.when_saved(_remove, Path(filepath))

    def when_saved(self, work: Callable[..., None], *args: Any) -> None:
        """Call something on this rank once all checkpoints are written, unless that fails."""
        self._saves.submit(work, *args)
        if not self._save_in_background:
            self._saves.wait()

    def wait_for_saves(self) -> None:
        """Wait until this rank has written its checkpoints; raises as `save_checkpoint`."""
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
        # as Lightning does it, except for its readers, which run code that is in the files
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
        """Move what is not sharded: FSDP has placed the shards, offloaded ones too."""
        assert self.model is not None
        sharded = {n: m for n, m in self.model.named_children() if isinstance(m, FSDPModule)}
        for name in sharded:
            del self.model._modules[name]
        super().model_to_device()
        self.model._modules.update(sharded)

    def setup_environment(self) -> None:
        """Take all ranks; Lightning's ``auto`` would take one a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def when_saved(strategy: Strategy, work: Callable[..., None], *args: Any) -> None:
    """Call something when all checkpoints so far are written, under a strategy of any kind.

    Where they are written in the background, it is not called if that fails.
    """
    if isinstance(strategy, FullySharded):
        strategy.when_saved(work, *args)
    elif isinstance(strategy.checkpoint_io, BackgroundCheckpointIO):
        strategy.checkpoint_io.when_saved(work, *args)
    else:
        work(*args)


def wait_for_saves(strategy: Strategy) -> None:
    """Wait until this rank has written its checkpoints, where that is done in the background."""
    strategy.checkpoint_io.teardown()
    if isinstance(strategy, FullySharded):
        strategy.wait_for_saves()


def finish_saves(strategy: Strategy) -> None:
    """Wait until all ranks have written their checkpoints; all have to call it."""
    wait_for_saves(strategy)
    strategy.barrier()


def _clear(path: Path) -> None:
    """Make room for a checkpoint: clean up what a killed run left of one of its name."""
    survivor = surviving(path)
    if survivor != path:  # perhaps what this run resumed from, and the only one
        path.unlink(missing_ok=True)  # a link that leads nowhere
        survivor.replace(path)
    for end in (PART, OLD):
        delete(path.with_name(path.name + end))
    for left in path.parent.glob(f"*{GONE}"):
        delete(left)


def _finish(written: Future[Any], rest: io.BytesIO | None, fresh: Path, path: Path) -> None:
    """Wait until all ranks have written their parts; the one that has the rest adds it."""
    with error_context(path):
        written.result()
        if rest is None:
            return
        with (fresh / REST).open("wb") as out:
            out.write(rest.getbuffer())
            to_disk(out)
        replace_folder(path, fresh, path.with_name(path.name + OLD))


def _remove(path: Path) -> None:
    """Remove a checkpoint, its name first, and what an interrupted replacement left of it."""
    gone, *left = (path.with_name(path.name + end) for end in (GONE, PART, OLD))
    if path.exists():
        path.replace(gone)
    for other in (gone, *left):
        delete(other)


def _check_shards(path: Path, contents: Metadata) -> None:
    """Raise InputError where a part of a checkpoint is missing or too short."""
    sizes: dict[str, int] = {}
    for part in contents.storage_data.values():
        end = part.offset + part.length
        sizes[part.relative_path] = max(sizes.get(part.relative_path, 0), end)
    for name, size in sorted(sizes.items()):
        file = path / name
        if not file.is_file() or file.stat().st_size < size:
            raise InputError(
                f"--ckpt_path: {path} is incomplete: {name} is missing or cut off; give another"
            )
