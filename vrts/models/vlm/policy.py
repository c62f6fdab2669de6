"""A video language model of transformers as a policy, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from jsonargparse.typing import PositiveInt
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence

from vrts.files import shipped
from vrts.models.families.known import find_family
from vrts.models.families.prompt import VideoPrompt
from vrts.models.policy import Policy, Prompt, TokenLogprobs, Workload
from vrts.models.quantizing import Quantize, check_mergeable_weights, check_quantize
from vrts.models.vlm.flops import count_workload
from vrts.models.vlm.layers import chunk_mlps, fuse_norms, fuse_rotation, multiply_patches
from vrts.models.vlm.loading import (
    Dtype,
    Lora,
    adapter_base,
    add_lora,
    check_attention,
    check_processor,
    is_adapted,
    load_adapter,
    load_empty_model,
    load_model,
    load_processor,
    read_config,
    weights_stamp,
)
from vrts.models.vlm.logprobs import token_logprobs
from vrts.models.vlm.network import TransformersNetwork
from vrts.models.vlm.packing import pack
from vrts.models.vlm.saving import save_model
from vrts.models.vlm.shards import (
    PATH_KEY,
    fill,
    known_folder,
    local_folder,
    pretended_on_cpu,
    weights_digest,
)
from vrts.models.vlm.texts import end_token_ids
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Completion, FrameSizes, InputError, Question, Sample

MOST_CHARACTERS_PER_TOKEN = 32
"""Of a text on average: a longer one than a model's tokens could hold is not even tokenized."""


