"""The embedded model learns alike whether prompts are shared or every completion has its own."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vrts.cli.command import run
from vrts.demo.questions import OBJECT
from vrts.demo.videos import make_dataset

ROOT = Path(__file__).parents[2]
POLICIES = {
    "shared": ("vrts.models.vlm.policy.TransformersPolicy", (0, 1)),
    "naive": ("tests.models.naive.NaivePolicy", (0,)),
}
"""With the seeds of their runs: two of one kind tell how much runs differ anyway."""
NUM_STEPS = 20
SHORT = "{class_path: tests.own_plugins.CharactersReward, init_args: {weight: -1}}"
"""Shorter completions are better, which the model learns within a few steps."""
NUM_EQUAL_STEPS = 5
"""Until then rounding has not yet led to another token."""


def learn(folder: Path, annotations: Path, policy: str, seed: int) -> list[dict[str, float]]:
    """Run ``vrts fit`` on the embedded model, and return what it logged at each step."""
    cli = run(
        [
            "fit",
            f"--config={ROOT / 'configs/demo/fit.yaml'}",
            f"--seed_everything={seed}",
            f"--model.seed={seed}",
            f"--data.seed={seed}",
            f"--model.policy.class_path={policy}",
            f"--model.policy.init_args.path={ROOT / 'assets/tiny'}",
            "--model.lr_scheduler=null",
            "--model.optimizer.init_args.lr=2.0e-3",
            f"--data.train.init_args.path={annotations}",
            f"--model.rewards=[{SHORT}]",
            "--data.batch_size=2",
            "--data.num_frames=4",
            "--data.num_workers=0",
            "--trainer.callbacks=[]",
            "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--trainer.max_steps={NUM_STEPS}",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.logger.init_args.save_dir={folder}",
        ]
    )
    assert type(cli.model.policy).__name__ == policy.rpartition(".")[2]
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def lengths(rows: list[dict[str, float]]) -> np.ndarray:
    """Mean completion of each step, in hundreds of characters: what is unlearnt."""
    return np.array([row["train/reward/length"] for row in rows])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_curves_with_and_without_sharing_are_the_same(tmp_path):
    annotations = make_dataset(tmp_path / "data", 2 * NUM_STEPS, seed=9, kinds=(OBJECT,))
    shared, naive = (
        [learn(tmp_path / name / str(seed), annotations, policy, seed) for seed in seeds]
        for name, (policy, seeds) in POLICIES.items()
    )
    spread = abs(lengths(shared[0]) - lengths(shared[1])).mean()
    for one, other in zip(shared, naive, strict=False):
        assert len(one) == len(other) == NUM_STEPS
        for step in range(NUM_EQUAL_STEPS):
            for name in ("reward/total", "loss", "kl", "entropy", "completion_length"):
                want = pytest.approx(other[step][f"train/{name}"], rel=1e-3, abs=1e-5)
                assert one[step][f"train/{name}"] == want, (step, name)
        assert abs(lengths(one) - lengths(other)).mean() < spread
        for curve in (one, other):
            assert lengths(curve)[-5:].mean() < 0.6 * lengths(curve)[:5].mean(), "nothing learnt"
