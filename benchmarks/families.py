"""The update of each model family: a prompt forwarded once, against once for each completion.

``python -m benchmarks.families`` (some minutes on a CPU) compares log-probs with gradient, of a
random model of some 13 million parameters of each family, as ``python -m benchmarks.update`` does
for Qwen2.5-VL: naive passes forward vision tower, prompt and completion row by row by
transformers' own model, the shared pass is `TransformersPolicy.logprobs` with one pass of the
tower. The table has the ratio of times next to the token count's ``G(P+L) / (P+G·L)``; for the
text model alone, whose features are known in both, it is what the formula counts. A second table
compares sampling with ``generate`` of transformers, a third
has the operators that the shared pass of the hybrid spends its time in.

``--only rollout --family Qwen3-VL`` measures a part, and keeps the other rows of the file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import rollout
from benchmarks.common import (
    RESULTS,
    alternating_seconds,
    encode,
    print_table,
    random_completions,
    random_sample,
    write_results,
)
from benchmarks.naive import head_logprobs, token_rows
from benchmarks.scaling.checkpoints import Checkpoint, shaped_policy
from benchmarks.update import formula, shared_backward, text_backward
from tests.models.families import tiny
from vrts.models.families.family import Vision
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.packing import pack
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Completion

NAME, OPERATORS = "families", "operators of Qwen3.5"
"""The file of results, and one of its sections."""
FRAMES, G, L = 24, 8, 48
REPEATS = 3
"""Timed calls of each, of which the median counts, in CPU time of the one thread."""
TEXT: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 384,
}
HYBRID = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(8)]


def _rotary(*section: int, **more: Any) -> dict[str, Any]:
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}
    return {"rope_parameters": rotary | more}


SHAPES: dict[str, tuple[Checkpoint, int]] = {
    "Qwen2.5-VL": (
        Checkpoint(
            tiny.build_qwen2_5_vl,
            TEXT | _rotary(8, 12, 12) | {"layer_types": ["full_attention"] * 6},
            VISION | {"window_size": 112, "fullatt_block_indexes": [1, 3]},
        ),
        140,
    ),
    "Qwen3-VL": (
        Checkpoint(
            tiny.build_qwen3_vl,
            TEXT | _rotary(12, 10, 10, mrope_interleaved=True),
            VISION | {"deepstack_visual_indexes": [1, 3]},
        ),
        160,
    ),
    "Qwen3.5": (
        Checkpoint(
            tiny.build_qwen3_5,
            TEXT
            | _rotary(3, 3, 2, mrope_interleaved=True, partial_rotary_factor=0.25)
            | {
                "num_hidden_layers": 8,
                "layer_types": HYBRID,
                "linear_num_key_heads": 4,
                "linear_num_value_heads": 8,
                "linear_key_head_dim": 64,
                "linear_value_head_dim": 64,
            },
            VISION,
        ),
        160,
    ),
}
"""Models, and the side of their frames in pixels, which makes 25 tokens of a pair."""


def text_hidden(policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor) -> torch.Tensor:
    """States ``[1, L, D]`` that predict one completion ``[1, L]``; plain attention, no sharing."""
    rows = [Completion("", ids.shape[1], ids.shape[1], token_ids=ids[0])]
    packed = pack([prompt], [rows], policy.device)
    vision = Vision(packed.vision_places, prompt.features.to(policy.device))
    hidden = policy.family.hidden(
        policy.base, packed.input_ids[None], packed.positions[:, None], packed.layout, vision
    )
    return hidden[:, packed.predictors]


def naive_text(policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor) -> None:
    """Gradient row by row, from features that are known."""
    for row in ids[:, None]:
        (-head_logprobs(policy, text_hidden(policy, prompt, row), row).sum()).backward()


def naive_rows(policy: TransformersPolicy, prompt: VideoPrompt, ids: torch.Tensor) -> None:
    """Gradient row by row, by transformers' forward with its vision tower."""
    inputs = policy.family.model_inputs(policy.base, prompt)
    P, L = prompt.num_tokens, ids.shape[1]
    steps = (prompt.next_position + torch.arange(L)).expand(len(prompt.positions), -1)
    positions = torch.cat([prompt.positions, steps], 1)[:, None]
    for row in ids[:, None]:
        own = {
            "input_ids": torch.cat([prompt.input_ids[None], row], 1),
            "position_ids": positions,
        }
        hidden = policy.base.model(**{**inputs, **own}, use_cache=False).last_hidden_state
        (-head_logprobs(policy, hidden[:, P - 1 : -1], row).sum()).backward()


