"""vLLM decodes what vrts encodes, scores and trains."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning_utilities.core.rank_zero import rank_zero_info
from safetensors.torch import save_file
from torch import nn

from vrts.models.engines.completion_groups import CompletionGroup, Row, StopSearch
from vrts.models.engines.engine import Engine, Request, Result
from vrts.models.families.prompt import VideoPrompt
from vrts.models.families.qwen2_5_vl import Qwen2_5VL
from vrts.models.policy import Policy, Prompt
from vrts.models.vllm.process import INSTEAD, check, start, vllm_version
from vrts.models.vllm.prompts import engine_input
from vrts.models.vlm.loading import is_adapted
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError, Sample, SamplingParams

EXACT_TEMPERATURES = (0.0, 1.0)
"""At these, vLLM's raw log-probs are the policy's, whatever penalties and truncation there are."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # bounds that vLLM takes
MOST_DIFF, MOST_ROUNDED_DIFF = 1e-4, 0.05
"""Nats between vLLM's and the policy's log-probs, in float32 and in coarser dtypes."""
NUM_COMPARED = 12  # most likely tokens of which they are compared
SHARED_MEMORY = Path("/dev/shm")


class VLLMEngine(Engine):
    """Samples with vLLM, in a process of its own beside each rank.

    vrts encodes videos and vLLM gets their features, so it holds the language model alone. After
    an optimizer step it reads the weights (of an adapter, where there is one) from a folder in the
    host's memory. Its log-probs are compared with the policy's before the first completion.

    Args:
        tensor_parallel_size: devices that vLLM spreads the model over, from the run's own on; above
            1 in runs of one process only.
        gpu_memory_utilization: share of a device's memory that vLLM takes, beside the policy.
        max_model_len: tokens of a prompt and its completion together at most; null for the model's
            limit. The KV cache must have room for so many.
        max_num_seqs: completions that are decoded together.
        enforce_eager: record no CUDA graphs and compile nothing: starts faster, decodes slower.
        sleep: leave vLLM's memory to the update of the policy; on CUDA.
        engine_args: further options, by their names in vLLM's ``EngineArgs``.
    """

    def __init__(
        self,
        tensor_parallel_size: PositiveInt = 1,
        gpu_memory_utilization: ClosedUnitInterval = 0.5,
        max_model_len: PositiveInt | None = None,
        max_num_seqs: PositiveInt = 64,
        enforce_eager: bool = False,
        sleep: bool = False,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        self.max_num_seqs = int(max_num_seqs)
        self.sleep = sleep
        self._options: dict[str, Any] = {
            "tensor_parallel_size": int(tensor_parallel_size),
            "gpu_memory_utilization": float(gpu_memory_utilization),
            "max_model_len": max_model_len and int(max_model_len),
            "max_num_seqs": self.max_num_seqs,
            "enforce_eager": enforce_eager,
            "enable_sleep_mode": sleep,
            "enable_mm_embeds": True,
            "mm_processor_cache_gb": 0,
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",
            "disable_log_stats": True,
            "seed": 0,
            **(engine_args or {}),
        }
        self._llm: Any = None  # vLLM's LLMEngine
        self._is_asleep = self._is_compared = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # of the weights
        self._versions = 0  # of the parameters that vLLM has
        self._adapter: Any = None  # vLLM's LoRARequest
        self._num_syncs = 0
        self._names = count()
        self._rows: dict[str, Row] = {}  # that have not ended, by vLLM's names for them
        self._groups: list[CompletionGroup] = []  # requests that have not come out
        self._done: list[Result] = []

    # ---- weights

    def check(self, policy: Policy, device: torch.device, temperature: float | None) -> None:
        """See `Engine.check`."""
        if temperature not in (None, *EXACT_TEMPERATURES):
            raise InputError(
                f"model.temperature is {temperature}, and vLLM gives log-probs at 1 alone; set it "
                f"to 1.0, or {INSTEAD}"
            )
        if self.sleep and device.type != "cuda":
            raise InputError("model.engine: vLLM sleeps on CUDA alone; set sleep to false")
        check(policy, device)

    def attach(
        self, policy: Policy, device: torch.device, dtype: torch.dtype | None, will_shard: bool
    ) -> None:
        """See `Engine.attach`. Starting vLLM takes a minute or more."""
        if self._llm is not None:
            return
        assert isinstance(policy, TransformersPolicy)
        if will_shard:
            raise InputError(
                "model.engine: vLLM takes complete weights, and trainer.strategy shards them; "
                f"train an adapter on each device (--config lora --config ddp), or {INSTEAD}"
            )
        num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        if num_ranks > 1 and self._options["tensor_parallel_size"] > 1:
            raise InputError(
                "model.engine: each rank has a vLLM of its own, on its own device; set "
                "tensor_parallel_size to 1, or trainer.devices to 1"
            )
        self._policy, self._device, self._autocast = policy, device, dtype
        self._network = policy.network()
        self._suppressed: list[int] = self._network.suppressed_ids.tolist()
        self._stops = StopSearch(self._network.tokenizer)
        default = torch.get_default_dtype()  # of a policy that Lightning converts after this
        self._dtype: torch.dtype = dtype or (
            self._network.dtype if default == torch.float32 else default
        )
        # no images but as features, so it builds no vision tower: with one, Qwen3-VL alone takes
        # features for deeper layers
        has_deeper = bool(getattr(policy.base.config.vision_config, "deepstack_visual_indexes", ()))
        options = {
            "model": policy.sources[-1],
            "dtype": self._dtype,
            "limit_mm_per_prompt": {"image": int(has_deeper), "video": 0},
            **self._options,
        }
        if isinstance(policy.family, Qwen2_5VL):  # of which a video is one item
            longest = options["max_model_len"] or policy.context_length()
            options = {"max_num_batched_tokens": longest, **options}
        if is_adapted(policy.model):
            rank = max(config.r for config in policy.model.peft_config.values())
            bound = min((size for size in LORA_RANKS if size >= rank), default=rank)
            options |= {"enable_lora": True, "max_lora_rank": bound}
        self._llm = start(device, options)
        self._max_model_len: int = self._llm.model_config.max_model_len
        self._versions = _versions(policy)
        rank_zero_info(f"vLLM {vllm_version()} samples")

    def sync(self, policy: Policy) -> None:
        """See `Engine.sync`."""
        assert isinstance(policy, TransformersPolicy)
        versions, self._versions = self._versions, _versions(policy)
        self._num_syncs += 1
        with self._calling():
            self._wake()
            if is_adapted(policy.model):
                self._sync_adapter(policy)
            elif self._num_syncs > 1 or versions != self._versions:
                path = self._write(policy)
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
            # else keys, values and features that older weights made are taken again
            assert self._llm.reset_prefix_cache(), "completions are pending"
            self._llm.reset_encoder_cache()
            self._llm.reset_mm_cache()

    def _sync_adapter(self, policy: TransformersPolicy) -> None:
        """Hand over an adapter, under a new id: vLLM keeps what it knows of an old one."""
        from vllm.lora.request import LoRARequest

        before, number = self._adapter, self._num_syncs
        named = policy.named_parameters()
        path = self._make_folder(sum(p.nbytes for name, p in named if "lora_" in name))
        policy.save_pretrained(path)
        self._adapter = LoRARequest(f"sync {number}", number, path)
        if before is not None:
            self._llm.remove_lora(before.lora_int_id)
        self._llm.add_lora(self._adapter)

    def _write(self, policy: TransformersPolicy) -> str:
        """Write all weights, in the dtype that vLLM computes in; returns the folder."""
        if self._device.type == "cpu" and policy.base.config.tie_word_embeddings:
            raise InputError(
                "model.engine: the CPU build of vLLM keeps the old head where that is the "
                f"embeddings of tokens; train an adapter (--config lora), or {INSTEAD}"
            )
        weights = {
            name: parameter.detach().to("cpu", self._dtype).contiguous()
            for name, parameter in policy.base.named_parameters()  # tied ones once
        }
        path = self._make_folder(sum(tensor.nbytes for tensor in weights.values()))
        save_file(weights, Path(path) / "model.safetensors", metadata={"format": "pt"})
        return path

    def _make_folder(self, num_bytes: int) -> str:
        """A folder for weights, in place of the one before; in memory where there is room."""
        if self._folder is not None:
            self._folder.cleanup()
        fits = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > num_bytes
        self._folder = tempfile.TemporaryDirectory(dir=SHARED_MEMORY if fits else None)
        return self._folder.name

    def _wake(self) -> None:
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Context of calls to vLLM; raises `InputError` where its process has ended."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            raise InputError(
                "model.engine: vLLM's process has ended, perhaps for want of memory (its own "
                "messages are above); what was decided or saved stays, and a run can resume from it"
            ) from error

    # ---- requests

    def encode(self, samples: Sequence[Sample], known: Prompt | None = None) -> list[Prompt]:
        """See `Engine.encode`. The policy's own vision tower does it."""
        with self._computing():
            prompts = self._network.encode(samples, known)
        fitting = [p for p in prompts if p.num_tokens < self._max_model_len]
        if fitting and not self._is_compared:
            self._compare(cast(VideoPrompt, fitting[0]))
            self._is_compared = True
        return prompts

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Context of the policy's passes."""
        is_mixed, trains = self._autocast is not None, self._policy.training
        self._policy.train(False)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self._device.type, self._autocast, enabled=is_mixed),
        ):
            yield
        self._policy.train(trains)

    def _compare(self, prompt: VideoPrompt) -> None:
        """Raise `InputError` where vLLM and the policy expect other tokens behind a prompt."""
        with self._computing():
            _, logits = self._network.prefill([prompt])
        wanted, top = logits[0].float().log_softmax(-1).cpu().topk(NUM_COMPARED)
        ids = top.tolist()
        params = self._params(SamplingParams(0.0), 0, 1, ids)
        outputs: list[Any] = []
        with self._calling():
            self._llm.add_request(
                "compared", self._input(prompt), params, lora_request=self._adapter
            )
            while not outputs:
                outputs = self._llm.step()
        listed = outputs[0].outputs[0].logprobs[0]
        found = torch.tensor([self._logprob(listed, token) for token in ids], device="cpu")
        diff = float((found - wanted).abs() @ wanted.softmax(-1))
        limit = MOST_DIFF if self._dtype == torch.float32 else MOST_ROUNDED_DIFF
        if not diff <= limit:
            raise InputError(
                f"model.engine: after the prompt of question {prompt.question.id} the log-probs of "
                f"vLLM {vllm_version()} differ from the policy's by {diff:.2g} nats, and rounding "
                f"explains {limit:g}; take another version of vLLM, or {INSTEAD}"
            )

    def has_room(self) -> bool:
        """See `Engine.has_room`."""
        return len(self._rows) < self.max_num_seqs

    @property
    def num_pending(self) -> int:
        """See `Engine.num_pending`."""
        return len(self._groups) + len(self._done)

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        prompt, limit = request.prompt, self._max_model_len
        id, num_tokens, num_new = prompt.question.id, prompt.num_tokens, request.max_new_tokens
        if num_tokens + num_new > limit:
            raise InputError(
                f"question {id}: its {num_tokens} prompt tokens and {num_new} new ones are more "
                f"than vLLM's {limit}; raise model.engine.init_args.max_model_len, or give fewer "
                "or smaller frames"
            )
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        rendered, group = self._input(prompt), CompletionGroup(request)
        rows = {str(next(self._names)): row for row in group.rows}
        try:
            self._wake()
            for name, row in rows.items():
                params = self._params(row.sampling, request.seeds[row.index], num_new)
                self._llm.add_request(name, rendered, params, lora_request=self._adapter)
        except EngineDeadError:
            pass  # `step` tells it: this question has not failed
        except VLLMClientError as error:
            self._llm.abort_request(list(rows))
            raise InputError(f"question {id}: vLLM refuses its prompt: {error}") from error
        self._groups.append(group)
        self._rows |= rows

    def cancel(self) -> None:
        """See `Engine.cancel`."""
        if self._rows:
            self._llm.abort_request(list(self._rows))
        self._rows, self._groups, self._done = {}, [], []

    def release(self) -> None:
        """See `Engine.release`."""
        if self.sleep and not self._groups and not self._is_asleep:
            with self._calling():
                self._llm.sleep(level=1)
            self._is_asleep = True

    def fingerprint(self) -> dict[str, Any]:
        """See `Engine.fingerprint`."""
        return {"engine": type(self).__name__, "vllm": vllm_version()}

    # ---- decoding

    def step(self) -> list[Result]:
        """See `Engine.step`. What vLLM has decoded since the last one."""
        ended: list[Row] = []
        if self._rows:
            with self._calling():
                outputs = self._llm.step()
            for output in outputs:
                row = self._rows.get(output.request_id)  # None of one that was aborted
                if row is not None and self._take(row, output):
                    ended.append(row)
                    del self._rows[output.request_id]
        for group in dict.fromkeys(row.group for row in ended):
            self._settle(group)
        done, self._done = self._done, []
        return done

    def _take(self, row: Row, output: Any) -> bool:
        """Take the newest tokens of a completion; whether they are its last ones."""
        (new,) = output.outputs
        row.ids += new.token_ids
        row.logprobs += [
            self._logprob(listed, token)
            for listed, token in zip(new.logprobs or (), new.token_ids, strict=False)
        ]
        is_stopped = self._stops.cut(row)
        if is_stopped and not output.finished:
            self._llm.abort_request([output.request_id])
        if is_stopped or output.finished:
            finished = is_stopped or new.finish_reason == "stop"
            row.finish(self._network.tokenizer, finished)
        return row.completion is not None

    def _settle(self, group: CompletionGroup) -> None:
        """Cancel what a request no longer needs; where nothing is left of it, it is done."""
        cancelled = group.settle(self._network.tokenizer)
        if cancelled is None:
            return
        names = [name for name, row in self._rows.items() if row in cancelled]
        for name in names:
            del self._rows[name]
        self._llm.abort_request(names)
        self._groups.remove(group)
        self._done.append(group.result())

    def _input(self, prompt: Prompt) -> Any:
        assert isinstance(prompt, VideoPrompt)
        return engine_input(prompt, self._policy.family, self._dtype)

    def _logprob(self, listed: Mapping[int, Any], token: int) -> float:
        """Log-prob of a token among those that may be sampled, from what vLLM lists."""
        suppressed = math.fsum(math.exp(listed[other].logprob) for other in self._suppressed)
        return float(listed[token].logprob) - math.log1p(-suppressed)

    def _params(
        self, sampling: SamplingParams, seed: int, max_tokens: int, ids: Sequence[int] = ()
    ) -> Any:
        """How a completion is drawn; ``ids`` are tokens whose log-probs are wanted besides."""
        from vllm import SamplingParams as Params
        from vllm.sampling_params import RequestOutputKind

        is_exact = sampling.temperature in EXACT_TEMPERATURES
        shared = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")
        return Params(
            **{name: getattr(sampling, name) for name in shared},
            seed=seed if sampling.temperature else None,
            max_tokens=max_tokens,
            stop_token_ids=self._network.end_ids.tolist(),
            ignore_eos=True,  # but those
            logit_bias=dict.fromkeys(self._suppressed, -100.0),
            logprob_token_ids=[*ids, *self._suppressed] if is_exact else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


def _versions(module: nn.Module) -> int:
    """A number that is another one once a parameter was written to in place."""
    return sum(parameter._version for parameter in module.parameters())
