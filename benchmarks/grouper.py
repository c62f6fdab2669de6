"""`prefix_grouper`, a library that also forwards a prompt once for its completions.

It has no forward of its own: a model hands it queries, keys and values, and it calls the model's
attention on the prompt, and on completions whose keys and values are preceded by copies of the
prompt's. Here that attention is torch's SDPA, as in vrts on the same device.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from prefix_grouper import PrefixGrouper

from benchmarks.naive import head_logprobs
from vrts.models.attention.shared_prefix import PackedLayout
from vrts.models.families.family import Vision
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.policy import TransformersPolicy


class GrouperLayout:
    """Attention of one prompt and its completions, all of one length, by the library.

    Args:
        grouper: knows the lengths.
    """

    def __init__(self, grouper: PrefixGrouper) -> None:
        self._grouper = grouper

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `vrts.models.attention.shared_prefix.Layout`."""

        def attention(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: torch.Tensor
        ) -> torch.Tensor:
            groups, own, seen = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
            is_prompt = own == seen
            mask = None
            if not is_prompt:  # a completion sees all of the prompt before it; nothing is padded
                mask = torch.ones(own, seen, dtype=torch.bool, device=q.device).tril(seen - own)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_prompt, scale=scaling
            )
            return out.transpose(1, 2)

        return cast(torch.Tensor, self._grouper.forward(attention, query, key, value))


def grouper_logprobs(
    policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor
) -> torch.Tensor:
    """Log-probs ``[G, L]`` of completions of a prompt, from features that it has already."""
    device, (G, L), P = policy.device, ids.shape, prompt.num_tokens
    whole = torch.ones(1, P, dtype=torch.bool, device=device), torch.ones_like(ids).bool()
    grouper = PrefixGrouper.from_ungrouped_masks(*whole, group_sizes=G, device=device)
    row = grouper.concat_input(prompt.input_ids[None].to(device), whole[0], ids, whole[1])
    steps = (prompt.next_position + torch.arange(L)).repeat(G)
    layout: Any = GrouperLayout(grouper)
    states = policy.family.hidden(
        policy.base,
        row,
        torch.cat([prompt.positions, steps.expand(3, -1)], 1)[:, None].to(device),
        cast(PackedLayout, layout),
        Vision(prompt.vision_places.to(device), prompt.features.to(device)),
    )
    _, _, states, _ = grouper.split_output(states, include_prefix_last=1)
    return head_logprobs(policy, states[:, :-1], ids)


def grouper_backward(policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor) -> None:
    """Gradient of completions ``[G, L]``."""
    (-grouper_logprobs(policy, prompt, ids).sum()).backward()
