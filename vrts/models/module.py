"""The LightningModule: wires policy, reference, rewards and objective, and logs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torchmetrics import MeanMetric

from vrts.models.experience import Experience
from vrts.models.grpo import masked_mean
from vrts.models.objectives import GRPO, Completions, Objective
from vrts.models.policy import Policy
from vrts.models.record import RolloutRecord
from vrts.models.reference import Reference
from vrts.models.rewards import AccuracyReward, FormatReward, Reward, total_reward
from vrts.models.sampling import row_seed
from vrts.prompts import is_correct
from vrts.types import InputError, Prediction, Sample, Sampling
from vrts.voting import majority, make_round

TRAIN_METRICS = (
    "loss",
    "kl",
    "clip_share",
    "entropy",
    "failed_videos",
    "reward/total",
    "reward_std",
    "zero_advantage_groups",
    "completion_length",
    "truncated",
    "rollout_s",
    "tokens_per_s",
)
"""Logged at each training step under ``train/``, beside ``reward/<name>`` of each reward."""


class VideoQAModule(LightningModule):
    """Trains a video language model with GRPO, and answers questions with it.

    Args:
        policy: the model that is trained and asked.
        rewards: what completions are rewarded for; accuracy and format where none are given.
        objective: the loss.
        reference: what the KL penalty holds on to; needed where ``objective.beta`` is above 0.
        optimizer: of the policy's trainable parameters.
        lr_scheduler: stepped after every optimizer step; None keeps the learning rate.
        num_generations: G, completions for each question in training.
        max_new_tokens: completions are cut off there.
        temperature: of sampling and scoring in training.
        updates_per_rollout: optimizer updates made from one rollout; the CLI links it to the data
            module, which repeats each batch as often.
        evaluation: how tokens are drawn in validation, test and prediction.
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
        num_generations: PositiveInt = 8,
        max_new_tokens: PositiveInt = 768,
        temperature: PositiveFloat = 1.0,
        updates_per_rollout: PositiveInt = 1,
        evaluation: Sampling | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.rewards = rewards if rewards is not None else [AccuracyReward(), FormatReward()]
        self.objective = objective or GRPO()
        self.num_generations = int(num_generations)
        self.max_new_tokens = int(max_new_tokens)
        self.temperature = float(temperature)
        self.updates_per_rollout = int(updates_per_rollout)
        self.evaluation = evaluation or Sampling()
        self.seed = seed
        self.num_samples = 1
        """Completions for each question in prediction; a prediction callback may set it."""
        self.last_rollout: RolloutRecord | None = None
        """The newest rollout, for callbacks that show or keep completions."""
        # Checkpoints hold what is trained; the rest comes from the policy's own folder.
        self.strict_loading = False
        self._reference = reference
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._experience: Experience | None = None
        self._update_start_s = 0.0
        self._accuracy = MeanMetric()

    # ---- setting up

    def setup(self, stage: str) -> None:
        """Check what training needs, before anything is loaded.

        Raises:
            InputError: a combination of options that cannot work.
        """
        if stage != "fit":
            return
        if self.num_generations < 2:
            raise InputError(
                f"model.num_generations is {self.num_generations}; GRPO compares completions of "
                "one question, so give 2 or more"
            )
        if not self.rewards:
            raise InputError("model.rewards is empty; give at least one reward")
        if self.objective.beta > 0 and self._reference is None:
            raise InputError(
                f"model.objective has beta {self.objective.beta} but model.reference is null; set "
                "model.reference to vrts.models.reference.AdapterOff (LoRA) or FrozenCopy (full), "
                "or beta to 0"
            )

    def configure_model(self) -> None:
        """Load the weights, once."""
        if self.policy.loaded:
            return
        self.policy.load()
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self._reference is not None and self.objective.beta > 0:
            self._reference.attach(self.policy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over the trainable parameters, and its schedule by step."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler: Any = self._lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def transfer_batch_to_device(
        self, batch: list[Sample], device: torch.device, dataloader_idx: int
    ) -> list[Sample]:
        """Leave frames where they are: the policy moves patches when it encodes them."""
        return batch

    # ---- training

    def training_step(self, batch: list[Sample], batch_idx: int) -> torch.Tensor:
        """One GRPO update: roll out, reward, compare within groups, take the gradient."""
        usable = [sample for sample in batch if sample.clip is not None]
        if not usable:
            return self._no_loss(len(batch))
        experience = self._experience_for(usable, batch_idx)
        self._update_start_s = time.perf_counter()
        mask = experience.rollout.completion_mask
        scores = self.policy.score(experience.prompts, experience.rollout, self.temperature)
        if experience.old_logprobs is None:
            experience.old_logprobs = scores.logprobs.detach()
        terms = self.objective(
            Completions(
                scores.logprobs,
                experience.old_logprobs,
                experience.reference_logprobs,
                experience.advantages,
                mask,
                self.max_new_tokens,
            ),
            self._mean_over_processes,
        )
        self._log_train(
            {
                "loss": terms.loss.detach(),
                "kl": terms.kl,
                "clip_share": terms.clip_share,
                "entropy": masked_mean(scores.entropy, mask),
                "failed_videos": float(len(batch) - len(usable)),
                **experience.metrics(self.num_generations),
            }
        )
        return terms.loss

    def on_train_batch_end(self, outputs: Any, batch: list[Sample], batch_idx: int) -> None:
        """Log how long this process's update took, its optimizer step included."""
        self.log("train/update_s", time.perf_counter() - self._update_start_s, batch_size=1)

    def _experience_for(self, samples: list[Sample], batch_idx: int) -> Experience:
        """A fresh rollout, or the kept one where this batch is a further update from it."""
        kept = self._experience
        questions = tuple(s.question for s in samples for _ in range(self.num_generations))
        again = batch_idx % self.updates_per_rollout > 0
        if kept is None or not again or kept.questions != questions:
            kept = self._experience = self._roll_out(samples)
        return kept

    def _roll_out(self, samples: list[Sample]) -> Experience:
        """Sample G completions a question, reward them, and ask the reference."""
        start_s = time.perf_counter()
        G, epoch = self.num_generations, self.current_epoch
        prompts = self.policy.encode(samples, self.max_new_tokens)
        questions = tuple(s.question for s in samples for _ in range(G))
        seeds = [row_seed(self.seed, epoch, q.id, n % G) for n, q in enumerate(questions)]
        sampling = [Sampling(temperature=self.temperature)] * G
        rollout = self.policy.rollout(prompts, sampling, seeds, self.max_new_tokens)
        total, rewards = total_reward(self.rewards, rollout.texts, questions)
        advantages = self.objective.advantages(total, G)
        reference = None
        if self._reference is not None and self.objective.beta > 0:
            reference = self._reference.logprobs(self.policy, prompts, rollout, self.temperature)
        self.last_rollout = RolloutRecord(list(questions), rollout.texts, rewards, advantages)
        return Experience(
            questions=questions,
            prompts=prompts,
            rollout=rollout,
            rewards=rewards,
            total=total,
            advantages=advantages.to(rollout.logprobs.device),
            reference_logprobs=reference,
            seconds=time.perf_counter() - start_s,
        )

    def _no_loss(self, num_failed: int) -> torch.Tensor:
        """Take part in what all processes do together where no video of this batch opened.

        Returns:
            A loss without effect whose backward still reaches every parameter.
        """
        self._update_start_s = time.perf_counter()
        self._mean_over_processes(torch.zeros((), device=self.device))
        self._log_train({"failed_videos": float(num_failed)})
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.stack([(p * 0.0).sum() for p in trainable]).sum()

    def _mean_over_processes(self, value: torch.Tensor) -> torch.Tensor:
        """Average a number over the processes that train together."""
        mean = self.trainer.strategy.reduce(value.detach(), reduce_op="mean")
        assert isinstance(mean, torch.Tensor)
        return mean

    def _log_train(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Log means over the processes under ``train/``, in one exchange.

        A process that lacks a value (its videos all failed) does not count for it.
        """
        names = [*TRAIN_METRICS, *(f"reward/{reward.name}" for reward in self.rewards)]
        assert values.keys() <= set(names), values.keys() - set(names)
        own = torch.tensor([float(values.get(n, math.nan)) for n in names], device=self.device)
        gathered = self.all_gather(own)
        assert isinstance(gathered, torch.Tensor)
        means = gathered.view(-1, len(names)).nanmean(0).tolist()
        for name, value in zip(names, means, strict=True):
            if not math.isnan(value):
                shown = name in ("reward/total", "kl", "completion_length")
                self.log(f"train/{name}", value, prog_bar=shown, batch_size=1)

    # ---- answering

    def answer(
        self, samples: Sequence[Sample], num_samples: int, level: int
    ) -> list[tuple[str, ...]]:
        """Sample completions for questions whose clips are at hand.

        Args:
            samples: all with clips.
            num_samples: completions for each.
            level: which round this is; rounds draw different random numbers.

        Returns:
            For each sample, its completions.
        """
        prompts = self.policy.encode(samples, self.max_new_tokens)
        seeds = [
            row_seed(self.seed, s.question.id, level, m)
            for s in samples
            for m in range(num_samples)
        ]
        sampling = [self.evaluation] * num_samples
        texts = self.policy.rollout(prompts, sampling, seeds, self.max_new_tokens).texts
        return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]

    def predict_step(self, batch: list[Sample], batch_idx: int) -> list[Prediction]:
        """Ask each question once, with the frames that its sample has."""
        usable = [sample for sample in batch if sample.clip is not None]
        texts = iter(self.answer(usable, self.num_samples, level=0) if usable else [])
        return [
            self._failed(sample) if sample.clip is None else self._predict(sample, next(texts))
            for sample in batch
        ]

    def _failed(self, sample: Sample) -> Prediction:
        """A question without a clip counts as wrong."""
        known = sample.question.answer is not None
        return Prediction(sample.question, error=sample.error, correct=False if known else None)

    def _predict(self, sample: Sample, texts: tuple[str, ...]) -> Prediction:
        """A prediction of one round."""
        assert sample.clip is not None
        question = sample.question
        first = make_round(texts, question, sample.clip.num_frames)
        answer = majority(first.answers)
        return Prediction(question, (first,), answer, correct=is_correct(answer, question))

    def validation_step(self, batch: list[Sample], batch_idx: int) -> None:
        """Log ``val/accuracy``: one completion a question, over all questions."""
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Sample], batch_idx: int) -> None:
        """Log ``test/accuracy``: one completion a question, over all questions."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: list[Sample], prefix: str) -> None:
        """Answer once; failed videos count as wrong, questions without a gold answer not at all."""
        for prediction in self.predict_step(batch, 0):
            if prediction.correct is not None:
                self._accuracy.update(float(prediction.correct))
        self.log(
            f"{prefix}/accuracy",
            self._accuracy,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch),
        )

    # ---- checkpoints

    def _trained_keys(self) -> set[str]:
        """Names of the trained parameters, tied ones under each of their names."""
        named = self.named_parameters(remove_duplicate=False)
        return {name for name, parameter in named if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; frozen weights stay in the policy's own folder."""
        trained = self._trained_keys()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model.

        Raises:
            InputError: tensors are missing, superfluous or of another shape.
        """
        have = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
        named = dict(self.named_parameters(remove_duplicate=False))
        want = {k: tuple(named[k].shape) for k in self._trained_keys()}
        differing = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
        if differing:
            k = differing[0]
            raise InputError(
                f"--ckpt_path: the checkpoint is of another model or LoRA setting: "
                f"{len(differing)} tensors differ, the first {k}: {have.get(k)} in the "
                f"checkpoint, {want.get(k)} in model.policy"
            )

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the answering side of a prediction run, as plain JSON values."""
        return {
            **self.policy.fingerprint(),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.evaluation.temperature,
            "top_p": self.evaluation.top_p,
            "top_k": self.evaluation.top_k,
            "seed": self.seed,
        }
