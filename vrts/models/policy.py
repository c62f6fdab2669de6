"""The interface of a video language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from torch import nn

from vrts.types import Completion, FrameSizes, InputError, Question, Sample

if TYPE_CHECKING:
    from vrts.models.engines.engine import Engine
    from vrts.models.engines.network import Network


@dataclass(frozen=True, slots=True)
class Prompt(ABC):
    """One encoded question, ready for sampling and scoring. Policies subclass it."""

    question: Question
    opening: str = field(default="", kw_only=True)
    """What the chat template begins the completion with, such as ``<think>``: part of its text."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """P, vision tokens included."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probs of the tokens of N completions."""

    logprobs: torch.Tensor
    """float32 ``[N, L]``, of each completion token; 0 after a completion's end."""
    entropy: torch.Tensor
    """float32 ``[N, L]``, of the distribution each token was drawn from, in nats; no gradient."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a policy computes for B prompts and their N completions."""

    num_prompt_tokens: int
    num_completion_tokens: int
    vision_flops: float
    """One forward of the vision tower."""
    forward_flops: float
    """The language model without gradient, every prompt forwarded once: log-probs of the
    completions, and as many for prefilling and decoding them."""
    backward_flops: float
    """Backward of the log-probs, and of the vision tower where it is trained."""
    trains_vision: bool

    @property
    def rollout_flops(self) -> float:
        """Encoding the videos and sampling the completions."""
        return self.vision_flops + self.forward_flops

    @property
    def scoring_flops(self) -> float:
        """Log-probs without gradient, such as the reference's; the features are known."""
        return self.forward_flops + self.trains_vision * self.vision_flops

    @property
    def update_flops(self) -> float:
        """Log-probs with gradient, forward and backward."""
        return self.scoring_flops + self.backward_flops


class Policy(nn.Module, ABC):
    """A video language model that is trained and scored. Plug-in point ``model.policy``.

    Constructors only note what to load: every subcommand of the CLI builds a policy, and `load`
    takes long. What samples from it is an `Engine`.
    """

    is_recorded: bool = False
    """Whether completions are given and not drawn: sampling, seed and limit then change none."""

    @property
    def continues_adapter(self) -> bool:
        """Whether training continues with an adapter that has been trained before."""
        return False

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
        """Read the weights of a policy that was loaded empty and sharded, into shards on a device.

        Raises:
            InputError: the files do not fit.
        """

    def default_engine(self) -> Engine | None:
        """What samples from this policy where ``model.engine`` is null; None for the native one."""
        return None

    def network(self) -> Network:
        """The forward passes that the native engine samples with, on this policy's own weights.

        Raises:
            InputError: the policy has none, and needs another engine.
        """
        raise InputError(
            f"model.engine: NativeEngine cannot sample from {type(self).__name__}; leave "
            "model.engine null to take the policy's own"
        )

    @abstractmethod
    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        """Why a sample that has a clip cannot be used, with completions so long; None if it can.

        The reason does not name the question: whoever reports it does.
        """

    def frame_sizes(self) -> FrameSizes | None:
        """How large the model takes frames; None where that is the data module's alone to say.

        Called before anything is loaded.

        Raises:
            InputError: the model is not there.
        """
        return None

    def context_length(self) -> int | None:
        """Tokens of a prompt and its completion together at most; None where nothing limits them.

        Called before anything is loaded.

        Raises:
            InputError: the model is not there.
        """
        return None

    def fewest_text_tokens(self, num_frames: int) -> int:
        """Tokens of the shortest prompt about a video, without those that its frames become.

        Called before weights are loaded. 0 where `context_length` is None.

        Args:
            num_frames: T, whose timestamps are text in some families.

        Raises:
            InputError: the model or its processor is not there.
        """
        return 0

    @abstractmethod
    def logprobs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> TokenLogprobs:
        """Log-probs of completions; with gradient where gradients are enabled.

        Args:
            prompts: B of them.
            completions: G of each; N rows in all, question-major. None is empty.
            temperature: logits are divided by it, as they were in sampling.
        """

    def workload(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]
    ) -> Workload | None:
        """Tokens and operations of sampling and scoring, or None where they are not known."""
        return None

    @abstractmethod
    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Context in which the adapter is off, so that the base model scores.

        Raises:
            InputError: on entering, where the policy has no adapter.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
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
        """A fingerprint of the weights of the last of `sources`; None where there is none.

        Checkpoints keep it: frozen weights are not in them, and an adapter alone is not a model.
        """
        return None

    @property
    def trained_with(self) -> dict[str, float]:
        """Options, by name, that trained weights depend on, such as LoRA's alpha.

        Checkpoints keep them, and are refused where they differ. What changes names or shapes of
        weights need not be among them.
        """
        return {}

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the model in records of a run, as plain JSON values."""


class WeightlessPolicy(Policy):
    """A policy that predicts and has no weights to train, score or export."""

    no_weights: str
    """Why it has none and what to do, for the message."""

    def train(self, mode: bool = True) -> Self:
        """Only eval mode is supported; raises `InputError` otherwise."""
        if mode:
            self._refuse()
        return super().train(mode)

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> TokenLogprobs:
        """Refuse; raises `InputError`."""
        self._refuse()

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Refuse; raises `InputError`."""
        self._refuse()

    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
        """Refuse; raises `InputError`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"{type(self).__name__} {self.no_weights}")
