"""The LightningModule: wires policy, reference, rewards and objective, and logs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from vrts.models.answerer import Answerer
from vrts.models.checkpoints import (
    check_format,
    check_same_model,
    check_same_policy,
    identity,
    keep_trained,
)
from vrts.models.checks import (
    check_comparable,
    check_reference,
    check_rewards,
    check_updates,
    check_validation,
    check_validation_comes,
    warn_of_checkpoints_within_a_step,
)
from vrts.models.collecting import Collector
from vrts.models.epochs import leave_finished_epoch
from vrts.models.evaluation import Evaluation
from vrts.models.grpo import masked_mean
from vrts.models.metrics import log_means
from vrts.models.nonfinite import NonFiniteGuard
from vrts.models.objectives import GRPO, Objective
from vrts.models.patience import Patience
from vrts.models.placing import data_parallel, load, shard
from vrts.models.policy import Policy
from vrts.models.record import RolloutRecord
from vrts.models.reference import Reference
from vrts.models.rewards import AccuracyReward, FormatReward, Reward, check_all
from vrts.models.rollouts import Peers, Rollouts
from vrts.models.sampling import row_seed
from vrts.models.seeding import seed_globally
from vrts.models.sharding import Sharding
from vrts.models.temporal import TemporalReward
from vrts.models.work import BatchWork
from vrts.types import InputError, Prediction, Sample, Sampling

_log = logging.getLogger(__name__)


class VideoQAModule(LightningModule):
    """Trains a video language model with GRPO, and answers questions with it.

    Args:
        policy: the model that is trained and asked.
        rewards: what completions are rewarded for; accuracy and format where none are given.
        objective: the loss.
        reference: what the KL penalty holds on to; needed where ``objective.beta`` is above 0.
        optimizer: of the policy's trainable parameters.
        lr_scheduler: stepped after every optimizer step; None keeps the learning rate.
        temporal: T-GRPO's bonus for right answers that need the order of the frames; null for none.
        num_generations: G, completions for each question in training.
        num_groups: questions that an update is made from, on each process. Further ones of the
            batch are sampled only where the rewards of a group are all equal, which teaches
            nothing, and take its place (DAPO's dynamic sampling); give ``data.batch_size`` a few
            times as many. Null trains on the whole batch.
        max_new_tokens: completions are cut off there.
        temperature: of sampling and scoring in training.
        updates_per_rollout: optimizer updates made from one rollout; the CLI links it to the data
            module, which repeats each batch as often.
        mask_truncated: leave completions that `max_new_tokens` cut off out of the loss (DAPO's
            overlong filtering, arXiv 2503.14476, section 3.4). Their rewards count for the others.
        max_nonfinite_steps: optimizer steps whose loss or gradient is not finite are skipped, and
            the run stops at that many in a row.
        evaluation: how tokens are drawn in validation, test and prediction.
        sharding: how weights are kept under Lightning's ModelParallelStrategy (FSDP2).
        seed: of all sampling. A completion's random numbers depend on the seed, its question and
            its place in the group alone, not on batches or processes.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: list[Reward] | None = None,
        objective: Objective | None = None,
        reference: Reference | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(
            params, lr=1e-6, weight_decay=0.01
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        temporal: TemporalReward | None = None,
        num_generations: PositiveInt = 8,
        num_groups: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 768,
        temperature: PositiveFloat = 1.0,
        updates_per_rollout: PositiveInt = 1,
        mask_truncated: bool = False,
        max_nonfinite_steps: PositiveInt = 5,
        evaluation: Sampling | None = None,
        sharding: Sharding | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.rewards = rewards if rewards is not None else [AccuracyReward(), FormatReward()]
        self.objective = objective or GRPO()
        self.temporal = temporal
        self.num_generations = int(num_generations)
        self.num_groups = num_groups and int(num_groups)
        self.max_new_tokens = int(max_new_tokens)
        self.temperature = float(temperature)
        self.updates_per_rollout = int(updates_per_rollout)
        self.mask_truncated = mask_truncated
        self.evaluation = evaluation or Sampling()
        self.sharding = sharding or Sharding()
        self.is_sharded = False
        """Whether each process holds a part of the weights only."""
        self.seed = seed
        self.answerer = Answerer(policy, self.evaluation, self.max_new_tokens, seed)
        """Asks where nothing is trained; callbacks may ask it too."""
        self.last_rollout: RolloutRecord | None = None
        """Of the newest batch, for callbacks that show or keep completions; None before the first
        batch and after one without a usable video."""
        self.num_batches_trained = 0
        """On this process, since it was started."""
        self.work = BatchWork()
        """What the newest batch took on this process, for callbacks that watch the speed."""
        # Checkpoints hold what is trained; the rest comes from the policy's own folder.
        self.strict_loading = False
        collect = Collector(
            policy,
            self.rewards,
            temporal,
            self.num_generations,
            self.num_groups,
            self.max_new_tokens,
            self.temperature,
            seed,
        )
        self._reference = reference
        self._attached = False
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._rollouts = Rollouts(
            policy,
            collect,
            self.objective,
            self.num_generations,
            self.num_groups,
            self.updates_per_rollout,
            self.temperature,
            mask_truncated,
        )
        self._guard = NonFiniteGuard(int(max_nonfinite_steps))
        self._update_start_s = 0.0
        self._step_metrics: list[torch.Tensor] = []
        self._logged: set[str] = set()
        self._patience = Patience()
        self._evaluation = Evaluation()

    # ---- setting up

    def setup(self, stage: str) -> None:
        """Check what training needs, before anything is loaded.

        Raises:
            InputError: a combination of options that cannot work.
        """
        if stage != "fit":
            return
        check_comparable(self.num_generations)
        check_rewards(self.rewards, self.temporal)
        check_updates(self.updates_per_rollout, self.trainer.accumulate_grad_batches)
        check_reference(self.objective.beta, self._reference is not None)
        warn_of_checkpoints_within_a_step(self.trainer)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            check_all(self.rewards, data.questions("train"))
            validated = data.questions("val") if data.readers["val"] is not None else None
            check_validation(self.trainer, validated, self.updates_per_rollout)

    def configure_model(self) -> None:
        """Load the weights, once, and prepare them for what is to be done."""
        mesh = data_parallel(self.device_mesh)
        load(self.policy, mesh, self.sharding)
        if self._fitting and self.reference is not None and not self._attached:
            self.reference.attach(self.policy)
            self._attached = True
        if mesh is not None and not self.is_sharded:
            reference = self.reference if self._attached else None
            shard(self, self.policy, reference, mesh, self.sharding, str(self.trainer.precision))
            self.is_sharded = True
        self.answerer.prepare(mesh, self.trainer.precision_plugin.forward_context)
        # Loaded models are in eval mode, in which transformers ignores gradient checkpointing.
        self.policy.train(self._fitting)

    @property
    def reference(self) -> Reference | None:
        """What the KL penalty holds on to; None without one."""
        return self._reference if self.objective.beta > 0 else None

    @property
    def _fitting(self) -> bool:
        """Whether this run trains."""
        return self.trainer.state.fn == TrainerFn.FITTING

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the trainable parameters, and its schedule by step.

        Raises:
            InputError: the optimizer refuses one of its options.
        """
        try:
            optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        except (ValueError, TypeError) as error:
            raise InputError(f"model.optimizer: {error}; correct its init_args") from error
        if self._lr_scheduler is None:
            return optimizer
        scheduler: Any = self._lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # ---- training

    def on_train_start(self) -> None:
        """Check that the run is long enough to be validated; raises as `check_validation_comes`."""
        check_validation_comes(self.trainer)
        leave_finished_epoch(self.trainer)

    def training_step(self, batch: list[Sample], batch_idx: int) -> torch.Tensor:
        """One GRPO update: roll out, reward, compare within groups, take the gradient."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed_globally(row_seed(self.seed, "batch", done, self.global_rank))
        self.work = BatchWork()
        samples = self._patience.usable([self.answerer.check(sample) for sample in batch])
        skipped: dict[str, float | torch.Tensor] = {"skipped": float(len(batch) - len(samples))}
        if self._rollouts.is_due(batch, batch_idx):
            peers = Peers(self._mean_over_processes, self.device, self.is_sharded)
            epoch = self._epoch()
            self._rollouts.make(samples, batch, epoch, self.reference, peers, self.work)
            made = self._rollouts.experience
            self.last_rollout = None if made is None else made.record()
        self._update_start_s = time.perf_counter()
        experience = self._rollouts.experience
        if experience is None:
            return self._no_loss(skipped)
        self.work.update = self.policy.workload(experience.prompts, experience.groups.rollout)
        scores = self.policy.score(experience.prompts, experience.groups.rollout, self.temperature)
        completions = experience.completions(scores.logprobs, self.max_new_tokens)
        terms = self.objective(completions, self._mean_over_processes)
        metrics = experience.metrics | terms.metrics() | skipped
        metrics["entropy"] = masked_mean(scores.entropy, completions.mask)
        self._log(metrics, int(completions.mask.sum()))
        self._guard.watch(terms.loss)
        return terms.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step that is not finite: without gradients an optimizer leaves all as it is.

        Raises:
            DivergenceError: there were too many of them in a row.
        """
        self._step_metrics = []
        if self._guard.is_bad(self.parameters(), self._mean_over_processes):
            _log.warning("step %d is skipped: its loss or gradient is not finite", self.global_step)
            optimizer.zero_grad()
        self.log("train/nonfinite_steps", float(self._guard.total), batch_size=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, and let the reference follow before a checkpoint is written."""
        super().optimizer_step(*args, **kwargs)
        if self.reference is not None:
            self.reference.after_step(self.policy, self.global_step + 1)

    def on_train_batch_end(self, outputs: Any, batch: list[Sample], batch_idx: int) -> None:
        """Log how long this process's update took, its optimizer step included.

        Raises:
            InputError: none of the first batches had a usable sample, on any process.
        """
        self.log("train/update_s", time.perf_counter() - self._update_start_s, batch_size=1)
        self.num_batches_trained += 1
        found = self._rollouts.experience is not None
        self._patience.check(found, self.num_batches_trained, self.trainer)

    def on_train_end(self) -> None:
        """Do not call a run a success that has changed nothing.

        Raises:
            InputError: no sample of the whole run was usable.
            DivergenceError: no step of the whole run was finite.
        """
        self._patience.check_end(self.num_batches_trained)
        self._guard.check_end(self.trainer.global_step)

    def _epoch(self) -> int:
        """Times that the training questions were gone through before.

        Lightning's own count is one too high in a run that goes on where ``max_steps`` ended it.
        """
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        return batches // int(self.trainer.num_training_batches)

    def _no_loss(self, metrics: dict[str, float | torch.Tensor]) -> torch.Tensor:
        """Take part in what all processes do together where no sample of this batch is usable.

        Returns:
            A loss without effect whose backward still reaches every parameter.
        """
        loss = self._rollouts.loss_without_effect(self.parameters())
        self._mean_over_processes(torch.zeros((), dtype=torch.float32, device=self.device))
        # the loss of the others is divided by the mean over all processes, so this one counts too
        self._log({**metrics, "loss": 0.0}, num_tokens=0)
        return loss

    def _log(self, metrics: dict[str, float | torch.Tensor], num_tokens: int) -> None:
        """Log means over the processes and the batches of an optimizer step."""
        names = [reward.name for reward in self.rewards]
        if self.temporal is not None:
            names.append(self.temporal.name)
        log_means(self, metrics, names, num_tokens, self._step_metrics, self._logged)

    def _mean_over_processes(self, value: torch.Tensor) -> torch.Tensor:
        """Average a number over the processes that train together."""
        # offloaded gradients are not where processes exchange numbers
        value = value.detach().to(self.device)
        start_s = time.perf_counter()
        mean = self.trainer.strategy.reduce(value, reduce_op="mean")
        self.work.waiting_s += time.perf_counter() - start_s
        assert isinstance(mean, torch.Tensor)
        return mean

    # ---- answering

    def predict_step(self, batch: list[Sample], batch_idx: int) -> list[Prediction]:
        """Ask each question in one round, with the frames that its sample has."""
        return self.answerer.predict(batch)

    def on_predict_batch_end(
        self, outputs: Any, batch: list[Sample], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let go of the frames, which callbacks have seen by now.

        Where the Trainer returns predictions, it keeps those of all batches.
        """
        outputs[:] = [replace(prediction, clip=None) for prediction in outputs]

    def validation_step(self, batch: list[Sample], batch_idx: int) -> dict[str, list[Prediction]]:
        """Ask as in prediction; what callbacks have made of the answers is counted at the end."""
        return {"predictions": self.predict_step(batch, batch_idx)}

    test_step = validation_step

    def on_validation_batch_end(
        self, outputs: Any, batch: list[Sample], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count under ``val/``, and keep company after the last batch.

        Lightning exchanges metrics before its epoch ends.
        """
        self._evaluation.count(outputs["predictions"])
        self._evaluation.log(self, "val")
        trainer = self.trainer
        checking = trainer.sanity_checking
        count = trainer.num_sanity_val_batches if checking else trainer.num_val_batches
        if batch_idx + 1 == count[0]:
            self.answerer.keep_company()

    def on_test_batch_end(
        self, outputs: Any, batch: list[Sample], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count under ``test/``, and keep company after the last batch, as in validation."""
        self._evaluation.count(outputs["predictions"])
        self._evaluation.log(self, "test")
        if batch_idx + 1 == self.trainer.num_test_batches[0]:
            self.answerer.keep_company()

    def on_predict_epoch_end(self) -> None:
        """Keep company."""
        self.answerer.keep_company()

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; frozen weights stay in the policy's own folder."""
        keep_trained(self, checkpoint)
        checkpoint |= identity(self.policy)
        if self.reference is not None and (state := self.reference.state_dict()):
            checkpoint["reference"] = state
        checkpoint["skipped_steps"] = self._guard.state_dict()
        checkpoint["had_usable_video"] = self._patience.satisfied

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model.

        Raises:
            InputError: as `check_format`, `check_same_model` and `check_same_policy` say.
        """
        if self._fitting:
            check_format(str(self.trainer.ckpt_path), checkpoint)
        if "state_dict" in checkpoint:  # else the strategy has loaded shards already
            check_same_model(self, checkpoint)
        check_same_policy(self.policy, checkpoint)
        state = checkpoint.get("reference")
        if state and self._fitting and self.reference is not None:
            self.reference.load_state_dict(state)
        self._guard.load_state_dict(checkpoint.get("skipped_steps", {}))
        self._patience.satisfied = checkpoint.get("had_usable_video", True)
