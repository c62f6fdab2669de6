"""All reading of checkpoints; nothing in them can run code."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from vrts.models.checkpoints.finding import SHARDS
from vrts.types import InputError

WEIGHTS = "state_dict"
"""Key of the weights in a checkpoint, and first part of their names in a sharded one."""

ALLOWED_GLOBALS = {
    "pathlib": "PosixPath PurePosixPath WindowsPath",
    "torch": "Size",
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": "BytesStorageMetadata ChunkStorageMetadata Metadata "
    "MetadataIndex StorageMeta TensorProperties TensorStorageMetadata _MEM_FORMAT_ENCODING",
}
"""Names that torch pickles into `SHARDS`, by module; dtypes too."""

CORRUPTION_ERRORS = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, EOFError),
    pickle.UnpicklingError,
)
"""What reading a damaged or malicious file raises."""


def read_file(path: Path, mmap: bool = True) -> dict[str, Any]:
    """Read a checkpoint that is a file, or the file `REST` of a sharded one.

    With `mmap`, tensors stay on the disk until they are used.

    Raises:
        InputError: it is damaged, or holds anything but tensors and plain values.
    """
    try:
        found = torch.load(path, "cpu", mmap=mmap, weights_only=True)
    except CORRUPTION_ERRORS as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, dict):
        raise InputError(
            f"--ckpt_path: {path} is not a checkpoint of vrts fit: it has no state_dict; give "
            "another"
        )
    return found


def read_contents(path: Path) -> Metadata:
    """Read what the folder of a sharded checkpoint lists as its contents.

    Raises:
        InputError: the list is damaged, or names anything that torch does not write into it.
    """
    try:
        return SafeMetadataReader(path).read_metadata()
    except CORRUPTION_ERRORS as error:
        raise _unreadable(path, error) from error


def listed_weights(contents: Metadata) -> dict[str, torch.Tensor]:
    """The weights that a sharded checkpoint lists, as tensors without memory."""
    prefix = f"{WEIGHTS}."
    return {
        name.removeprefix(prefix): torch.empty(value.size, device="meta")
        for name, value in contents.state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(value, TensorStorageMetadata)
    }


def load_shards(target: dict[str, Any], path: Path, alone: bool = False) -> None:
    """Load parts of a sharded checkpoint into tensors, sharded or not, in place.

    Args:
        target: state dicts by their names in the checkpoint.
        path: of its folder.
        alone: read by this rank only; else all ranks have to call this.

    Raises:
        InputError: a part is missing or damaged, or holds anything but tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(
                target,
                storage_reader=SafeMetadataReader(path),
                planner=_SafeLoadPlanner(),
                no_dist=alone,
            )
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise _unreadable(path, cause) from error


def _unreadable(path: Path, error: BaseException) -> InputError:
    """Message about a checkpoint that cannot be read."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, pickle.UnpicklingError) and reason.startswith("Weights only"):
        reason = "it holds more than tensors and plain values, and code in it is never run"
    return InputError(
        f"--ckpt_path: {path} is not a checkpoint of vrts fit, or a damaged one ({reason}); give "
        "another"
    )


class SafeMetadataReader(FileSystemReader):
    """Reads a sharded checkpoint without running code that its list of contents may name."""

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
    """Allows the names that torch pickles, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED_GLOBALS.get(module, "").split():
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{SHARDS} names {module}.{name}")


class _SafeLoadPlanner(DefaultLoadPlanner):
    """Loads plain values where torch's own would unpickle anything that is not a tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        found = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], found)
