"""Validation, test and prediction: questions are predicted by a plan, and the outcome is counted.

It is a part of `VideoQAModule`, which has the hooks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torchmetrics import Metric

from vrts.models.prediction.predictor import Predictor
from vrts.types import Prediction, Sample

if TYPE_CHECKING:
    from vrts.models.module import VideoQAModule

_log = logging.getLogger(__name__)


class Total(Metric):
    """A sum of integers.

    They stay integers: Lightning's bf16-true converts a state that is not, and bfloat16 stops
    counting at 256.
    """

    full_state_update = False
    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0, device="cpu"), dist_reduce_fx="sum")

    def update(self, number: int) -> None:
        """Add a number."""
        self.total += number

    def compute(self) -> torch.Tensor:
        """The sum over all ranks."""
        return self.total.float()


class Ratio(Total):
    """A sum of integers divided by another one; 0 where there is nothing to divide by."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0, device="cpu"), dist_reduce_fx="sum")

    def update(self, number: int, of: int = 0) -> None:
        """Add `number` to the dividend and `of` to the divisor."""
        super().update(number)
        self.count += of

    def compute(self) -> torch.Tensor:
        """The quotient over all ranks."""
        return self.total / self.count.clamp(min=1)


class Evaluation(nn.Module):
    """Predicts questions, and counts what was decided.

    ``accuracy`` is over the questions whose right answer is known, a failed one is wrong;
    ``num_failed`` counts those. Over the others, ``mean_frames`` is of the deciding rounds, and
    ``agreement`` the mean share of a deciding round's completions that gave its most frequent
    answer. They are the numbers of the same names in ``metrics.json`` of a prediction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(
            {
                "accuracy": Ratio(),
                "mean_frames": Ratio(),
                "agreement": Ratio(),
                "num_failed": Total(),
            }
        )
        self._logged_failures: set[str] = set()
        self._predictor: Predictor | None = None

    def predict(
        self,
        module: VideoQAModule,
        batch: Sequence[Sample],
        batch_idx: int,
        num_batches: list[int | float],
    ) -> Iterator[list[Prediction]]:
        """Submit a batch, and yield what is decided until there is room for the next one.

        Args:
            module: has the engine and the plan.
            batch: questions with frames of the plan's first level.
            batch_idx: the first batch starts over, the last one decides all that is pending.
            num_batches: of the stage's one dataloader, as the Trainer has it.
        """
        if self._predictor is None or batch_idx == 0:
            module.engine.cancel()  # what an interrupted run has left
            module.sync_engine()
            self._predictor = Predictor(
                module.engine,
                module.policy.refuses,
                module.plan,
                module.max_new_tokens,
                module.seed,
            )
        self._predictor.submit(batch)
        if batch_idx + 1 < num_batches[0]:
            yield from self._predictor.run_until_room()
            return
        yield from self._predictor.drain()
        self._predictor = None
        module.engine.release()

    def step(
        self,
        module: VideoQAModule,
        stage: str,
        batch: Sequence[Sample],
        batch_idx: int,
        num_batches: list[int | float],
    ) -> None:
        """Predict and count a batch; ``<stage>/<name>`` is logged when the stage's epoch ends."""
        for predictions in self.predict(module, batch, batch_idx, num_batches):
            self.count(predictions)
        for name in self.metrics:
            module.log(
                f"{stage}/{name}",
                self._metric(name),
                on_step=False,
                on_epoch=True,
                prog_bar=name == "accuracy",
                batch_size=1,
            )

    def count(self, predictions: Sequence[Prediction]) -> None:
        """Count what was decided; questions that failed are named in the log, each once."""
        scored = [p.correct for p in predictions if p.correct is not None]
        last = [p.rounds[-1] for p in predictions if p.error is None]
        votes = [round(r.agreement * len(r.answers)) for r in last]
        self._metric("accuracy").update(sum(scored), of=len(scored))
        self._metric("mean_frames").update(sum(r.num_frames for r in last), of=len(last))
        self._metric("agreement").update(sum(votes), of=sum(len(r.answers) for r in last))
        self._metric("num_failed").update(len(predictions) - len(last))
        for p in predictions:
            if p.error is not None and p.question.id not in self._logged_failures:
                self._logged_failures.add(p.question.id)
                _log.warning("question %s failed: %s", p.question.id, p.error)

    def _metric(self, name: str) -> Metric:
        return cast(Metric, self.metrics[name])
