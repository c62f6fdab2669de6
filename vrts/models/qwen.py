"""Qwen2.5-VL and Qwen2-VL as a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from jsonargparse.typing import PositiveInt
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence

from vrts.models.decode_layout import DecodeLayout
from vrts.models.decoder import Decoder
from vrts.models.decoding import CompletionBuffer
from vrts.models.flops import Workload
from vrts.models.graphs import GraphSteps, Steps, can_capture, is_sharded
from vrts.models.head import token_logprobs
from vrts.models.norms import fuse_norms
from vrts.models.packing import pack
from vrts.models.pairs import pair_features, pair_keys
from vrts.models.policy import Policy, Prompts, Scores, StopEarly
from vrts.models.qwen_flops import qwen_workload
from vrts.models.qwen_inputs import PromptEncoder, end_token_ids, vision_token_ids
from vrts.models.qwen_language import QwenLanguage
from vrts.models.qwen_loading import (
    Dtype,
    Lora,
    adapter_base,
    add_lora,
    is_adapted,
    load_adapter,
    load_empty_model,
    load_model,
    load_processor,
    weights_stamp,
)
from vrts.models.qwen_prompts import QwenPrompts
from vrts.models.qwen_saving import save_model
from vrts.models.sampling import RowSampler, row_uniforms
from vrts.models.sampling_mode import cast_linears, without_cast_cache, without_checkpointing
from vrts.models.shard_loading import fill, local_folder, pretended_on_cpu
from vrts.models.stopping import HostChecks
from vrts.prompts import PromptTemplate
from vrts.types import InputError, Rollout, Sample, Sampling

MOST_CHARACTERS_PER_TOKEN = 32
"""Of a text on average: a longer one than a model's tokens could hold is not even tokenized."""