def measure(name: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """Times of one family, and the shared pass."""
    checkpoint, side = SHAPES[name]
    torch.manual_seed(0)
    prompt_template = PromptTemplate(preamble="")
    policy = shaped_policy(
        checkpoint, torch.device("cpu"), torch.float32, prompt=prompt_template
    ).train()
    samples = [random_sample(FRAMES, side, side, seed=0)]
    (prompt,) = encode(policy, samples)
    completions = random_completions([L] * G, 256)
    ids = token_rows(completions, policy.device)

    norms: list[float] = []

    def run(backward: Callable[..., None], *args: Any) -> None:
        backward(policy, *args)
        grads = [p.grad for p in policy.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        policy.zero_grad(set_to_none=True)

    calls = {
        "naive": partial(run, naive_rows, prompt, ids),
        "shared": partial(run, shared_backward, samples, completions),
        "naive text": partial(run, naive_text, prompt, ids),
        "shared text": partial(run, text_backward, [prompt], completions),
    }
    for call in calls.values():
        call()
    assert max(norms) <= min(norms) * 1.0001, "all four are of the same gradient"
    time_s = alternating_seconds(calls, REPEATS, policy.device, time.process_time)
    expected = formula(prompt.num_tokens, L, G)
    text_ratio = time_s["naive text"] / time_s["shared text"]
    row = {
        "family": name,
        "P": prompt.num_tokens,
        "G": G,
        "L": L,
        **{f"{call} s": seconds for call, seconds in time_s.items()},
        "ratio": time_s["naive"] / time_s["shared"],
        "text ratio": text_ratio,
        "G(P+L)/(P+GL)": expected,
        "share of it": text_ratio / expected,
    }
    return row, calls["shared text"]


def measure_rollout(name: str) -> dict[str, Any]:
    """The engine, which shares the prompt, against ``generate`` of transformers."""
    checkpoint, side = SHAPES[name]
    torch.manual_seed(0)
    template = PromptTemplate(preamble="")
    policy = shaped_policy(checkpoint, torch.device("cpu"), torch.float32, prompt=template).eval()
    found = rollout.measure(policy, 1, FRAMES, G, L, side, time.process_time)
    return {"family": name, **found}


def operators(run: Callable[[], None]) -> list[dict[str, Any]]:
    """What a call spends its time in: the ten operators that take most."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [
        {"operator": e.key, "calls": e.count, "share": e.self_cpu_time_total / total}
        for e in events[:10]
    ]


def write(found: dict[str, Any]) -> None:
    """Put what was measured into the file, whose other rows and sections are kept.

    Args:
        found: rows or operators by the name of their section; ``rows`` are those of the update.
    """
    path = RESULTS / f"{NAME}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    for section, rows in found.items():
        if section in ("rows", "rollout"):
            by_family = {row["family"]: row for row in [*known.get(section, []), *rows]}
            rows = [by_family[name] for name in SHAPES if name in by_family]
        known[section] = rows
    sections = {k: known[k] for k in ("rollout", OPERATORS) if k in known}
    write_results(NAME, known.get("rows", []), sections, frames=FRAMES, text=TEXT)


def main(args: Sequence[str] | None = None) -> None:
    """Measure families, print and write each as soon as it is measured.

    Args:
        args: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.families", description=(__doc__ or "").partition("\n")[0]
    )
    kinds = ["update", "rollout"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, metavar="KIND")
    parser.add_argument("--family", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    for name in options.family:
        if "update" in options.only:
            row, shared = measure(name)
            found = {"rows": [row]}
            print_table("Update", [row])
            if HYBRID is SHAPES[name][0].text.get("layer_types"):
                found[OPERATORS] = operators(shared)
                print_table("Operators of its shared pass", found[OPERATORS])
            write(found)
        if "rollout" in options.only:
            row = measure_rollout(name)
            print_table("Rollout", [row])
            write({"rollout": [row]})


if __name__ == "__main__":
    main()
