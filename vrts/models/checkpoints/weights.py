"""Loading trained weights from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vrts.models.checkpoints.contents import check_same_model
from vrts.models.checkpoints.finding import REST, SHARDS
from vrts.models.checkpoints.reading import (
    WEIGHTS,
    listed_weights,
    load_shards,
    read_contents,
    read_file,
)
from vrts.models.sharding import is_sharded, sharded_like
from vrts.types import InputError


def load_trained(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load trained weights of a checkpoint into a module whose policy is loaded.

    Args:
        module: where it is sharded (FSDP2) it stays so, and all ranks have to call this.
        path: a file, or a folder that sharded training wrote with any number of ranks.

    Returns:
        The rest of the checkpoint, without optimizer states.

    Raises:
        InputError: it is damaged, incomplete, of another model, or holds more than plain data.
    """
    return _load_folder(module, path) if path.is_dir() else _load_file(module, path)


def _load_file(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load from one file, of which only the weights are read."""
    checkpoint = read_file(path)
    if "state_dict" not in checkpoint:
        raise InputError(f"--ckpt_path: {path} has no state_dict; give a file that fit wrote")
    check_same_model(module, checkpoint)
    named = dict(module.named_parameters(remove_duplicate=False))
    state = checkpoint.pop("state_dict")
    with torch.no_grad():
        for name, full in state.items():
            named[name].copy_(sharded_like(full, named[name]))
    checkpoint.pop("optimizer_states", None)
    return checkpoint


def _load_folder(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load from a sharded checkpoint, each weight into its place."""
    for name in (SHARDS, REST):
        if not (path / name).is_file():
            raise InputError(
                f"--ckpt_path: {path} is not a checkpoint, or an incomplete one: it has no {name}; "
                "give another"
            )
    tensors = listed_weights(read_contents(path))
    check_same_model(module, {"state_dict": tensors})
    named = dict(module.named_parameters(remove_duplicate=False))
    target = {WEIGHTS: {name: named[name].data for name in tensors}}
    load_shards(target, path, alone=not is_sharded(module))
    return read_file(path / REST)
