"""Count the 7B's memory without a 7B: ``python -m benchmarks.scaling.counted``.

Each recipe's own step runs (`VideoQAModule` under Lightning's Trainer, with the options of its YAML
files) on a CUDA device that has shapes and no values, see `benchmarks.scaling.shapes`. What it
holds at most in each phase goes to ``benchmarks/results/memory.json``, from which ``python -m
benchmarks.scaling`` makes a table. Not counted: CUDA itself, cuBLAS's workspaces and fragments.

``--only lora s2d`` counts some recipes again and keeps the others. ``--models`` counts LoRA
training and prediction for published checkpoints instead, or for those that are named after it,
and writes ``docs/families.md`` and the headers of ``configs/models``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.common import QWEN_7B, RESULTS, random_policy
from benchmarks.scaling.checkpoints import CHECKPOINTS, shaped_policy
from benchmarks.scaling.shapes import ShapesDevice, shapes_only
from vrts.data.video.resolution import Resolution
from vrts.models.engines.native import NativeEngine
from vrts.models.grpo.guards import NonFiniteGuard
from vrts.models.grpo.reference import AdapterOff, FrozenCopy
from vrts.models.module import VideoQAModule
from vrts.models.prediction.predictor import Plan
from vrts.models.vlm.loading import Lora, add_lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Question, Sample, SamplingParams

CONFIGS = Path(__file__).parents[2] / "configs"
PATH = RESULTS / "memory.json"
FAMILIES = CONFIGS.parent / "docs/families.md"
START = "<!-- counted -->"
TABLE_HEAD = (
    "| checkpoint | 10^9 parameters | prompt of 32 frames | LoRA, peak GB | frames | prompt | "
    "held between questions, GB | prediction, peak GB | card |",
    "|---|---|---|---|---|---|---|---|---|",
)
NUM_PREDICTED = 16
"""Questions of a prediction run; more are not in flight at a time."""
VIDEO = (720, 1280)
"""Height and width of the videos, in pixels; their frames are shrunk as a recipe says."""
PHASES = {
    "encode": (NativeEngine, "encode"),
    "rollout": (NativeEngine, "step"),
    "reference": (VideoQAModule, "_score_reference"),
    "forward": (TransformersPolicy, "logprobs"),
    "backward": (VideoQAModule, "manual_backward"),
    "optimizer": (VideoQAModule, "_optimizer_step"),
}
"""By name, the method that is a phase. Of phases within one another the outer one counts."""
_REFERENCES = {"AdapterOff": AdapterOff, "FrozenCopy": FrozenCopy}


@dataclass(frozen=True, slots=True)
class Recipe:
    """YAML files as they stand behind ``--config``, and the card that they run on."""

    name: str
    configs: tuple[str, ...]
    card_gb: int
    num_frames: int | None = None
    """In place of the files' own."""

    @property
    def is_training(self) -> bool:
        """Whether it is of ``vrts fit``."""
        return self.configs[0] == "grpo"

    def options(self) -> dict[str, Any]:
        """The files, the later ones over the earlier ones."""
        merged: dict[str, Any] = {}
        for name in self.configs:
            _merge(merged, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
        return merged


# `full` needs a card that there is none of: on 141 GB the engine finds no room for its cache
RECIPES = (
    Recipe("lora", ("grpo", "lora", "gpu"), 24),
    Recipe("lora, small_gpu", ("grpo", "lora", "gpu", "small_gpu"), 24),
    Recipe("full", ("grpo", "full", "gpu"), 200),
    Recipe("s2d, 32 frames", ("s2d", "gpu"), 24, 32),
    Recipe("s2d, 128 frames", ("s2d", "gpu"), 24, 128),
)


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


MakePolicy = Callable[..., TransformersPolicy]
"""From a device, a dtype and options of `TransformersPolicy`, with weights of some shape."""


def count(recipe: Recipe, make_policy: MakePolicy | None = None) -> dict[str, Any]:
    """Run a recipe's own code on shapes, those of Qwen2.5-VL-7B where no others are given.

    Returns:
        Bytes at most in each phase, bytes held between steps, tokens of a prompt, and height and
        width of its frames.
    """
    make_policy = make_policy or partial(random_policy, QWEN_7B)
    with shapes_only(recipe.card_gb * 1e9) as device, _phases(device):
        num_tokens, size = run(recipe, make_policy, torch.device("meta"))
        return {
            "card GB": recipe.card_gb,
            "P": num_tokens,
            "size": size,
            "held": device.between,
            "phases": device.peaks,
        }


def run(
    recipe: Recipe, make_policy: MakePolicy, weights_on: torch.device
) -> tuple[int, tuple[int, int]]:
    """Run a recipe's step, or its prediction, on the one CUDA device there is.

    Args:
        recipe: what to run.
        make_policy: makes the model.
        weights_on: where it makes them; the trainer moves them to the device.

    Returns:
        Tokens of a prompt, and height and width of its frames.
    """
    options = recipe.options()
    model, data = options["model"], options["data"]
    module = _module(model, make_policy, weights_on)
    frames = recipe.num_frames or data["num_frames"]
    sizes = module.frame_sizes
    assert sizes is not None
    size = Resolution(**data["resolution"]).for_model(sizes).size(*VIDEO, frames)
    batch_size = data.get("batch_size" if recipe.is_training else "eval_batch_size", 1)
    # one step; in prediction questions follow each other
    num_batches = 1 if recipe.is_training else NUM_PREDICTED // batch_size
    batches = [
        [_sample(f"{i}-{j}", frames, size) for j in range(batch_size)] for i in range(num_batches)
    ]
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = Trainer(
        accelerator="cuda",
        devices=1,
        precision=options["trainer"]["precision"],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_Warm()],
    )
    if recipe.is_training:
        trainer.fit(module, loader)
    else:
        module.plan = Plan((module.eval_sampling,) * 5)
        trainer.predict(module, loader)
    num_tokens, _ = cast(TransformersPolicy, module.policy).family.length(
        batches[0][0], PromptTemplate()
    )
    return num_tokens, size


