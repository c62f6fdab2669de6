"""The strategy of fully sharded training, FSDP2. Plug-in point ``trainer.strategy``."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule

from vrts.models.checkpoints import check_same_model
from vrts.models.latest import OLD, PART, is_complete, surviving
from vrts.types import InputError


class FullySharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all processes for FSDP2, however many there are.

    Args:
        save_distributed_checkpoint: each process writes its own part of a checkpoint, which is a
            folder then; false gathers everything into one file.
        process_group_backend: of torch; null takes NCCL on CUDA and gloo on CPUs.
        timeout_s: processes that wait so long for one another end with an error.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout_s: PositiveInt = 1800,
    ) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=int(timeout_s)),
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None
    ) -> None:
        """Save a checkpoint beside an older one of that name, and only then replace it.

        Lightning writes into the older folder. A run that is killed meanwhile would leave a
        mixture of both, which loads without a word.
        """
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        fresh, old = (path.with_name(path.name + end) for end in (PART, OLD))
        if self.global_rank == 0:
            survivor = surviving(path)
            if survivor != path:  # perhaps what this run went on from, and the only one
                survivor.replace(path)
            for left in (fresh, old):
                _remove(left)
        self.barrier()
        super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.global_rank == 0:
            if path.exists():
                path.replace(old)
            fresh.replace(path)
            _remove(old)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint, into the shards.

        Raises:
            InputError: it is of another model, incomplete, or of a run that was not sharded.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_file():
            _check_sharded(path)
        else:
            if not is_complete(path):
                raise InputError(
                    f"--ckpt_path: {path} is no checkpoint, or an incomplete one; give another"
                )
            contents = FileSystemReader(path).read_metadata()
            _check_shards(path, contents)
            saved = contents.state_dict_metadata
            prefix = "state_dict."
            tensors = {
                name.removeprefix(prefix): torch.empty(value.size, device="meta")
                for name, value in saved.items()
                if name.startswith(prefix) and isinstance(value, TensorStorageMetadata)
            }
            assert self.lightning_module is not None
            check_same_model(self.lightning_module, {"state_dict": tensors})
        return super().load_checkpoint(path, weights_only)

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


def _remove(path: Path) -> None:
    """Remove a checkpoint, also one that an earlier run in this place wrote as a file."""
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


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


def _check_sharded(file: Path) -> None:
    """Refuse a checkpoint whose optimizer states have numbers for names.

    Raises:
        InputError: it was written without sharding.
    """
    states = torch.load(file, "cpu", mmap=True, weights_only=True).get("optimizer_states", [])
    if any(isinstance(name, int) for state in states for name in state["state"]):
        raise InputError(
            f"--ckpt_path: {file} is of a run that was not sharded, whose optimizer states do not "
            "fit; go on with that run's trainer.strategy, or begin anew from its exported model "
            "(model.policy.init_args.path)"
        )
