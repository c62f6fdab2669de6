"""The LightningModule: one page of training, and prediction by a plan."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vrts.models.checkpoints.contents import (
    check_format,
    check_same_model,
    check_same_policy,
    identity,
    keep_trained,
    keep_trained_only,
)
from vrts.models.engines.engine import Engine
from vrts.models.engines.native import NativeEngine
from vrts.models.engines.sampling import row_seed, seed_globally
from vrts.models.grpo.checks import check_context_length, check_data, check_options
from vrts.models.grpo.guards import NonFiniteGuard, RewardWatch, UsableVideoGuard
from vrts.models.grpo.metrics import log_means
from vrts.models.grpo.micro_batches import ImportanceCorrection, MicroBatch
from vrts.models.grpo.objectives import GRPO, LossTerms, Objective
from vrts.models.grpo.reference import Reference
from vrts.models.grpo.rollouts import Group, RolloutWorker, StepWork
from vrts.models.grpo.schedules import make_optimizer, monitor_of
from vrts.models.grpo.temporal import TemporalReward
from vrts.models.policy import Policy, Prompt, Workload
from vrts.models.prediction.evaluation import Evaluation
from vrts.models.prediction.predictor import Plan, TakesPredictions, checked
from vrts.models.rewards import AccuracyReward, FormatReward, Reward
from vrts.models.rewards.base import as_reward
from vrts.models.sharding import (
    GradientSync,
    Sharder,
    Sharding,
    data_parallel,
    dummy_sample,
    gathered,
)
from vrts.types import Completion, FrameSizes, InputError, Prediction, Sample, SamplingParams

_log = logging.getLogger(__name__)

_Pass = tuple[MicroBatch | None, list[Prompt], list[tuple[Completion, ...]]]
"""A forward of prompts and their completions; of a dummy where there is no micro-batch."""


class VideoQAModule(LightningModule):
    """Trains a video language model with GRPO, and predicts with it.

    A batch is a step: a rollout of all its questions and `updates_per_rollout` optimizer updates
    from it. ``max_steps``, ``val_check_interval``, schedules and checkpoints all count steps.

    Args:
        policy: the model that is trained and scored.
        engine: what samples completions; null for the policy's own (`NativeEngine` for a model).
        rewards: what completions are rewarded for, from Python also plain functions (see
            `FunctionReward`); accuracy and format where none are given.
        objective: the loss.
        reference: what the policy is regularised towards; needed where ``objective.beta`` is above
            0.
        optimizer: of the policy's trainable parameters.
        lr_scheduler: stepped after every step, or after every validation where it is a
            ``ReduceLROnPlateau`` whose monitor is of validation; null keeps the learning rate.
        temporal: T-GRPO's bonus for right answers that need the order of the frames; null for none.
        num_generations: G, completions for each question in training.
        num_groups: questions that an update is made from, on each rank. Further ones of the batch
            are sampled only where the rewards of a group are all equal, which teaches nothing, and
            take its place (DAPO's dynamic sampling); give ``data.batch_size`` a few times as many.
            Null trains on the complete batch.
        micro_batch_size: questions of one forward and backward; bounds the memory, and changes
            nothing else.
        max_new_tokens: completions are cut off there.
        temperature: of sampling and scoring in training.
        updates_per_rollout: optimizer updates made from one rollout.
        max_grad_norm: gradients are scaled down to this norm; null leaves them as they are.
        mask_truncated: leave completions that `max_new_tokens` cut off out of the loss (DAPO's
            overlong filtering, arXiv 2503.14476, section 3.4). Their rewards count for the others.
        importance_correction: weight tokens by how much likelier the policy makes them than the
            engine did (truncated importance sampling), for engines whose log-probs differ; null for
            none.
        max_nonfinite_steps: optimizer steps whose gradient is not finite are skipped, and the run
            stops at that many in a row.
        eval_sampling: how tokens are drawn in validation, test and prediction.
        sharding: how weights are kept under Lightning's ModelParallelStrategy (FSDP2).
        seed: of all sampling. A completion's random numbers depend on the seed, its question and
            its place in the group alone, not on batches or ranks.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine | None = None,
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
        micro_batch_size: PositiveInt = 1,
        max_new_tokens: PositiveInt = 768,
        temperature: PositiveFloat = 1.0,
        updates_per_rollout: PositiveInt = 1,
        max_grad_norm: PositiveFloat | None = None,
        mask_truncated: bool = False,
        importance_correction: ImportanceCorrection | None = None,
        max_nonfinite_steps: PositiveInt = 5,
        eval_sampling: SamplingParams | None = None,
        sharding: Sharding | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Checkpoints hold what is trained; the rest comes from the policy's own folder.
        self.strict_loading = False
        self.policy = policy
        self.engine = engine or policy.default_engine() or NativeEngine()
        self.rewards = (
            [AccuracyReward(), FormatReward()] if rewards is None else list(map(as_reward, rewards))
        )
        self.objective = objective or GRPO()
        self.temporal = temporal
        self.num_generations = int(num_generations)
        self.num_groups = num_groups and int(num_groups)
        self.micro_batch_size = int(micro_batch_size)
        self.max_new_tokens = int(max_new_tokens)
        self.temperature = float(temperature)
        self.updates_per_rollout = int(updates_per_rollout)
        self.max_grad_norm = max_grad_norm and float(max_grad_norm)
        self.mask_truncated = mask_truncated
        self.importance_correction = importance_correction
        self.eval_sampling = eval_sampling or SamplingParams()
        self.sharding = sharding or Sharding()
        self.is_sharded = False  # whether a rank holds only a part of the weights
        self.seed = seed
        self.plan = Plan((self.eval_sampling,))
        """How validation, test and prediction sample and decide; a callback may set it."""
        self.last_rollout: list[Group] | None = None
        """Groups of the newest step, for callbacks; None where it had no usable video."""
        self.num_steps_trained = 0  # on this rank, since it was started
        self.reward_watch = RewardWatch()  # of the steps since the run was started, on all ranks
        self.work = StepWork()
        """What the newest step took on this rank, for callbacks that watch the speed."""
        self._rollout = RolloutWorker(
            policy,
            self.engine,
            self.rewards,
            temporal,
            self.num_generations,
            self.num_groups,
            self.max_new_tokens,
            self.temperature,
            seed,
        )
        self._reference = reference
        self._is_prepared = False
        self._engine_is_stale = True
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._guard = NonFiniteGuard(int(max_nonfinite_steps))
        self._video_guard = UsableVideoGuard()
        self._grad_norm = torch.zeros((), device="cpu")
        self._logged: set[str] = set()
        self._evaluation = Evaluation()

    # ---- training: a batch is a step

    def training_step(self, batch: Sequence[Sample], batch_idx: int) -> None:
        """One step of group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300).

        B questions of this rank, G completions of each, N = B * G rows of up to L tokens.
        """
        seed_globally(row_seed(self.seed, "step", self.global_step, self.global_rank))
        self.work = work = StepWork()
        samples = self._video_guard.usable(
            [checked(sample, self.policy.refuses, self.max_new_tokens) for sample in batch]
        )
        work.num_questions = len(samples)
        work.num_frames = sum(s.clip.num_frames for s in samples if s.clip is not None)

        # Rollout: sample G completions of every question, all questions together; reward them.
        self.sync_engine()
        start_s = time.perf_counter()
        end = getattr(batch, "end", None)  # none of a plain list
        rollout = self._rollout(samples, end.epoch if end is not None else 0)
        self.engine.release()  # the KV cache makes room for activations
        work.rollout_s, work.sampled = time.perf_counter() - start_s, rollout.sampled
        groups = rollout.groups
        self.last_rollout = groups or None

        # Advantages: a completion's reward compared with those of the same question. Every rank
        # takes part, since some are scaled by the rewards of all ranks.
        rewards = torch.zeros(0, self.num_generations, dtype=torch.float32, device="cpu")
        if groups:
            rewards = torch.stack([group.total for group in groups])  # [B, G]
        advantages = self.objective.advantages(rewards, self._all_reduce_mean)
        for group, own in zip(groups, advantages, strict=True):
            group.advantages = own  # [G]

        # Reference and update, micro-batch by micro-batch: memory grows with their size alone.
        start_s = time.perf_counter()
        size = self.micro_batch_size
        micro_batches = [
            MicroBatch(
                groups[i : i + size], self.device, self.mask_truncated, self.importance_correction
            )
            for i in range(0, len(groups), size)
        ]
        for update in range(self.updates_per_rollout):
            with gathered(self.policy, self.sharding):  # FSDP2: each layer once for all passes
                if update == 0:
                    self._score_reference(micro_batches)
                metrics = self._accumulate_gradients(micro_batches)
            self._optimizer_step(is_last=update + 1 == self.updates_per_rollout)
        if (data := self.trainer.datamodule) is not None:  # type: ignore[attr-defined]
            data.mark_trained(batch)  # a run that resumes continues after this batch
        if self.reference is not None:
            self.reference.after_step(self.policy, self.global_step)
        self.engine.sync(self.policy)

        metrics |= rollout.metrics() | {
            "skipped": float(len(batch) - len(samples)),
            "grad_norm": self._grad_norm,
            "rollout_s": work.rollout_s,
            "update_s": time.perf_counter() - start_s,
            "tokens_per_s": work.sampled.num_tokens / max(work.rollout_s, 1e-9),
        }
        names = [reward.name for reward in (*self.rewards, self.temporal) if reward is not None]
        num_tokens = sum(c.num_tokens for group in groups for c in group.completions)
        self.reward_watch.update(log_means(self, metrics, names, num_tokens, self._logged))
        self.log("train/nonfinite_steps", float(self._guard.total), batch_size=1)

    @torch.no_grad()
    def _score_reference(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Log-probs of the reference, which the KL penalty compares with."""
        if self.reference is None:
            return
        with self.reference.scoring(self.policy) as scorer:
            for micro_batch, prompts, completions in self._passes(micro_batches):
                found = scorer.logprobs(prompts, completions, self.temperature).logprobs  # [N, L]
                if micro_batch is not None:
                    micro_batch.reference_logprobs = found
                    self._count(micro_batch, self.work.reference)

    def _accumulate_gradients(
        self, micro_batches: Sequence[MicroBatch]
    ) -> dict[str, float | torch.Tensor]:
        """Forward and backward of a step's micro-batches; returns numbers to log."""
        # One divisor for all micro-batches of all ranks, so that the loss is the same however the
        # step's completions are divided.
        zero = torch.zeros((), dtype=torch.float32, device=self.device)
        own = [self.objective.divisor(m.mask, self.max_new_tokens) for m in micro_batches]
        divisor = self._all_reduce_mean(sum(own, zero))
        step = LossTerms(zero, zero, zero, zero, zero)
        sums: dict[str, torch.Tensor] = {"entropy": zero}  # over tokens

        passes = self._passes(micro_batches)
        for i, (micro_batch, prompts, completions) in enumerate(passes):
            scores = self.policy.logprobs(prompts, completions, self.temperature)  # [N, L] each
            if micro_batch is None:
                loss = (scores.logprobs * 0.0).sum()  # a dummy: only its collectives matter
            else:
                inputs = micro_batch.inputs(scores.logprobs, self.max_new_tokens)
                terms = self.objective(inputs, divisor)
                loss = terms.loss
                step.add(terms)
                entropy = scores.entropy.where(inputs.mask, 0.0).sum()
                for name, value in ({"entropy": entropy} | micro_batch.sampling_sums).items():
                    sums[name] = sums.get(name, zero) + value
                self._count(micro_batch, self.work.update)
            with self._sync.backward(is_last=i + 1 == len(passes)):
                self.manual_backward(loss)
        if not passes and self.trainer.world_size > 1:
            # DDP sums gradients over all ranks, of all parameters
            trained = [p for p in self.parameters() if p.requires_grad]
            self.manual_backward(torch.stack([(p * 0.0).sum() for p in trained]).sum())
        if not micro_batches:
            return {"loss": 0.0}  # which counts in the mean over the ranks
        count = step.num_tokens.clamp(min=1)
        return step.metrics() | {name: value / count for name, value in sums.items()}

    def _passes(self, micro_batches: Sequence[MicroBatch]) -> list[_Pass]:
        """This rank's passes, filled up with dummies so that collectives stay in sync."""
        passes: list[_Pass] = [(m, m.prompts, m.completions) for m in micro_batches]
        num_dummies = self._sync.num_passes(len(micro_batches)) - len(micro_batches)
        if num_dummies:
            ids = torch.zeros(2, dtype=torch.int64, device="cpu")
            completion = Completion("", 2, 2, token_ids=ids)
            passes += [(None, self.engine.encode([dummy_sample()]), [(completion,)])] * num_dummies
        return passes

    def _optimizer_step(self, is_last: bool) -> None:
        """Clip, step and schedule. Lightning counts a step once a batch, at the last update."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        if is_last:
            optimizer.step()  # calls `on_before_optimizer_step`
        else:
            self.on_before_optimizer_step(optimizer.optimizer)
            optimizer.optimizer.step()
        optimizer.zero_grad()
        schedule: Any = self.lr_schedulers()
        if is_last and schedule is not None and not isinstance(schedule, ReduceLROnPlateau):
            schedule.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip gradients; where they are not finite drop them, so that the step changes nothing.

        Raises:
            DivergenceError: there were too many such steps in a row.
        """
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        norm = clip_grad_norm_([p for p in self.parameters() if p.grad is not None], limit)
        self._grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._guard.must_skip(self._grad_norm):
            _log.warning("step %d is skipped: its gradient is not finite", self.global_step)
            optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: Sequence[Sample], batch_idx: int) -> None:
        """Raise InputError where none of the first steps had a usable video, on any rank."""
        self.num_steps_trained += 1
        found = self.last_rollout is not None
        self._video_guard.check(found, self.num_steps_trained, self.trainer)

    def on_train_end(self) -> None:
        """Raise where the run changed nothing, so that it does not pass for a success.

        Raises:
            InputError: no step had a usable video.
            DivergenceError: no step was finite.
        """
        self._video_guard.check_end(self.num_steps_trained)
        self._guard.check_end(self.trainer.global_step)

    def on_validation_epoch_end(self) -> None:
        """Step a plateau's schedule by what validation found, before callbacks save it."""
        schedule: Any = self.lr_schedulers() if self._fitting else None
        if isinstance(schedule, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            schedule.step(self.trainer.callback_metrics[monitor_of(schedule)])

    def _count(self, micro_batch: MicroBatch, workloads: list[Workload]) -> None:
        workload = self.policy.workload(micro_batch.prompts, micro_batch.completions)
        if workload is not None:
            workloads.append(workload)

    def _all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the ranks, where it was."""
        mean = self.trainer.strategy.reduce(value.detach().to(self.device), reduce_op="mean")
        assert isinstance(mean, torch.Tensor)
        return mean.to(value.device)

    # ---- setting up

    @property
    def frame_sizes(self) -> FrameSizes | None:
        """How large the policy takes frames, which the data module reads."""
        return self.policy.frame_sizes()

    def setup(self, stage: str) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            InputError: a combination of options that cannot work, or unusable questions.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        temperature = self.temperature if stage == "fit" else None
        self.engine.check(self.policy, self.trainer.strategy.root_device, temperature)
        check_context_length(self, data, is_fit=stage == "fit")
        if stage == "fit":
            check_options(self, str(self.trainer.precision))
            if data is not None:
                check_data(self, data, self.trainer)

    def configure_model(self) -> None:
        """Load the weights, once, and prepare them for what is to be done.

        Where a run trains with a strategy that shards, each rank keeps a part of the weights; the
        engine then has a copy of them. Nothing is sharded where nothing is trained.
        """
        strategy_mesh = data_parallel(self.device_mesh)
        mesh = strategy_mesh if self._fitting else None
        if self.sharding != Sharding() and mesh is None and self._fitting:
            _log.warning(
                "model.sharding has no effect: trainer.strategy does not shard; put --config "
                "configs/fsdp.yaml after the others"
            )
        if mesh is not None:
            self.policy.load_empty()
        else:
            self.policy.load()
        if not self._is_prepared:
            self._is_prepared = True
            precision = str(self.trainer.precision)
            dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
            self.engine.attach(
                self.policy, self.trainer.strategy.root_device, dtype, will_shard=mesh is not None
            )
            reference = self.reference if self._fitting else None
            if reference is not None:
                reference.attach(self.policy)
            if mesh is not None:
                sharder = Sharder(mesh, self.sharding, dtype)
                sharder(self.policy)
                if reference is not None:
                    reference.shard(sharder)
                self.is_sharded = True
            if strategy_mesh is not None:  # such a strategy saves and loads the module's own state
                keep_trained_only(self)
        # Loaded models are in eval mode, in which transformers ignores gradient checkpointing.
        self.policy.train(self._fitting)

    def on_fit_start(self) -> None:
        """Start with an engine that has nothing pending."""
        self._sync = GradientSync(self.trainer.strategy, self.policy, self.sharding)
        self.engine.cancel()  # what an interrupted run has left
        self._engine_is_stale = True  # strategies that shard load checkpoints after this

    def sync_engine(self) -> None:
        """Give the engine the weights; in training only where it does not have them already."""
        if self._engine_is_stale or not self._fitting:
            self.engine.sync(self.policy)
            self._engine_is_stale = False

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the trainable parameters, and its schedule; see `make_optimizer`."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise InputError(
                "model.policy has nothing to train; where its path is an adapter, give "
                "model.policy.init_args.lora to go on with it (--config lora), or the merged model "
                "as path to train everything"
            )
        return make_optimizer(self._optimizer, self._lr_scheduler, trained)

    @property
    def reference(self) -> Reference | None:
        """What the policy is regularised towards; None without a KL penalty."""
        return self._reference if self.objective.beta > 0 else None

    @property
    def _fitting(self) -> bool:
        """Whether this run trains."""
        return self.trainer.state.fn == TrainerFn.FITTING

    # ---- prediction, validation and test

    def predict_step(self, batch: list[Sample], batch_idx: int) -> list[Prediction]:
        """Submit questions, and return what is decided by now; the last batch decides the rest.

        Callbacks that take predictions get them at once, with their frames.
        """
        decided: list[Prediction] = []
        counts = self.trainer.num_predict_batches
        for predictions in self._evaluation.predict(self, batch, batch_idx, counts):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, TakesPredictions):
                    callback.on_predictions(self.trainer, self, predictions)
            decided += [replace(prediction, clip=None) for prediction in predictions]
        return decided

    def validation_step(self, batch: list[Sample], batch_idx: int) -> None:
        """Predict, and count under ``val/``."""
        sanity = self.trainer.sanity_checking
        counts = self.trainer.num_sanity_val_batches if sanity else self.trainer.num_val_batches
        self._evaluation.step(self, "val", batch, batch_idx, counts)

    def test_step(self, batch: list[Sample], batch_idx: int) -> None:
        """Predict, and count under ``test/``."""
        self._evaluation.step(self, "test", batch, batch_idx, self.trainer.num_test_batches)

    def fingerprint(self) -> dict[str, Any]:
        """What predictions depend on in addition to the data, as plain JSON values."""
        if self.policy.is_recorded:
            return self.policy.fingerprint()
        return {
            **self.policy.fingerprint(),
            **self.engine.fingerprint(),
            "max_new_tokens": self.max_new_tokens,
            **self.plan.fingerprint(),
            "seed": self.seed,
        }

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; frozen weights stay in the policy's own folder."""
        keep_trained(self, checkpoint)
        checkpoint |= identity(self.policy)
        if self.reference is not None and (state := self.reference.state_dict()):
            checkpoint["reference"] = state
        checkpoint["skipped_steps"] = self._guard.state_dict()
        checkpoint["had_usable_video"] = self._video_guard.satisfied

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model.

        Raises:
            InputError: see `check_format`, `check_same_model` and `check_same_policy`.
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
        self._video_guard.satisfied = checkpoint.get("had_usable_video", True)
