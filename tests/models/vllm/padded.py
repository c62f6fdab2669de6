"""The embedded model in a shape that vLLM's CPU build takes: the same function."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HEAD = 32
"""Dimensions of a head, of which the embedded model uses 24."""


def pad_model(source: Path, folder: Path) -> Path:
    """Write a model of Qwen2.5-VL with larger heads and a larger D, padded with zeros.

    Its head is a copy of the embeddings of tokens, which that build does not take over together.

    Rotation pairs the two halves of a head, so each half is padded by itself; attention divides by
    the root of the head's size, and norms by that of D, which is made up for in the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text())
    text = config["text_config"]
    D, heads = text["hidden_size"], text["num_attention_heads"]
    size, wide = D // heads, heads * HEAD
    rotated = torch.tensor([*range(size // 2), *range(HEAD // 2, HEAD // 2 + size // 2)])

    def widen(weight: torch.Tensor, dim: int) -> torch.Tensor:
        """Pad a dimension of D elements."""
        shape = list(weight.shape)
        shape[dim] = wide
        padded = weight.new_zeros(shape)
        padded.narrow(dim, 0, D).copy_(weight)
        return padded

    def widen_heads(weight: torch.Tensor) -> torch.Tensor:
        """Pad the heads of which rows consist."""
        rows = weight.unflatten(0, (-1, size))
        padded = weight.new_zeros(len(rows), HEAD, *weight.shape[1:])
        padded[:, rotated] = rows
        return padded.flatten(0, 1)

    weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        last = name.split(".")[-2]
        if "visual" in name:
            weight = widen(weight, 0) if "merger.mlp.2" in name else weight
        elif last.endswith("norm"):
            weight = widen(weight * math.sqrt(D / wide), 0)
        elif last in ("q_proj", "k_proj", "v_proj"):
            weight = widen_heads(weight)
            weight = widen(weight, 1) if weight.ndim == 2 else weight
            weight = weight * math.sqrt(HEAD / size) if last == "q_proj" else weight
        elif last == "o_proj":
            weight = widen(widen_heads(weight.T).T, 0)
        else:
            weight = widen(weight, 0 if last == "down_proj" else 1)
        weights[name] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rope = text["rope_parameters"]
    text["hidden_size"], text["rms_norm_eps"] = wide, text["rms_norm_eps"] * D / wide
    rope["rope_theta"] **= HEAD / size
    rope["mrope_section"] = [4, 4, 8]
    config["vision_config"]["out_hidden_size"] = wide
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    untie(folder)
    return folder


def untie(folder: Path) -> None:
    """Give a model a head of its own, which is a copy of the embeddings of tokens."""
    weights = load_file(folder / "model.safetensors")
    (embeddings,) = (w for name, w in weights.items() if name.endswith("embed_tokens.weight"))
    weights["lm_head.weight"] = embeddings.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
