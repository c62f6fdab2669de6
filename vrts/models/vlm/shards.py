"""Loading of sharded weights: each process reads its own part, and holds no more at any time.

A model is built without memory (on torch's meta device), sharded, and filled from safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.initialization import no_init_weights

from vrts.models.attention.shared_prefix import SHARED_PREFIX
from vrts.types import InputError

PATH_KEY = "model.policy.init_args.path"
"""As users write it."""

INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several files."""

SAMPLE_BYTES = 4096
"""That `weights_digest` reads at each place of a tensor."""


def local_folder(name_or_path: str) -> Path:
    """Folder of a model's files, which are downloaded where the name is a hub id."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    return Path(snapshot_download(name_or_path, allow_patterns=["*.safetensors", "*.json"]))


def known_folder(name_or_path: str) -> Path | None:
    """Folder of a model's files where they are on this machine, else None."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(name_or_path, local_files_only=True))
    except (OSError, ValueError):  # not downloaded; no name of the hub
        return None


def weights_digest(folder: Path) -> str | None:
    """Return a digest of a model's weights, however they are divided into files.

    It is of the name, dtype and shape of each tensor and of samples of its bytes: of its beginning,
    its middle and its end. Training moves all of a tensor.

    Args:
        folder: with safetensors.

    Returns:
        None where there are no weights, or files that cannot be read.
    """
    tensors: dict[str, str] = {}
    try:
        for file in _files(folder):
            with file.open("rb") as data:
                length = int.from_bytes(data.read(8), "little")
                header = json.loads(data.read(length))
                header.pop("__metadata__", None)
                for name, about in header.items():
                    start, end = (8 + length + offset for offset in about["data_offsets"])
                    digest = hashlib.sha256(f"{about['dtype']} {about['shape']}".encode())
                    last = max(start, end - SAMPLE_BYTES)
                    for place in (start, (start + last) // 2, last):
                        data.seek(place)
                        digest.update(data.read(min(SAMPLE_BYTES, end - place)))
                    tensors[_current_name(name)] = digest.hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever loads them says what is wrong
    if not tensors:
        return None
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


def build_empty(folder: Path, dtype: str, attn_implementation: str) -> Any:
    """Build a model whose parameters are on the meta device; its few buffers are real.

    Args:
        folder: with configuration and generation config.
        dtype: of the weights, or ``auto`` for the stored one.
        attn_implementation: of the vision tower.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: Any = AutoModelForImageTextToText.from_config(
            config,
            dtype=(config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype),
            attn_implementation={
                "text_config": SHARED_PREFIX,
                "vision_config": attn_implementation,
            },
            trust_remote_code=False,
        )
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


@contextmanager
def pretended_on_cpu(model: nn.Module) -> Iterator[None]:
    """Context in which empty parameters seem to be on the CPU, still without memory.

    peft puts adapters where the layers are, and would lose their first values on the meta device.
    """
    empty = dict(model.named_parameters(remove_duplicate=False))
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in empty}
    pretended: dict[int, nn.Parameter] = {}
    for name, parameter in empty.items():
        fake = nn.Parameter(
            torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape),
            parameter.requires_grad,
        )
        setattr(owners[name], name.rpartition(".")[2], pretended.setdefault(id(parameter), fake))
    yield
    for name, parameter in empty.items():
        parameter.requires_grad_(getattr(owners[name], name.rpartition(".")[2]).requires_grad)
        setattr(owners[name], name.rpartition(".")[2], parameter)


@torch.no_grad()
def fill(model: nn.Module, folder: Path) -> None:
    """Read the parameters of a sharded model, each process its own rows of them.

    Args:
        model: its parameters have memory, but no values yet. Adapters are left alone.
        folder: with safetensors.

    Raises:
        InputError: tensors are missing, of another shape or cannot be read.
    """
    named = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }
    waiting = {id(parameter): name for name, parameter in named.items()}
    for file in _files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118 it is no mapping
                    parameter = named.get(_current_name(stored))
                    if parameter is not None:
                        _copy_own_rows(tensors.get_slice(stored), parameter, f"{file}: {stored}")
                        waiting.pop(id(parameter), None)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{PATH_KEY}: cannot load {file}: {error}") from error
    if waiting:
        raise InputError(
            f"{PATH_KEY}: the weights in {folder} lack {len(waiting)} tensors of the "
            f"architecture in its config.json, {min(waiting.values())} first; the folder is "
            "incomplete"
        )


def check_shapes(folder: Path) -> None:
    """Compare the shapes of stored tensors with those that the configuration makes.

    Raises:
        InputError: one differs, or a file cannot be read.
    """
    with torch.device("cpu"):  # a run's own device would hold each of them for a moment
        empty = build_empty(folder, "auto", "sdpa")
    expected = {name: tuple(p.shape) for name, p in empty.named_parameters()}
    for file in _files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118 it is no mapping
                    shape = tuple(tensors.get_slice(stored).get_shape())
                    want = expected.get(_current_name(stored), shape)
                    _check_shape(shape, want, f"{file}: {stored}")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{PATH_KEY}: cannot load {file}: {error}") from error


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if shape != expected:
        raise InputError(
            f"{PATH_KEY}: {where} has shape {shape}, but config.json makes it {expected}; one of "
            "the two files is of another model"
        )


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _current_name(stored: str) -> str:
    """Name of a parameter in the model; published files have names of older transformers."""
    if stored.startswith("visual."):
        return f"model.{stored}"
    if stored.startswith(("model.layers.", "model.norm.", "model.embed_tokens.")):
        return f"model.language_model.{stored.removeprefix('model.')}"
    return stored


def _copy_own_rows(stored: Any, parameter: torch.Tensor, where: str) -> None:
    """Read what this process holds of a tensor: FSDP divides by rows, as `torch.chunk` does."""
    shape = tuple(stored.get_shape())
    _check_shape(shape, tuple(parameter.shape), where)
    if not isinstance(parameter, DTensor):
        parameter.copy_(stored[:])
        return
    local = parameter.to_local()
    rows = -(-shape[0] // parameter.device_mesh.size())
    start = min(rows * parameter.device_mesh.get_local_rank(), shape[0])
    if len(local):
        local.copy_(stored[start : start + len(local)])
