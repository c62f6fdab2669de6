"""What the benchmarks share: random models of a given shape, prompts with video, measuring."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoProcessor,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from benchmarks.memory import allocator_peak
from tools.tiny.model import build_config, build_model_folder
from tools.tiny.tokenizer import build_tokenizer
from vrts.models.attention.shared_prefix import SHARED_PREFIX
from vrts.models.attention.windows import BATCHED_WINDOWS
from vrts.models.engines.engine import Request
from vrts.models.engines.native import NativeEngine
from vrts.models.families.prompt import VideoPrompt
from vrts.models.policy import Policy, Prompt
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Completion, Question, Sample, SamplingParams

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vision_hidden_size: int
    vision_depth: int
    vocab_size: int | None = None
    """None takes the embedded tokenizer's."""
    vision_intermediate_size: int | None = None
    """None takes 2.67 times the hidden size, a multiple of 4."""
    tied_head: bool = True
    """Whether the head has the embeddings' weights."""


SMALL = Shape(384, 6, 6, 2, 1024, 128, 4)
"""About 13 million parameters, for two CPU cores."""
QWEN_7B = Shape(3584, 28, 28, 4, 18944, 1280, 32, 152064, 3420, tied_head=False)
"""Qwen2.5-VL-7B-Instruct."""


