"""QLoRA: a base of 4-bit matrices, which an adapter is trained on (arXiv 2305.14314)."""

from __future__ import annotations

from typing import Any, Literal

import torch

from vrts.types import InputError

Quantize = Literal["nf4"]

UNQUANTIZED = [
    "model.visual",
    "model.vision_model",
    "model.connector",
    "lm_head",
    "in_proj_a",
    "in_proj_b",
]
"""Parts of a model that keep their dtype; the last two are the small gates of linear attention,
which decide how long it remembers."""


def check_quantize(quantize: Quantize, adapts: bool) -> None:
    """Check that a base can be held in 4 bits, before anything is loaded.

    Raises:
        InputError: there is no adapter (`adapts`), or bitsandbytes is missing.
    """
    if not adapts:
        raise InputError(
            f"model.policy.quantize is {quantize}, and 4-bit weights are not trained themselves; "
            "put --config configs/lora.yaml before it, or set quantize: null"
        )
    try:
        import bitsandbytes  # noqa: F401 takes a second, for runs without it too
    except ImportError as error:
        raise InputError(
            f"model.policy.quantize is {quantize}, which needs bitsandbytes ({error}); "
            "pip install 'vrts[qlora]'"
        ) from error


def quantization_options(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained`, for matrices unpacked to `dtype`."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=UNQUANTIZED,
    )
    # packed where the run computes, where that is known: a CPU takes minutes for the 7B
    return {"quantization_config": config, "device_map": {"": torch.get_default_device()}}


def keep_packing(model: torch.nn.Module) -> None:
    """Keep layers from packing their weights otherwise for a CPU as soon as they do not train.

    The policy and what samples from it share them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantization_states(model: torch.nn.Module) -> list[Any]:
    """What unpacks the weights of a model's layers; shared by whoever shares the weights."""
    states = [getattr(module, "quant_state", None) for module in model.modules()]
    return [state for state in states if state is not None]


def check_mergeable_weights(quantize: Quantize | None) -> None:
    """Refuse to merge an adapter into 4-bit weights.

    Raises:
        InputError: the weights are in 4 bits.
    """
    if quantize:
        raise InputError(
            f"merge: model.policy.quantize is {quantize}, and 4-bit weights would round the "
            "adapter away; merge with --model.policy.init_args.quantize null"
        )
