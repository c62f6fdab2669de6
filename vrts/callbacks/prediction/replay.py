"""Predicting from recorded completions, without decoding a video."""

from __future__ import annotations

from typing import cast

from lightning import Callback, LightningModule, Trainer

from vrts.callbacks.trainer import data_of
from vrts.models.module import VideoQAModule
from vrts.models.prediction.replay import ReplayPolicy
from vrts.types import InputError


class Replay(Callback):
    """Takes samples from `ReplayPolicy`, which needs no frames, in place of the decoder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the recording, and have samples made from it; raises `InputError`."""
        if stage != "predict":
            return
        policy = cast(VideoQAModule, pl_module).policy
        if not isinstance(policy, ReplayPolicy):
            raise InputError(
                f"trainer.callbacks has Replay, but model.policy is {type(policy).__name__}; "
                "give it ReplayPolicy, or remove Replay"
            )
        policy.load()
        data_of(trainer).make_sample = policy.sample
