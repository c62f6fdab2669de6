"""Prompts as vLLM takes them: token ids, and features that vrts has encoded already.

vLLM reads positions off the grids of its multi-modal items, one after the other. A video whose
temporal patches are further apart than one position (Qwen2.5-VL) is one item with its seconds. In
the other families each temporal patch is an image of its own, which gives the same positions and
leaves no timestamps for vLLM to write.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from vrts.models.families.family import Family
from vrts.models.families.prompt import VideoPrompt
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.families.qwen3_vl import Qwen3VL
from vrts.models.families.smolvlm import SmolVLM2
from vrts.types import InputError

SERVED: tuple[type[Family], ...] = (Qwen2_5VL, Qwen3VL, SmolVLM2)
"""Families, with those derived from them, whose features vLLM takes."""


def engine_input(prompt: VideoPrompt, family: Family, dtype: torch.dtype) -> Any:
    """A prompt and its features, as `LLMEngine.add_request` takes them.

    Args:
        prompt: with features.
        family: of its model.
        dtype: that vLLM computes in.

    Raises:
        InputError: vLLM cannot give the prompt its positions.
    """
    from transformers import BatchFeature
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalFieldConfig as Field
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    t, h, w = prompt.grid
    features = prompt.features.to("cpu", dtype)  # [vision tokens, F]
    is_video = isinstance(family, Qwen2_5VL) and not family.is_image(prompt)
    kind, num_items = ("video", 1) if is_video else ("image", t)
    places = prompt.vision_places.view(num_items, -1)  # [items, tokens of one]
    data: dict[str, torch.Tensor] = {}
    fields: dict[str, Any] = {}
    if isinstance(family, SmolVLM2):
        data[f"{kind}_embeds"] = features.view(num_items, -1, features.shape[-1])
        fields[f"{kind}_embeds"] = Field.batched(kind)
    else:
        sizes = torch.full((num_items,), places.shape[1], device="cpu")
        data[f"{kind}_embeds"] = features
        fields[f"{kind}_embeds"] = Field.flat_from_sizes(kind, sizes)
        grid = [t // num_items, h, w]
        data[f"{kind}_grid_thw"] = torch.tensor([grid] * num_items, device="cpu")
        fields[f"{kind}_grid_thw"] = Field.batched(kind, keep_on_cpu=True)
    if is_video:
        a_second = getattr(family.config.vision_config, "tokens_per_second", 1.0)
        times = prompt.positions[0][prompt.vision_places].view(t, -1)[:, 0]
        seconds = fitting_seconds(times - times[0], a_second)
        if seconds is None:
            raise InputError(
                f"question {prompt.question.id}: no rate of frames gives vLLM the positions of its "
                f"{t} pairs of frames; take NativeEngine for it"
            )
        data["second_per_grid_ts"] = torch.tensor([seconds], dtype=torch.float64, device="cpu")
        fields["second_per_grid_ts"] = Field.batched(kind, keep_on_cpu=True)
    # Keys and values of a prefix are shared where its tokens and these names are the same.
    digest = hashlib.blake2b(digest_size=16)
    for part in (features, prompt.positions[:, prompt.vision_places]):
        digest.update(part.contiguous().view(torch.uint8).numpy())
    return mm_input(
        prompt.input_ids.tolist(),
        MultiModalKwargsItems.from_hf_inputs(BatchFeature(data), fields),
        {kind: [f"{digest.hexdigest()}-{i}" for i in range(num_items)]},
        {kind: [PlaceholderRange(int(own[0]), len(own)) for own in places]},
    )


def fitting_seconds(times: torch.Tensor, tokens_per_second: float) -> float | None:
    """Seconds between temporal patches from which vLLM computes the positions that vrts has.

    vLLM truncates in float64 what the weights were trained with in float32, so the clip's own
    seconds put a patch one position early now and then.

    Args:
        times: int64 ``[t]``, positions in time of temporal patches, counted from the first one.
        tokens_per_second: positions of a second.

    Returns:
        None where none do.
    """
    index, wanted = np.arange(len(times)), times.numpy()
    if len(index) == 1:
        return 1.0 / tokens_per_second
    # index * step has to be in [wanted, wanted + 1) for each
    low, high = (wanted[1:] / index[1:]).max(), ((wanted[1:] + 1) / index[1:]).min()
    seconds = float((low + high) / 2 / tokens_per_second)
    step = seconds * tokens_per_second
    got = index if step == 1.0 else (index * step).astype(np.int64)
    return seconds if (got == wanted).all() else None