class _Warm(Callback):
    """Leaves what a first step would: the optimizer's state, and the reference on the device."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step once with gradients of nothing."""
        assert isinstance(pl_module, VideoQAModule)
        if isinstance(pl_module.reference, FrozenCopy):
            assert pl_module.reference._policy is not None
            pl_module.reference._policy.to(pl_module.device)
        optimizer = trainer.optimizers[0]
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()


class _Module(VideoQAModule):
    """Without a data module, whose batches stay on the host."""

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Give the batch back."""
        return batch


def _module(
    model: dict[str, Any], make_policy: MakePolicy, weights_on: torch.device
) -> VideoQAModule:
    """What the YAML's `model` stands for, on other weights."""
    init = dict(model["policy"]["init_args"])
    del init["path"]
    dtype = getattr(torch, init.pop("dtype", "bfloat16"))
    lora = init.pop("lora", None)
    policy = make_policy(weights_on, dtype, prompt=PromptTemplate(), **init)
    if lora is not None:
        policy.model = add_lora(policy.model, Lora(**lora))
    engine = model.get("engine", {}).get("init_args", {})
    if "reference" not in model:
        sampling = SamplingParams(**model["eval_sampling"])
        return _Module(
            policy, NativeEngine(**engine), eval_sampling=sampling,
            max_new_tokens=model["max_new_tokens"],
        )  # fmt: skip
    reference = _REFERENCES[model["reference"]["class_path"]]
    adam = model["optimizer"]["init_args"]
    own = ("num_generations", "micro_batch_size", "max_grad_norm", "max_new_tokens", "temperature")
    return _Module(
        policy,
        NativeEngine(**engine),
        reference=reference(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, **adam),
        **{name: model[name] for name in own},
    )


def _sample(name: str, num_frames: int, size: tuple[int, int]) -> Sample:
    frames = torch.zeros(num_frames, 3, *size, dtype=torch.uint8)
    clip = Clip(frames, tuple(range(0, 30 * num_frames, 30)), 30.0, 30 * num_frames)
    options = ("a cat jumps over the fence", "a dog barks at a cat", "nothing", "it rains")
    return Sample(Question(name, "What happens?", f"{name}.mp4", options=options, gold="A"), clip)