class TransformersPolicy(Policy):
    """A video language model from a folder or a hub id, full or with LoRA.

    Its family (Qwen2.5-VL, Qwen3-VL, …) is found from the model's ``config.json``.

    Args:
        path: local folder in Hugging Face's format, or a hub id. It may hold a LoRA adapter,
            whose base model is loaded too; with `lora` given its training continues.
        prompt: how a question is put to the model.
        lora: train a low-rank adapter of the language model; None trains all of it.
        freeze_vision: keep the vision tower as it is; its features are then computed once a step.
        dtype: of the weights. What is trained in full needs float32 (with the Trainer's
            ``bf16-mixed`` to compute in bfloat16): in bfloat16, steps as small as RL's are rounded
            away. Under LoRA the frozen weights may be bfloat16; the adapter is float32 anyway.
        attn_implementation: the vision tower's attention, by transformers' name; None batches
            its windows on torch's SDPA kernels. The language model always runs vrts's
            shared-prefix attention, on the same kernels.
        gradient_checkpointing: recompute activations layer by layer in backward.
        head_chunk_size: completion positions whose logits exist at the same time.
        mlp_chunk_size: tokens whose feed-forward activations exist at the same time, in decoder
            layers. Saves memory where nothing else takes as much, and costs a third forward of
            them under gradient checkpointing; null takes all tokens together.
        quantize: hold the decoder's matrices in 4 bits (QLoRA, Dettmers et al., 2023, arXiv
            2305.14314), to train an adapter on them; needs bitsandbytes.
    """

    def __init__(
        self,
        path: str,
        prompt: PromptTemplate | None = None,
        lora: Lora | None = None,
        freeze_vision: bool = True,
        dtype: Dtype = "auto",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        head_chunk_size: PositiveInt = 256,
        mlp_chunk_size: PositiveInt | None = None,
        quantize: Quantize | None = None,
    ) -> None:
        super().__init__()
        self.path = shipped.find_model(path)
        self.lora = lora
        self.freeze_vision = freeze_vision
        self._template = prompt or PromptTemplate()
        self._dtype: Dtype = dtype
        self._attn_implementation = attn_implementation
        self._gradient_checkpointing = gradient_checkpointing
        self._head_chunk_size = head_chunk_size
        self._mlp_chunk_size = mlp_chunk_size and int(mlp_chunk_size)
        self.quantize = quantize
        self.model: Any = None
        self.processor: Any = None

    @property
    def continues_adapter(self) -> bool:
        """See `Policy.continues_adapter`."""
        return self.lora is not None and adapter_base(self.path) is not None

    @property
    def loaded(self) -> bool:
        """See `Policy.loaded`."""
        return self.model is not None

    def load(self) -> None:
        """See `Policy.load`."""
        if not self.loaded:
            self._load(partial(load_model, quantize=self.quantize))

    def load_empty(self) -> None:
        """See `Policy.load_empty`."""
        if self.quantize:
            raise InputError(
                f"model.policy.quantize is {self.quantize}, and 4-bit weights are not sharded; "
                "take --config configs/ddp.yaml, or set quantize: null"
            )
        if not self.loaded:
            self._load(load_empty_model)

    def _load(self, read: Callable[[str, Dtype, str | None], Any]) -> None:
        """Load processor, model and adapter.

        Args:
            read: makes the model of a name, a dtype and the vision tower's attention.
        """
        if self.lora and not self.freeze_vision:
            raise InputError(
                "model.policy: lora trains the language model's adapter only; set "
                "freeze_vision: true, or lora: null for full fine-tuning"
            )
        check_attention(self._attn_implementation)
        base = self._base()
        if self.quantize:
            check_quantize(self.quantize, self.lora is not None or base != self.path)
        self._load_processor()
        self._base_path = base
        # building some models draws random numbers; an adapter's first values are the seed's alone
        with torch.random.fork_rng(devices=[]):
            model = read(base, self._dtype, self._attn_implementation)
        self.adopt(model, self.processor)
        is_empty = any(p.is_meta for p in self.parameters())
        with pretended_on_cpu(self.model) if is_empty else nullcontext():
            if base != self.path:
                self.model = load_adapter(self.model, self.path, self.lora)
            elif self.lora:
                self.model = add_lora(self.model, self.lora)
        if self.lora:
            self._check_trained()

    def _load_processor(self) -> Any:
        """Load the processor, once, and return the model's configuration."""
        config = read_config(self._base())  # before its processor, whose absence says less
        if self.processor is None:
            processor = load_processor(self.path)
            check_processor(processor, config, self.path)
            self.processor = processor
        return config

    def _check_trained(self) -> None:
        """See that the adapter leaves the vision tower alone, whose features have no gradient.

        Raises:
            InputError: it does not.
        """
        visual = self.family.visual(self.base).named_parameters()
        wrong = [name for name, parameter in visual if parameter.requires_grad]
        if wrong:
            raise InputError(
                f"model.policy.init_args.lora adapts the vision tower ({wrong[0]} first), which is "
                "not trained under LoRA; leave target_modules at its default, which takes the "
                "language model alone, or merge an adapter of both into its base first"
            )

    def fill(self, device: torch.device) -> None:
        """See `Policy.fill`."""
        if not any(p.is_meta for p in self.parameters()):
            return
        self._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
        self.base.tie_weights()
        fill(self.base, local_folder(self._base_path))

    def adopt(self, model: Any, processor: Any) -> None:
        """Take a model that is in memory already, instead of loading one.

        Args:
            model: of transformers, whose language model runs `attention.SHARED_PREFIX`.
            processor: its processor.
        """
        self.processor = processor
        self.family = find_family(model.config.model_type, f"{PATH_KEY}: {self.path}")(
            model.config, processor
        )
        language, visual = self.family.language(model), self.family.visual(model)
        if self.family.fuses_norms:
            # not the vision tower's: autocast leaves its activations in another dtype than weights
            fuse_norms(language)
        if self.family.rotates_halves:
            fuse_rotation(language)
        self.family.prepare(model)
        if self._mlp_chunk_size:
            chunk_mlps(language.layers, self._mlp_chunk_size)
        projection = self.family.patch_projection(model)
        if projection is not None:
            multiply_patches(projection)
        if self.freeze_vision:
            visual.requires_grad_(False)
        if self._gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        end_ids = end_token_ids(model.generation_config, processor.tokenizer)
        self._network = TransformersNetwork(model, self.family, self._template, end_ids)
        self.model = model

    @property
    def base(self) -> Any:
        """The transformers model, adapter layers in place but without peft's wrapper."""
        return self.model.get_base_model() if is_adapted(self.model) else self.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(torch.device, self.base.lm_head.weight.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move or convert, but leave rotary frequencies in float32.

        Lightning's ``bf16-true`` converts every buffer. Frequencies of 8 bits would turn tokens a
        thousand positions from the start by angles that the weights do not know.
        """
        kept = {n: b for n, b in self.named_buffers() if n.endswith("inv_freq")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for path, frequencies in kept.items():
            owner, _, name = path.rpartition(".")
            converted = getattr(self.get_submodule(owner), name)
            setattr(self.get_submodule(owner), name, frequencies.to(converted.device))
        return self

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        """See `Policy.refuses`: the prompt and its completion must fit the model's context."""
        limit = self.base.config.text_config.max_position_embeddings
        num_characters = sum(map(len, (sample.question.text, *sample.question.options)))
        if num_characters > MOST_CHARACTERS_PER_TOKEN * limit:  # to count its tokens takes minutes
            return (
                f"{num_characters:,} characters are more than the model's {limit} tokens; shorten "
                "the question"
            )
        num_tokens, num_video_tokens = self.family.length(sample, self._template)
        if num_tokens + max_new_tokens <= limit:
            return None
        return (
            f"{num_tokens} prompt tokens ({num_video_tokens} of them video) and {max_new_tokens} "
            f"new ones exceed the model's {limit}; lower data.num_frames (SparseToDense.levels in "
            "prediction), data.resolution.max_pixels or model.max_new_tokens"
        )

    def frame_sizes(self) -> FrameSizes:
        """See `Policy.frame_sizes`."""
        config = self.base.config if self.loaded else read_config(self._base())
        return find_family(config.model_type, PATH_KEY).frame_sizes(config)

    def context_length(self) -> int | None:
        """See `Policy.context_length`."""
        config = self.base.config if self.loaded else read_config(self._base())
        return int(config.text_config.max_position_embeddings)

    def fewest_text_tokens(self, num_frames: int) -> int:
        """See `Policy.fewest_text_tokens`."""
        config = self.base.config if self.loaded else self._load_processor()
        family = find_family(config.model_type, PATH_KEY)
        side = family.frame_sizes(config).side
        frames = torch.zeros(1, device="cpu").expand(num_frames, 3, side, side)
        clip = Clip(frames, tuple(range(num_frames)), 1.0, num_frames)
        sample = Sample(Question("", "", ""), clip)
        num_tokens, num_video_tokens = family(config, self.processor).length(sample, self._template)
        return num_tokens - num_video_tokens

    def _base(self) -> str:
        """Name of the model, or of the one that the adapter adapts."""
        return adapter_base(self.path) or self.path

    def network(self) -> TransformersNetwork:
        """See `Policy.network`."""
        return self._network

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> TokenLogprobs:
        """See `Policy.logprobs`. Every prompt is forwarded once, packed with its completions."""
        own = cast(Sequence[VideoPrompt], prompts)
        packed = pack(own, completions, self.device)
        if self.freeze_vision:
            features = torch.cat([p.features for p in own]).to(self.device)
        else:
            # Also without gradient: weights have moved since the prompts were encoded, or these
            # are another policy's features and this one is the reference.
            patches = torch.cat([p.patches(self.device) for p in own])
            features = self.family.features(self.base, patches, [p.grid for p in own])
        hidden = self._network.hidden(packed, features)
        logprobs, entropy = token_logprobs(
            hidden[packed.predictors],
            packed.targets,
            self.base.lm_head,
            self._network.suppressed_ids.to(self.device),
            temperature,
            self._head_chunk_size,
        )
        lengths = [c.num_tokens for group in completions for c in group]
        return TokenLogprobs(
            pad_sequence(list(logprobs.split(lengths)), batch_first=True),
            pad_sequence(list(entropy.split(lengths)), batch_first=True),
        )

    def workload(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]
    ) -> Workload:
        """See `Policy.workload`."""
        lengths = [[c.num_tokens for c in group] for group in completions]
        return count_workload(self.family, self.base, cast(Sequence[VideoPrompt], prompts), lengths)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """See `Policy.adapter_disabled`."""
        if not is_adapted(self.model):
            raise InputError(
                "model.reference: AdapterOff needs an adapter; set model.policy.init_args.lora, "
                "or use FrozenCopy for full fine-tuning"
            )
        with self.model.disable_adapter():
            yield

    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
        """See `Policy.save_pretrained`."""
        if merge:
            check_mergeable_weights(self.quantize)
        save_model(self.model, self.processor, Path(folder), merge, isinstance(self, FSDPModule))

    def layers(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """See `Policy.layers`."""
        return self.family.vision_layers(self.base), list(self.family.language(self.base).layers)

    @property
    def sources(self) -> tuple[str, ...]:
        """See `Policy.sources`."""
        base = adapter_base(self.path)
        return (self.path,) if base is None else (self.path, base)

    @cached_property
    def base_content(self) -> str | None:
        """See `Policy.base_content`."""
        folder = known_folder(self.sources[-1])
        return None if folder is None else weights_digest(folder)

    @property
    def trained_with(self) -> dict[str, float]:
        """See `Policy.trained_with`: what an adapter's update is scaled by."""
        if not is_adapted(self.model):
            return {}
        return {"lora.alpha": self.model.peft_config["default"].lora_alpha}

    def fingerprint(self) -> dict[str, Any]:
        """See `Policy.fingerprint`."""
        base = adapter_base(self.path)
        return {
            "policy": type(self).__name__.removeprefix("FSDP"),  # its name where it is sharded
            "path": self.path,
            "base": base,
            "lora": self.lora is not None,
            "dtype": self._dtype,
            **({"quantize": self.quantize} if self.quantize else {}),
            "prompt": asdict(self._template),
            "weights": weights_stamp(self.path),
            "base_weights": weights_stamp(base) if base else {},
        }
