"""FSDP2 on one CUDA device, through the command and NCCL."""

import pytest
import torch

from tests.ranks.test_two_processes import CONFIGS, fit_args, logged
from tools.tiny.model import build_model_folder
from vrts.cli.command import main
from vrts.demo.videos import make_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = ("train/loss", "train/kl", "train/entropy")


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_sharded_training_on_one_device_is_training(tuning, tmp_path):
    """In float32, against the same device without sharding; then bfloat16, saved and resumed."""
    build_model_folder(tmp_path / "model", seed=0)
    annotations = make_dataset(tmp_path / "data", num_videos=4, seed=5)

    def fit(name: str, overlay: str, *more: str) -> list[dict]:
        root = tmp_path / name
        last = (f"--config={CONFIGS / overlay}.yaml", "--trainer.devices=1", *more)
        overlays = (f"--config={CONFIGS / tuning}.yaml",)
        assert (
            main(fit_args(tmp_path / "model", annotations, root, 1, *overlays, more_last=last)) == 0
        )
        return logged(root)

    exact = ("--trainer.precision=32-true",)
    want = fit("one", "gpu", *exact)
    for overlay in ("fsdp",):
        got = fit(overlay, overlay, *exact)
        assert len(got) == len(want) == 3
        for one, two in zip(want, got, strict=True):
            for name in NAMES:
                assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-3, abs=1e-5)
        twice = ("--trainer.max_epochs=2",)
        fit(f"{overlay}-mixed", overlay, *twice, "--trainer.max_steps=2")
        (tmp_path / f"{overlay}-mixed/lightning_logs").rename(tmp_path / f"{overlay}-logs")
        rest = fit(f"{overlay}-mixed", overlay, *twice, "--ckpt_path=last")
        assert [int(row["step"]) for row in rest] == [2]
        assert all(torch.tensor(float(rest[0][name])).isfinite() for name in NAMES)
