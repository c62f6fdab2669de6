"""Prompts as vLLM takes them: token ids, and features that vrts has encoded.

vLLM computes positions from the grids of a prompt's items. A video of Qwen2.5-VL, whose time is in
its positions, is one item with its seconds. In other families each temporal patch is an image of
its own, which has the same positions and leaves vLLM no timestamps to write.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from vrts.models.families.family import Family
from vrts.models.families.prompt import VideoPrompt
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.families.qwen3_vl import Qwen3VL
from vrts.models.families.smolvlm import SmolVLM2

SERVED: tuple[type[Family], ...] = (Qwen2_5VL, Qwen3VL, SmolVLM2)
"""Families, and what is derived from them, whose features vLLM takes."""


def engine_input(prompt: VideoPrompt, family: Family, dtype: torch.dtype) -> Any:
    """A prompt with its features, for vLLM's ``LLMEngine.add_request``.

    Args:
        prompt: to convert.
        family: of its model.
        dtype: that vLLM computes in.
    """
    from transformers import BatchFeature
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalFieldConfig as Field
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    t, h, w = prompt.grid
    is_video = isinstance(family, Qwen2_5VL) and not family.is_image(prompt)
    kind, n = ("video", 1) if is_video else ("image", t)
    places = prompt.vision_places.view(n, -1)  # [items, tokens]
    features = prompt.features.to("cpu", dtype).contiguous()  # [vision tokens, F]
    sizes = torch.full((n,), places.shape[1], device="cpu")
    grids = torch.tensor([[t // n, h, w]] * n, device="cpu")
    data: dict[str, tuple[torch.Tensor, Any]] = {
        "embeds": (features, Field.flat_from_sizes(kind, sizes)),
        "grid_thw": (grids, Field.batched(kind, keep_on_cpu=True)),
    }
    if isinstance(family, SmolVLM2):
        data = {"embeds": (features.unflatten(0, (n, -1)), Field.batched(kind))}
    data = {f"{kind}_{name}": value for name, value in data.items()}
    if is_video:
        a_second = getattr(family.config.vision_config, "tokens_per_second", 1.0)
        times = prompt.positions[0][prompt.vision_places].view(t, -1)[:, 0]
        seconds = fitting_seconds(times - times[0], a_second)
        each = torch.tensor([seconds], dtype=torch.float64, device="cpu")
        data["second_per_grid_ts"] = (each, Field.batched(kind, keep_on_cpu=True))
    # keys and values of a prefix are shared where ids and these names agree
    name = hashlib.blake2b(digest_size=16)
    for tensor in (features, prompt.positions[:, prompt.vision_places].contiguous()):
        name.update(tensor.view(torch.uint8).numpy().data)
    return mm_input(
        prompt.input_ids.tolist(),
        MultiModalKwargsItems.from_hf_inputs(
            BatchFeature({key: tensor for key, (tensor, _) in data.items()}),
            {key: field for key, (_, field) in data.items()},
        ),
        {kind: [f"{name.hexdigest()}-{i}" for i in range(n)]},
        {kind: [PlaceholderRange(int(own[0]), len(own)) for own in places]},
    )


def fitting_seconds(times: torch.Tensor, tokens_per_second: float) -> float:
    """Seconds between temporal patches from which vLLM computes the positions that vrts has.

    Weights were trained with positions that are truncated in float32, and vLLM truncates in
    float64: with a clip's own seconds, a patch of one clip in 40 is a position off. With these, of
    29,160 clips at common rates, 12 have 1 to 3 patches that are.

    Args:
        times: int64 ``[t]``, positions of temporal patches, from 0 on.
        tokens_per_second: positions of a second.
    """
    if len(times) == 1:
        return 1.0 / tokens_per_second
    index = torch.arange(1, len(times), dtype=torch.float64, device="cpu")
    # index * step is to be in [times, times + 1), where that is possible for all
    low, high = (times[1:] / index).max(), ((times[1:] + 1) / index).min()
    return float((low + high) / 2 if low < high else low) / tokens_per_second
