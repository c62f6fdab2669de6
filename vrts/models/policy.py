"""What the rest of vrts asks of a video language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vrts.models.flops import Workload
from vrts.types import InputError, Question, Rollout, Sample, Sampling

StopEarly = Callable[[int, Sequence[str | None], Sequence[float]], bool]
"""From a question's index in the batch, the texts of its G completions (None for those that are
not finished) and the mean log-probs of their tokens (of no meaning where there is no text), to
whether the unfinished ones are no longer needed."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """B encoded questions, ready for rollouts and scoring. Policies subclass it."""

    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely a policy finds given completions."""

    logprobs: torch.Tensor
    """float32 ``[N, L]``, of each completion token; 0 where the mask is False."""
    entropy: torch.Tensor
    """float32 ``[N, L]``, of the distribution each token was drawn from, in nats; no gradient."""


class Policy(nn.Module, ABC):
    """A video language model that can be rolled out and scored. Plug-in point ``model.policy``.

    Constructors only note what to load: every subcommand of the CLI builds a policy, `load` is
    what takes time.
    """

    is_recorded: bool = False
    """Whether completions are given and not drawn: sampling, seed and limit then change none."""

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether `load` has been called."""

    @abstractmethod
    def load(self) -> None:
        """Load weights, tokenizer and processor. Does nothing when called again.

        Raises:
            InputError: the model's files are missing or do not fit.
        """

    def load_empty(self) -> None:
        """Like `load`, but where the policy can, weights take no memory until `fill` reads them."""
        self.load()

    def fill(self, device: torch.device) -> None:
        """Read the weights of a policy that was loaded empty and has been sharded.

        Args:
            device: where shards are kept.

        Raises:
            InputError: the files do not fit.
        """

    @abstractmethod
    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        """Why a sample that has a clip cannot be asked, or None where it can.

        Args:
            sample: with a clip.
            max_new_tokens: room that completions will need.
        """

    @abstractmethod
    def encode(
        self, samples: Sequence[Sample], max_new_tokens: int, known: Prompts | None = None
    ) -> Prompts:
        """Turn B questions and their clips into model inputs; one pass of the vision tower each.

        Args:
            samples: all with clips, none of them refused.
            max_new_tokens: room that completions will need.
            known: prompts about the same videos that were encoded before, with the vision tower as
                it is now. A policy may take from them what need not be computed again; what it
                returns is the same without.

        Raises:
            InputError: a sample that `refuses` has a reason against.
        """

    @abstractmethod
    def rollout(
        self,
        prompts: Prompts,
        sampling: Sequence[Sampling],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_early: StopEarly | None = None,
    ) -> Rollout:
        """Sample completions, without gradient; one prefill a prompt, shared by its rows.

        Args:
            prompts: B questions.
            sampling: G of them, one for each sample of a question.
            seeds: ``N = B * G`` of them, one for each row.
            max_new_tokens: completions are cut off there.
            stop_early: is told of each question's completions as they end, and may give its
                unfinished ones up. Every completion that is not given up is the same without it.
        """

    @abstractmethod
    def score(self, prompts: Prompts, rollout: Rollout, temperature: float) -> Scores:
        """Log-probs of a rollout's completions; with gradient where gradients are enabled.

        Args:
            prompts: those that the rollout was sampled from.
            rollout: N completions.
            temperature: logits are divided by it, as they were in sampling.
        """

    def workload(self, prompts: Prompts, rollout: Rollout) -> Workload | None:
        """Tokens and operations of sampling and scoring, or None where the policy cannot tell.

        Args:
            prompts: those that the rollout was sampled from.
            rollout: N completions.
        """
        return None

    @abstractmethod
    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Context in which an adapter is off, so that the base model answers.

        Raises:
            InputError: on entering, where the policy has no adapter.
        """

    @abstractmethod
    def save_pretrained(self, folder: Path, merge: bool = False) -> None:
        """Write weights (or adapter), tokenizer and processor as a Hugging Face folder.

        Where weights are sharded every process has to call it; the first one writes.

        Args:
            folder: to write to.
            merge: where there is an adapter, write a model with it merged in instead.

        Raises:
            InputError: the adapter cannot be merged, or the folder cannot be written to.
        """

    def layers(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """Vision blocks and decoder layers, in order of use, for FSDP to shard one by one.

        Raises:
            InputError: the policy cannot be sharded.
        """
        raise InputError(
            f"{type(self).__name__} cannot be sharded; set trainer.strategy to ddp, or to auto for "
            "one device"
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Folders, or names on a hub, that the weights are loaded from."""
        return ()

    @property
    def base_content(self) -> str | None:
        """What tells the weights of the last of `sources` from others; None where nothing does.

        Checkpoints keep it: frozen weights are not in them, and an adapter alone is no model.
        """
        return None

    @property
    def trained_with(self) -> dict[str, float]:
        """Options without which the trained weights are another model, by their place in ours.

        Checkpoints keep them, and are refused where they differ. What shows in the names or shapes
        of weights need not be among them.
        """
        return {}

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the model in records of a run, as plain JSON values."""
