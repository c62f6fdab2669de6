"""Sparse-to-dense test-time scaling: look at more frames where the answers disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer

from vrts.data.datamodule import VideoQADataModule
from vrts.models.module import VideoQAModule
from vrts.types import InputError, Prediction, Round, Sample
from vrts.voting import decide, fail, is_unanimous


class SparseToDense(Callback):
    """Adaptive frame densification at prediction (Video-RTS, arXiv 2507.06485, section 3.3).

    Each question is asked `num_samples` times on the first level's frames. One answer from all
    of them decides it; otherwise it is asked again on the next level's frames. At the last level,
    and where a video has no more frames to show, the majority decides: of several leaders the one
    that came first. A completion without an answer is no vote and breaks unanimity.

    `trainer.callbacks` must name it before the writer, which takes what it has decided.

    Args:
        levels: numbers of frames, ascending and even.
        num_samples: M, completions for each question at each level.

    Raises:
        InputError: levels that are odd, too few or not ascending.
    """

    def __init__(
        self, levels: list[PositiveInt] | None = None, num_samples: PositiveInt = 5
    ) -> None:
        self.levels = [32, 64, 128] if levels is None else [int(level) for level in levels]
        self.num_samples = int(num_samples)
        if not self.levels or any(level % 2 or level <= 0 for level in self.levels):
            raise InputError(
                f"SparseToDense.levels is {self.levels}; give even numbers of frames (two frames "
                "make one temporal patch), for instance [32, 64, 128]"
            )
        if any(a >= b for a, b in pairwise(self.levels)):
            raise InputError(f"SparseToDense.levels is {self.levels}; let them ascend")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the first level streamed and asked by the prediction loop."""
        if stage == "predict":
            _data(trainer).predict_num_frames = self.levels[0]
            cast(VideoQAModule, pl_module).num_samples = self.num_samples

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Replace predictions that are not unanimous by those of denser levels, in place."""
        predictions: list[Prediction] = outputs
        for level, frames in enumerate(self.levels[1:], start=1):
            undecided = [i for i, p in enumerate(predictions) if self._needs(p, level)]
            if not undecided:
                return
            denser = self._densify(trainer, pl_module, [predictions[i] for i in undecided], frames)
            for index, prediction in zip(undecided, denser, strict=True):
                predictions[index] = prediction

    def _needs(self, prediction: Prediction, level: int) -> bool:
        """Whether a question goes on to a level."""
        if prediction.error is not None or len(prediction.rounds) != level:
            return False
        last = prediction.rounds[-1]
        # fewer frames than asked for: the video has no more
        exhausted = last.num_frames < self.levels[level - 1]
        return not is_unanimous(last.answers) and not exhausted

    def _densify(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Prediction],
        num_frames: int,
    ) -> list[Prediction]:
        """Ask questions once more, on more frames."""
        module = cast(VideoQAModule, pl_module)
        questions = [p.question for p in predictions]
        samples = [module.check(s) for s in _data(trainer).load(questions, num_frames)]
        pairs = list(zip(predictions, samples, strict=True))
        asked = [s for p, s in pairs if s.clip is not None and s.clip.num_frames > p.num_frames]
        rounds = iter(module.answer(asked, self.num_samples))
        return [self._next(prediction, sample, rounds) for prediction, sample in pairs]

    @staticmethod
    def _next(prediction: Prediction, sample: Sample, rounds: Iterator[Round]) -> Prediction:
        """A prediction with one more round, or failed where the denser clip did not come."""
        if sample.clip is None:
            return fail(prediction.question, sample.error, prediction.rounds)
        if sample.clip.num_frames <= prediction.num_frames:
            return prediction  # the model has seen all frames that the video has
        return decide(prediction.question, [*prediction.rounds, next(rounds)])


def _data(trainer: Trainer) -> VideoQADataModule:
    """The run's data module."""
    return cast(VideoQADataModule, trainer.datamodule)  # type: ignore[attr-defined]
