"""The next batch's videos are decoded while this one updates."""

import time
from pathlib import Path

import pytest
import torch

from tests.callbacks.plugins import ask
from tests.callbacks.runs import build_model, make_data, make_module, make_policy, make_trainer
from vrts.data.video.decoder import Decoder
from vrts.models.grpo.objectives import GRPO
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Clip

PATIENCE_S = 60
"""After which the other side will not come any more."""


def wait_for(path: Path) -> None:
    """Return once a file exists.

    Raises:
        TimeoutError: it does not come.
    """
    start_s = time.monotonic()
    while not path.exists():
        if time.monotonic() > start_s + PATIENCE_S:
            raise TimeoutError(f"{path.name} never came")
        time.sleep(0.01)


class HandshakeDecoder(Decoder):
    """Decodes video n only while the policy updates on video n - 1.

    Args:
        folder: where both sides tell each other where they are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def decode(self, path, num_frames, sampler, resolution, window=None) -> Clip:
        number = int(Path(path).stem)
        if number > 0:
            wait_for(self.folder / f"updating-{number - 1}")
        frames = torch.full((num_frames, 3, 56, 56), 20 * number, dtype=torch.uint8)
        (self.folder / f"decoded-{number}").touch()
        return Clip(frames, tuple(range(num_frames)), 4.0, num_frames)


@pytest.mark.parametrize("prefetch_batches", [1, 2])
def test_videos_are_decoded_during_updates(tmp_path, monkeypatch, prefetch_batches):
    """An update ends only when the next video is there, which waits for the update to begin."""
    NUM_VIDEOS = 4
    logprobs, done = TransformersPolicy.logprobs, []

    def slow_logprobs(policy, *args):
        number = len(done)
        assert torch.is_grad_enabled(), "this is the update"
        assert (tmp_path / f"decoded-{number}").exists()
        assert not (tmp_path / f"decoded-{number + 1}").exists()
        (tmp_path / f"updating-{number}").touch()
        if number + 1 < NUM_VIDEOS:
            wait_for(tmp_path / f"decoded-{number + 1}")
        done.append(number)
        return logprobs(policy, *args)

    monkeypatch.setattr(TransformersPolicy, "logprobs", slow_logprobs)
    data = make_data(
        train=[ask(f"q{n}", str(tmp_path / f"{n}.mp4")) for n in range(NUM_VIDEOS)],
        decoder=HandshakeDecoder(str(tmp_path)),
        num_workers=1,
        prefetch_batches=prefetch_batches,
        batch_size=1,
        shuffle=False,
        deadline_s=2.0 * PATIENCE_S,
    )
    module = make_module(make_policy(build_model(tmp_path / "model")), objective=GRPO(beta=0))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert done == list(range(NUM_VIDEOS))
    assert trainer.callback_metrics["train/skipped"] == 0