@contextmanager
def _phases(device: ShapesDevice) -> Iterator[None]:
    """Context in which the device notes each phase's peak."""

    def within(name: str, method: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if name == "encode":
                device.between = device.held
            with device.phase(name):
                return method(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for name, (owner, method) in PHASES.items():
            wrapped = within(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, wrapped))
        for method in ("_score_reference", "_accumulate_gradients"):
            stack.enter_context(_first_two(method))
        # a gradient without values would be taken for one that is not finite
        stack.enter_context(mock.patch.object(NonFiniteGuard, "must_skip", return_value=False))
        yield


def _first_two(name: str) -> Any:
    """Patch of a method of the module that takes micro-batches: the first two run.

    A third one would find what the second one does, gradients and all.
    """
    method = getattr(VideoQAModule, name)

    def run(self: VideoQAModule, micro_batches: Sequence[Any]) -> Any:
        return method(self, micro_batches[:2])

    return mock.patch.object(VideoQAModule, name, run)


def count_models(names: Sequence[str]) -> None:
    """Count what checkpoints need, and put it into the document and their recipes.

    Args:
        names: of `CHECKPOINTS`; the document's rows of the others are kept.
    """
    for name in names:
        checkpoint = CHECKPOINTS[name]
        make_policy = partial(shaped_policy, checkpoint)
        parameters = make_policy(torch.device("meta"), torch.bfloat16).parameters()
        billions = sum(p.numel() for p in parameters) / 1e9
        card_gb = 24 if billions < 6 else 48
        frames = 128 if checkpoint.text["max_position_embeddings"] > 2**14 else 64
        own = f"models/{overlay(name).stem}"
        lora = count(Recipe(name, ("grpo", "lora", "gpu", own), card_gb), make_policy)
        s2d = count(Recipe(name, ("s2d", "gpu", own), card_gb, frames), make_policy)
        peaks = [max(found["phases"].values()) / 1e9 for found in (lora, s2d)]
        write_row(
            name,
            [f"{h}x{w}" for h, w in (lora["size"], s2d["size"])],
            f"{billions:.2f}",
            f"{lora['P']:,}",
            f"{peaks[0]:.1f}",
            str(frames),
            f"{s2d['P']:,}",
            f"{s2d['held'] / 1e9:.1f}",
            f"{peaks[1]:.1f}",
            f"{card_gb} GB",
        )


def overlay(name: str) -> Path:
    """The file of ``configs/models`` that has a checkpoint's hub id."""
    (path,) = (p for p in CONFIGS.glob("models/*.yaml") if f"path: {name}}}" in p.read_text())
    return path


def write_row(name: str, sizes: Sequence[str], *cells: str) -> None:
    """Put what was counted into the document's table, and into the header of the recipe.

    Args:
        name: of `CHECKPOINTS`.
        sizes: height and width of frames in training and in prediction, from videos of `VIDEO`.
        cells: of `TABLE_HEAD`, the ones after the name.
    """
    row = f"| `{name}` | {' | '.join(cells)} |"
    print(row, flush=True)
    text = FAMILIES.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    table, end, tail = rest.partition("<!-- end -->")
    found = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    rows = [(found | {name: row})[known] for known in CHECKPOINTS if known in {*found, name}]
    table = "\n".join([*TABLE_HEAD, *rows])
    FAMILIES.write_text(f"{head}{START}\n\n{table}\n\n{end}{tail}", encoding="utf-8")
    _, prompt, lora, num_frames, longest, _, predicted, _ = cells
    path = overlay(name)
    first, *others = path.read_text(encoding="utf-8").splitlines()
    counted = [
        f"# {what}: {peak} GB with {frames} frames of {size}, {tokens} prompt tokens. (Counted.)"
        for what, peak, frames, size, tokens in (
            ("LoRA", lora, 32, sizes[0], prompt),
            ("Prediction", predicted, num_frames, sizes[1], longest),
        )
    ]
    others = [line for line in others if not line.endswith("(Counted.)")]
    path.write_text("\n".join([first, *counted, *others]) + "\n", encoding="utf-8")


def main(args: Sequence[str] | None = None) -> None:
    """Parse the command line, count and write.

    Args:
        args: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling.counted",
        description=(__doc__ or "").partition("\n")[0],
    )
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="RECIPE")
    parser.add_argument("--models", nargs="*", choices=list(CHECKPOINTS), metavar="CHECKPOINT")
    options = parser.parse_args(args)
    if options.models is not None:
        count_models(options.models or list(CHECKPOINTS))
        return
    wanted = options.only
    for recipe in RECIPES:
        if recipe.name not in wanted:
            continue
        start_s = time.perf_counter()
        found = count(recipe)
        phases = {k: f"{v / 1e9:.1f}" for k, v in found["phases"].items()}
        print(recipe.name, phases, f"{time.perf_counter() - start_s:.0f} s", flush=True)
        kept = json.loads(PATH.read_text())["recipes"] if PATH.is_file() else {}
        kept[recipe.name] = found
        ordered = {name: kept[name] for name in names if name in kept}
        content = {"shape": asdict(QWEN_7B), "recipes": ordered}
        PATH.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
