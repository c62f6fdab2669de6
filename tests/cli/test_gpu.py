"""The commands on a CUDA device against the CPU in float32; on a CPU, in float32, too.

With ``pytest -m gpu -x`` these and a few others show, within three minutes of a new card, whether
anything is wrong.
"""

import csv
from pathlib import Path

import pytest
import torch

from vrts.cli.command import main
from vrts.demo.questions import FLASH, OBJECT
from vrts.demo.videos import make_dataset
from vrts.models.engines.native import NativeEngine
from vrts.models.vlm.policy import TransformersPolicy

ROOT = Path(__file__).parents[2]
DEVICES = {
    "cpu": (["tiny"], 1e-4),
    "cuda": (["tiny", "gpu"], 0.05),  # bfloat16
}
"""By device, the overlays, and nats that log-probs may be off on average."""
CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def results(monkeypatch) -> list:
    """What engines sampled, request by request."""
    found, step = [], NativeEngine.step

    def note(self):
        ended = step(self)
        found.extend(ended)
        return ended

    monkeypatch.setattr(NativeEngine, "step", note)
    return found


def run(command: str, recipe: list[str], device: str, tmp_path: Path, *more: str) -> None:
    reader = "train" if command == "fit" else "predict"
    annotations = make_dataset(tmp_path / "data", num_videos=3, seed=5, kinds=(OBJECT, FLASH))
    args = [
        *(f"--config={ROOT}/configs/{name}.yaml" for name in [*recipe, *DEVICES[device][0]]),
        f"--model.policy.init_args.path={ROOT}/assets/tiny",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.enable_progress_bar=false",
        f"--data.{reader}=VideoR1Reader",
        f"--data.{reader}.init_args.path={annotations}",
        f"--data.{reader}.init_args.video_root=null",
        "--data.num_workers=0",
        *more,
    ]
    assert main([command, *args]) == 0


def error_nats(results: list, temperature: float) -> float:
    """How far sampled log-probs are from those of the CPU in float32, on average.

    The videos' features are made anew from the frames, so that these are compared too.
    """
    policy = TransformersPolicy(str(ROOT / "assets/tiny"), freeze_vision=False, dtype="float32")
    policy.load()
    policy.eval()
    errors = []
    with torch.no_grad():
        for result in results:
            assert result.error is None
            prompt, completions = result.request.prompt, result.completions
            want = policy.logprobs([prompt], [completions], temperature).logprobs  # [G, L]
            for row, completion in zip(want, completions, strict=True):
                errors.append((row[: completion.num_tokens] - completion.logprobs).abs())
    assert len(torch.cat(errors)) > 50
    return float(torch.cat(errors).mean())


@pytest.mark.parametrize(
    ("device", "tuning"),
    [
        ("cpu", "lora"),
        pytest.param("cuda", "lora", marks=CUDA),
        pytest.param("cuda", "full", marks=CUDA),
    ],
)
def test_training_samples_as_the_cpu_scores(device, tuning, results, tmp_path):
    """At the first step; at the second one the engine and the policy agree about new weights."""
    logger = "--trainer.logger=lightning.pytorch.loggers.CSVLogger"
    run(
        "fit", ["grpo", tuning], device, tmp_path,
        "--data.batch_size=2", "--data.num_frames=4", "--trainer.max_steps=2",
        "--model.num_generations=4", "--model.max_new_tokens=24", "--trainer.callbacks=[]",
        logger, f"--trainer.logger.init_args.save_dir={tmp_path}",
        "--trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert len(results) == 4
    allowed = DEVICES[device][1]
    assert error_nats(results[:2], 1.0) <= allowed
    (path,) = tmp_path.glob("lightning_logs/*/metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    gaps = [float(row["train/sampling/logprob_diff"]) for row in rows]
    assert len(gaps) == 2
    assert max(gaps) <= allowed


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_prediction_samples_as_the_cpu_scores(device, results, tmp_path):
    run(
        "predict", ["s2d"], device, tmp_path,
        "--model.max_new_tokens=24",
        "--trainer.callbacks=[{class_path: SparseToDense, init_args: {levels: [4, 8]}}]",
    )  # fmt: skip
    assert len(results) >= 3
    assert error_nats(results, 1.0) <= DEVICES[device][1]
