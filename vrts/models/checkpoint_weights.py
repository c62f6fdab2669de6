"""Trained weights out of checkpoints; nothing but tensors is unpickled."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from vrts.models.checkpoints import check_same_model
from vrts.models.latest import REST, SHARDS
from vrts.models.sharding import sharded_like
from vrts.types import InputError

PREFIX = "state_dict."
"""Of names of weights in sharded checkpoints."""
HARMLESS = frozenset(
    {
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
    }
)
"""Names that torch pickles into `SHARDS`, beside those of dtypes."""

DAMAGE = (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError)
"""What reading a damaged file raises."""


def load_trained(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load trained weights of a checkpoint into a module.

    Args:
        module: whose policy is loaded. Where it is sharded (FSDP2) it stays so, and all processes
            have to call this.
        path: a file, or a folder that sharded training wrote with any number of processes.

    Returns:
        What else is in the checkpoint, other than optimizer states where it is a folder.

    Raises:
        InputError: it is damaged, incomplete, of another model, or holds more than plain data.
    """
    try:
        return _load_folder(module, path) if path.is_dir() else _load_file(module, path)
    except InputError:
        raise
    except (*DAMAGE, CheckpointException) as error:
        cause: BaseException = error
        if isinstance(error, CheckpointException):
            cause = next(iter(error.failures.values()))[0]  # of the one process that reads here
        first = str(cause).strip().partition("\n")[0]
        raise InputError(
            f"--ckpt_path: {path} is no checkpoint of vrts fit, or a damaged one ({first}); give "
            "another"
        ) from error


def _load_file(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load from one file, of which only the weights are read."""
    checkpoint = torch.load(path, "cpu", mmap=True, weights_only=True)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"--ckpt_path: {path} has no state_dict; give a file that fit wrote")
    check_same_model(module, checkpoint)
    named = dict(module.named_parameters(remove_duplicate=False))
    state = checkpoint.pop("state_dict")
    with torch.no_grad():
        for name, whole in state.items():
            named[name].copy_(sharded_like(whole, named[name]))
    checkpoint.pop("optimizer_states", None)
    return checkpoint


def _load_folder(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load from a sharded checkpoint, each weight into its place."""
    for name in (SHARDS, REST):
        if not (path / name).is_file():
            raise InputError(
                f"--ckpt_path: {path} is no checkpoint, or an incomplete one: it has no {name}; "
                "give another"
            )
    reader = CarefulReader(path)
    saved = {
        name.removeprefix(PREFIX): value
        for name, value in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(PREFIX)
    }
    # what is no tensor would be unpickled
    sizes = {n: v.size for n, v in saved.items() if isinstance(v, TensorStorageMetadata)}
    tensors = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    check_same_model(module, {"state_dict": tensors})
    named = dict(module.named_parameters(remove_duplicate=False))
    target = {PREFIX.rstrip("."): {name: named[name].data for name in sizes}}
    sharded = any(isinstance(weight, DTensor) for weight in named.values())
    with warnings.catch_warnings():
        # this is one process on purpose
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(target, storage_reader=reader, no_dist=not sharded)
    rest = torch.load(path / REST, "cpu", mmap=True, weights_only=True)
    assert isinstance(rest, dict)
    return rest


class CarefulReader(FileSystemReader):
    """Reads a sharded checkpoint whose list of contents can name no code to run."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read what the checkpoint holds.

        Raises:
            pickle.UnpicklingError: the list has objects that torch does not write into it.
        """
        with (Path(self.path) / SHARDS).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{SHARDS} lists nothing")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Finds the names that torch pickles, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in HARMLESS:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{SHARDS} asks for {module}.{name}")