def random_policy(
    shape: Shape, device: torch.device, dtype: torch.dtype, **options: Any
) -> TransformersPolicy:
    """Make a policy with random weights, whose completions never end before their limit.

    Args:
        shape: of the model.
        device: of the weights.
        dtype: of the weights.
        options: of `TransformersPolicy`.
    """
    config = build_config(build_tokenizer())
    text: Any = config.text_config
    vision: Any = config.vision_config
    head_dim = shape.hidden_size // shape.num_heads
    text.hidden_size, text.num_hidden_layers = shape.hidden_size, shape.num_layers
    text.num_attention_heads, text.num_key_value_heads = shape.num_heads, shape.num_kv_heads
    text.intermediate_size = shape.intermediate_size
    text.layer_types = ["full_attention"] * shape.num_layers
    text.max_position_embeddings = 32768
    third = head_dim // 2 // 8
    text.rope_parameters["mrope_section"] = [head_dim // 2 - 6 * third, 3 * third, 3 * third]
    text.vocab_size = shape.vocab_size or text.vocab_size
    text.initializer_range = vision.initializer_range = 0.02
    vision.hidden_size, vision.depth = shape.vision_hidden_size, shape.vision_depth
    default_size = int(shape.vision_hidden_size * 2.67) // 4 * 4
    vision.intermediate_size = shape.vision_intermediate_size or default_size
    vision.num_heads = max(shape.vision_hidden_size // 80, 4)
    vision.out_hidden_size = shape.hidden_size
    vision.window_size = 112
    first = min(shape.vision_depth // 4, 7)
    vision.fullatt_block_indexes = list(range(first, shape.vision_depth, 8))
    config.tie_word_embeddings = text.tie_word_embeddings = shape.tied_head
    config = Qwen2_5_VLConfig.from_dict(config.to_dict())
    config._attn_implementation = {"text_config": SHARED_PREFIX, "vision_config": "sdpa"}
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config)
        torch.set_default_dtype(torch.float32)
    model.model.visual.config._attn_implementation = BATCHED_WINDOWS
    with tempfile.TemporaryDirectory() as folder:
        build_model_folder(Path(folder), seed=0)
        processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.eos_token = "<|vision_end|>"  # of `generate`, see `never_end`
    model.generation_config = GenerationConfig(
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        do_sample=True,
    )
    policy = TransformersPolicy("random", **{"prompt": PromptTemplate(preamble=""), **options})
    policy.adopt(model, processor)
    never_end(policy)
    return policy


def never_end(policy: TransformersPolicy) -> None:
    """Let completions end at their limit alone: comparisons are then none of luck.

    To be called before an engine is made. The end token becomes one that is never sampled.
    """
    network = policy.network()
    network.end_ids = network.suppressed_ids[:1].cpu()


def encode(policy: TransformersPolicy, samples: Sequence[Sample]) -> list[VideoPrompt]:
    """Prompts of samples, with one pass of the vision tower each."""
    return cast(list[VideoPrompt], policy.network().encode(samples))


def random_sample(num_frames: int, height: int, width: int, seed: int) -> Sample:
    """Make a question about random frames.

    Args:
        num_frames: T.
        height: H, in pixels.
        width: W, in pixels.
        seed: of the frames.
    """
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(
        0, 256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8
    )
    clip = Clip(frames, tuple(range(0, 30 * num_frames, 30)), 30.0, 30 * num_frames)
    question = Question(f"q{seed}", "What happens?", "none.mp4", options=("a", "b"), gold="A")
    return Sample(question, clip)


def random_completions(lengths: Sequence[int], vocab: int) -> tuple[Completion, ...]:
    """Make completions of given lengths out of random ordinary tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, vocab, (length,), generator=generator) for length in lengths]
    return tuple(Completion("", len(row), len(row), token_ids=row) for row in rows)


def engine_of(
    policy: Policy, device: torch.device, dtype: torch.dtype | None = None, **options: Any
) -> NativeEngine:
    """An engine that is ready to sample from a policy.

    Args:
        policy: loaded, on the device.
        device: to sample on.
        dtype: to sample in; None is that of the weights.
        options: of `NativeEngine`.
    """
    engine = NativeEngine(**options)
    engine.attach(policy, device, dtype, will_shard=False)
    engine.sync(policy)
    return engine


def roll_out(
    engine: NativeEngine, prompts: Sequence[Prompt], G: int, L: int
) -> list[tuple[Completion, ...]]:
    """G completions of at most L tokens of each prompt, all sampled together."""
    requests = [
        Request(p, (SamplingParams(),) * G, tuple(range(i * G, (i + 1) * G)), L)
        for i, p in enumerate(prompts)
    ]
    found = [result.completions for result in engine.generate(requests)]
    engine.release()
    return found


def seconds(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time of a call in seconds, after one call to warm up."""
    run()
    return alternating_seconds({"": run}, repeats, device)[""]


def alternating_seconds(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median time in seconds of several calls that take turns, all of them warmed up already.

    What disturbs the machine for a while then disturbs all of them.

    Args:
        runs: the calls by name.
        repeats: of each.
        device: waited for before and after each call.
        clock: wall time, or ``time.process_time`` for that of one thread on a CPU that others use.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            synchronize(device)
            start_s = clock()
            run()
            synchronize(device)
            times[name].append(clock() - start_s)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronize(device: torch.device) -> None:
    """Wait for the device, where it works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops(run: Callable[[], Any]) -> float:
    """Floating point operations of a call, as torch counts them (matrix products, attention)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def peak_bytes(run: Callable[[], Any], device: torch.device) -> float:
    """Most memory that a call holds at once, beyond what was held before it, by the allocator."""
    if device.type != "cuda":
        return float(allocator_peak(run))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return float(torch.cuda.max_memory_allocated() - before)


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "torch_threads": torch.get_num_threads(),
        # seconds mean little where others keep the cores busy; ratios within a run still do
        "load_average": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "lightning")},
    }


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same columns."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def write_results(
    name: str, rows: Sequence[Mapping[str, Any]], sections: Mapping[str, Any], **settings: Any
) -> Path:
    """Write rows and further sections, with machine and settings, to ``results/NAME.json``.

    Args:
        name: of the benchmark.
        rows: of its main table.
        sections: what else was found, by its key in the file.
        settings: what it was measured with.
    """
    plain = {k: asdict(v) if isinstance(v, Shape) else v for k, v in settings.items()}
    content = {"machine": machine(), "settings": plain, "rows": list(rows), **sections}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")
    return path


def report(name: str, rows: Sequence[dict[str, Any]], **settings: Any) -> None:
    """Print rows as a table and write them, with machine and settings, to ``results``."""
    print_table(name, rows)
    write_results(name, rows, {}, **settings)
