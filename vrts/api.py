"""vrts from Python: a model, an answer, and what a run has written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from lightning import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision

from vrts.callbacks import SparseToDense
from vrts.data import Resolution, VideoQADataModule
from vrts.models import Engine, Policy, TransformersPolicy, VideoQAModule
from vrts.types import Prediction, SamplingParams

EVALUATION = SamplingParams(temperature=1.0, top_p=0.95, top_k=50)
"""As in ``configs/ask.yaml``."""


def load(path: str, **options: Any) -> Policy:
    """Load a model.

    Args:
        path: local folder (a model, or an adapter that names its base) or hub id.
        options: of `TransformersPolicy`.

    Raises:
        InputError: it is not there, incomplete, or of another family.
    """
    policy = TransformersPolicy(path, **options)
    policy.load()
    return policy


def ask(
    policy: Policy,
    video: str,
    question: str,
    options: Sequence[str] | None = None,
    levels: Sequence[int] = (32, 64, 128),
    num_samples: int = 5,
    max_new_tokens: int = 1024,
    sampling: SamplingParams = EVALUATION,
    resolution: Resolution | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    **trainer: Any,
) -> Prediction:
    """Ask one question about one video, sparse to dense (Video-RTS, arXiv 2507.06485, section 3.3).

    Args:
        policy: the model, which stays as it is, whatever the precision.
        video: path of a video or an image.
        question: what is asked.
        options: of a multiple choice; None for an answer in free text.
        levels: numbers of frames, ascending and even.
        num_samples: M, completions at each level.
        max_new_tokens: completions are cut off there.
        sampling: how tokens are drawn.
        resolution: pixel budget of the frames; 256 tokens a frame at most where it is None.
        seed: of all sampling.
        engine: what samples; None for the policy's own. It may have sampled before.
        trainer: further options of Lightning's Trainer, such as ``accelerator`` or ``precision``.

    Returns:
        The answer, with the completions, votes and frames of each round; ``error`` says why there
        is none.

    Raises:
        InputError: no such video, or options that contradict.
    """
    module = VideoQAModule(
        policy, engine, max_new_tokens=max_new_tokens, eval_sampling=sampling, seed=seed
    )
    data = VideoQADataModule(
        video=video,
        question=question,
        options=None if options is None else list(options),
        resolution=resolution or Resolution(max_pixels=200704),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plan = SparseToDense(list(levels), num_samples)
    runner = Trainer(**{"devices": 1, **quiet, **trainer}, callbacks=[plan])
    with _unconverted(policy, runner):
        batches: Any = runner.predict(module, datamodule=data)
    found: list[Prediction] = [prediction for batch in batches for prediction in batch]
    return found[0]


@contextmanager
def _unconverted(policy: Policy, trainer: Trainer) -> Iterator[None]:
    """Context after which the weights have their dtype and values again.

    Lightning's ``bf16-true`` and ``16-true`` convert the module that they are given.
    """
    if not isinstance(trainer.precision_plugin, HalfPrecision):
        yield
        return
    # `data`, which conversion replaces by other tensors
    kept = [(t, t.data) for t in chain(policy.parameters(), policy.buffers())]
    try:
        yield
    finally:
        for tensor, data in kept:
            if tensor.dtype != data.dtype:
                tensor.data = data.to(tensor.device)