class QwenPolicy(Policy):
    """Qwen2.5-VL (or Qwen2-VL) from a folder or a hub id, full or with LoRA.

    Args:
        path: local folder in Hugging Face's format, or a hub id. It may hold a LoRA adapter,
            whose base model is loaded too; with `lora` given its training goes on.
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
        cast_for_rollout: where the Trainer's precision is mixed, cast float32 matrices of the
            language model once a rollout, 2 bytes a parameter, instead of for each token anew.
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
        cast_for_rollout: bool = True,
    ) -> None:
        super().__init__()
        self.path = path
        self.lora = lora
        self.freeze_vision = freeze_vision
        self._template = prompt or PromptTemplate()
        self._dtype: Dtype = dtype
        self._attn_implementation = attn_implementation
        self._gradient_checkpointing = gradient_checkpointing
        self._head_chunk_size = head_chunk_size
        self._cast_for_rollout = cast_for_rollout
        self.model: Any = None

    @property
    def loaded(self) -> bool:
        """See `Policy.loaded`."""
        return self.model is not None

    def load(self) -> None:
        """See `Policy.load`."""
        if not self.loaded:
            self._load(load_model)

    def load_empty(self) -> None:
        """See `Policy.load_empty`."""
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
        self.processor = load_processor(self.path)
        base = adapter_base(self.path) or self.path
        self._base_path = base
        self.adopt(read(base, self._dtype, self._attn_implementation), self.processor)
        is_empty = any(p.is_meta for p in self.parameters())
        with pretended_on_cpu(self.model) if is_empty else nullcontext():
            if base != self.path:
                self.model = load_adapter(self.model, self.path, self.lora)
            elif self.lora:
                self.model = add_lora(self.model, self.lora)

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
            model: Qwen2.5-VL or Qwen2-VL whose language model runs `attention.SHARED_PREFIX`.
            processor: its processor.
        """
        self.processor = processor
        # not the vision tower's, whose activations autocast leaves in another dtype than weights
        fuse_norms(model.model.language_model)
        if self.freeze_vision:
            model.model.visual.requires_grad_(False)
        if self._gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self._encoder = PromptEncoder(self.processor, model.config, self._template)
        self._language = QwenLanguage(model, self._encoder.vision_ids)
        self._banned_ids = vision_token_ids(model.config)
        self._end_ids = end_token_ids(model.generation_config, self.processor.tokenizer)
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
                f"question {sample.question.id}: {num_characters:,} characters are more than the "
                f"model's {limit} tokens; shorten it"
            )
        num_tokens, num_video_tokens = self._encoder.length(sample)
        if num_tokens + max_new_tokens <= limit:
            return None
        return (
            f"question {sample.question.id}: {num_tokens} prompt tokens ({num_video_tokens} of "
            f"them video) and {max_new_tokens} new ones exceed the model's {limit}; lower "
            "data.num_frames (SparseToDense.levels in prediction), data.resolution.max_pixels or "
            "model.max_new_tokens"
        )

    def encode(
        self, samples: Sequence[Sample], max_new_tokens: int, known: Prompts | None = None
    ) -> QwenPrompts:
        """See `Policy.encode`."""
        for sample in samples:
            if (reason := self.refuses(sample, max_new_tokens)) is not None:
                raise InputError(reason)
        encoded = tuple(self._encoder(sample) for sample in samples)
        patches = torch.cat([p.patches for p in encoded]).to(self.device)
        grids = torch.tensor([p.grid for p in encoded], device=self.device)
        pairs = tuple(pair_keys(sample) for sample in samples)
        with torch.no_grad():
            if known is None:
                features = self._video_features(patches, grids)
            else:
                assert isinstance(known, QwenPrompts)
                found = known.by_pair()
                if is_sharded(self.base):
                    # the others need this process in the vision tower, to gather its weights
                    found.pop(pairs[0][0], None)
                features = pair_features(encoded, pairs, found, self._video_features, self.device)
        questions = tuple(s.question for s in samples)
        return QwenPrompts(questions, encoded, patches, grids, features, pairs)

    def _video_features(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Features ``[video tokens, D]`` of B videos."""
        visual = self.base.model.visual
        out = visual(patches.to(visual.patch_embed.proj.weight.dtype), grid_thw=grids)
        return cast(torch.Tensor, out.pooler_output)

    @torch.no_grad()
    def rollout(
        self,
        prompts: Prompts,
        sampling: Sequence[Sampling],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_early: StopEarly | None = None,
    ) -> Rollout:
        """See `Policy.rollout`."""
        assert isinstance(prompts, QwenPrompts)
        B, G, device = len(prompts.encoded), len(sampling), self.device
        buffer = CompletionBuffer(B, G, max_new_tokens, self._end_ids.to(device))
        checks = HostChecks(buffer, sampling, self.processor.tokenizer, stop_early)
        uniforms = row_uniforms(seeds, max_new_tokens).to(device)
        positions = torch.tensor([p.next_position for p in prompts.encoded], device=device)
        banned = self._banned_ids.to(device)
        with self._sampling_mode():
            prefill, logits = self._language.prefill(prompts, banned, device)
            logits = logits.repeat_interleave(G, dim=0)
            Decoder(
                partial(self._language.decode, banned),
                DecodeLayout(prefill, G, max_new_tokens),
                buffer,
                RowSampler([*sampling] * B, logits.shape[1], device),
                uniforms,
                positions.repeat_interleave(G),
                GraphSteps() if can_capture(self.base) else Steps(),
            ).run(logits, checks)
        completion_ids, mask, logprobs = buffer.trimmed()
        return Rollout(
            completion_ids=completion_ids,
            completion_mask=mask,
            logprobs=logprobs,
            finished=buffer.finished,
            texts=self._texts(completion_ids, mask),
            abandoned=buffer.abandoned if stop_early is not None else None,
        )

    @contextmanager
    def _sampling_mode(self) -> Iterator[None]:
        """Context in which completions are decoded."""
        with ExitStack() as stack:
            stack.enter_context(without_checkpointing(self.base))
            if self._cast_for_rollout and not is_sharded(self.base):
                for part in (self.base.model.language_model, self.base.lm_head):
                    stack.enter_context(cast_linears(part, self.device.type))
            stack.enter_context(without_cast_cache(self.device.type))
            yield

    def _texts(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[str, ...]:
        """Decode completions without special tokens."""
        decode = self.processor.tokenizer.decode
        rows = zip(ids.cpu(), mask.cpu(), strict=True)
        return tuple(decode(row[keep], skip_special_tokens=True) for row, keep in rows)

    def score(self, prompts: Prompts, rollout: Rollout, temperature: float) -> Scores:
        """See `Policy.score`. Every prompt is forwarded once, packed with its completions."""
        assert isinstance(prompts, QwenPrompts)
        packed = pack(prompts.encoded, rollout, self.device)
        features = prompts.features
        if not self.freeze_vision:
            # Also without gradient: weights have moved since the prompts were encoded, or these
            # are another policy's features and this one is the reference.
            features = self._video_features(prompts.patches, prompts.grids)
        hidden = self._language.hidden(packed.input_ids, packed.positions, features, packed.layout)
        logprobs, entropy = token_logprobs(
            hidden[packed.predictors],
            rollout.completion_ids[rollout.completion_mask],
            self.base.lm_head,
            self._banned_ids.to(self.device),
            temperature,
            self._head_chunk_size,
        )
        lengths = rollout.lengths.tolist()
        return Scores(
            pad_sequence(list(logprobs.split(lengths)), batch_first=True),
            pad_sequence(list(entropy.split(lengths)), batch_first=True),
        )

    def workload(self, prompts: Prompts, rollout: Rollout) -> Workload:
        """See `Policy.workload`."""
        assert isinstance(prompts, QwenPrompts)
        lengths = rollout.lengths.view(len(prompts.encoded), -1).tolist()
        return qwen_workload(self.base, prompts.encoded, lengths)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """See `Policy.adapter_disabled`."""
        if not is_adapted(self.model):
            raise InputError(
                "model.reference: AdapterOff needs an adapter; set model.policy.init_args.lora, "
                "or use FrozenCopy for full fine-tuning"
            )
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with self.model.disable_adapter():
            for parameter in trained:  # FSDP1 forgets gradients of what peft freezes meanwhile
                parameter.requires_grad_(True)
            yield

    def save_pretrained(self, folder: Path, merge: bool = False) -> None:
        """See `Policy.save_pretrained`."""
        save_model(self.model, self.processor, folder, merge, isinstance(self, FSDPModule))

    def layers(self) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """See `Policy.layers`."""
        return list(self.base.model.visual.blocks), list(self.base.model.language_model.layers)

    @property
    def sources(self) -> tuple[str, ...]:
        """See `Policy.sources`."""
        base = adapter_base(self.path)
        return (self.path,) if base is None else (self.path, base)

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
            "prompt": asdict(self._template),
            "weights": weights_stamp(self.path),
            "base_weights": weights_stamp(base) if base else {},
        }
