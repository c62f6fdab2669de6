"""A CUDA device for machines without one: it computes on the host, by CUDA's rules.

`pretended_cuda` makes torch report one CUDA device. What is moved there or made there is a
`DeviceTensor`: its memory is the host's, its dispatch keys and its `device` are CUDA's. Raised, as
on a real device: operands on two devices, a generator of another device, flash attention of shapes
that the kernels refuse, and, while a graph is recorded, whatever waits for the host, copies from
it or picks by mask. Autocast follows the lists in torch's own header. A recorded graph does not
run until it is replayed, and replays operators on the recorded memory.

It has no NCCL, no streams, no timing and no rounding of CUDA's own kernels, and rests on private
parts of torch (written for 2.14).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
HALF = (torch.bfloat16, torch.float16)
_aten = torch.ops.aten
_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_WAITS = {
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim", "_unique", "_unique2",
}  # fmt: skip


class Device:
    """What happened on the pretended device; `pretended_cuda` makes it.

    Subclasses may keep less of a tensor than its values, and watch what is made.
    """

    def __init__(self) -> None:
        self.graphs: list[Recorded] = []
        self.violations: list[str] = []
        """What was raised, also where the program has caught it."""
        self.flash: Counter[str] = Counter()
        """Calls of flash kernels: forward, backward."""
        self.operators: Counter[str] = Counter()
        """Operators that ran, replayed ones too."""
        self.recording: Recorder | None = None
        self.in_operator = False
        """Whether C++ code runs for tensors of the device: what it makes lies there too."""

    def refuse(self, message: str) -> None:
        """Raise what CUDA would."""
        self.violations.append(message)
        raise RuntimeError(message)

    def wait(self, what: str) -> None:
        """Let the host wait for the device, which a graph cannot hold."""
        if self.recording is not None:
            self.refuse(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def keep(self, memory: torch.Tensor) -> torch.Tensor:
        """What the device has of a tensor that the host has made."""
        return memory

    def read(self, memory: torch.Tensor) -> torch.Tensor:
        """What the host is given of the device's memory."""
        return memory.detach().clone()

    def made(self, tensor: DeviceTensor) -> None:
        """A tensor has come to be, or a view of one."""

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on the device's memory."""
        kernel = _KERNELS.get(str(func).removeprefix("aten.").removesuffix(".default"), func)
        return kernel(*args, **kwargs)

    @contextmanager
    def operator(self, inside: bool) -> Iterator[None]:
        """Context of one call into torch."""
        before, self.in_operator = self.in_operator, inside
        try:
            yield
        finally:
            self.in_operator = before


_device = Device()


class DeviceTensor(torch.Tensor):
    """A tensor that lies on the device; `memory` is the same tensor as the host sees it."""

    memory: torch.Tensor

    @staticmethod
    def __new__(cls, memory: torch.Tensor) -> DeviceTensor:
        assert type(memory) is torch.Tensor, type(memory)
        made = torch.Tensor._make_subclass(
            cls, memory, False, dispatch_device=False, device_for_backend_keys=CUDA
        )
        made.memory = memory
        _device.made(made)
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self, **options: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return to_host(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copy: torch.Tensor = DeviceTensor(self.memory.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return _run(func, args, kwargs or {})


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory; waits for the device."""
    _device.wait("copy to the host")
    return _device.read(tensor.memory) if isinstance(tensor, DeviceTensor) else tensor


def to_device(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy in the device's memory."""
    if isinstance(tensor, DeviceTensor):
        return torch.Tensor.to(tensor, dtype or tensor.dtype)
    _device.wait("copy from the host")
    host = tensor.detach()
    copy = host.to(dtype) if dtype not in (None, host.dtype) else host.clone()
    return DeviceTensor(_device.keep(copy))


def tensors_in(value: Any, found: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """Tensors among arguments; torch's own pytrees take most of a test's time."""
    found = [] if found is None else found
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif type(value) in (tuple, list):
        for x in value:
            tensors_in(x, found)
    elif type(value) is dict:
        for x in value.values():
            tensors_in(x, found)
    return found


def mapped(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Arguments or results with other tensors."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(mapped(change, x) for x in value)
    if type(value) is dict:
        return {key: mapped(change, x) for key, x in value.items()}
    return value


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """The host's view of a tensor."""
    return tensor.memory if isinstance(tensor, DeviceTensor) else tensor


def _is_device(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


# ---- operators


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operator on the host's view of its operands, once it is found to be permitted."""
    name = func._schema.name.removeprefix("aten::")
    _device.operators[name] += 1
    operands = tensors_in((args, kwargs))
    if name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _device.wait(name)
    if name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
        _device.wait("copy_ between host and device")
        _memory(args[0]).copy_(_memory(args[1]))
        return args[0]
    indices = (
        args[1] if "index" in name and len(args) > 1 and type(args[1]) in (list, tuple) else ()
    )
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            _device.wait(f"{name} by a mask")
        if index is not None and not isinstance(index, DeviceTensor):
            _device.wait(f"{name} by an index of the host")
    strangers = [
        x for x in operands
        if not isinstance(x, DeviceTensor) and x.dim() and not any(x is i for i in indices)
    ]  # fmt: skip
    if strangers:
        _device.refuse(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
            f"and cpu! ({name}, {tuple(strangers[0].shape)})"
        )
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Generator) and value.device.type != "cuda":
            _device.refuse("Expected a 'cuda' device type for generator but found 'cpu'")
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}  # C++ takes the tensors for the host's
    out = _device.compute(func, mapped(_memory, args), mapped(_memory, kwargs))
    # what an operator writes in place is the same object
    same = {id(x.memory): x for x in operands if isinstance(x, DeviceTensor)}

    def known(x: torch.Tensor) -> torch.Tensor:
        return same[id(x)] if id(x) in same else DeviceTensor(x)

    return mapped(known, out)


def _check_flash(kind: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Refuse what the CUDA kernels refuse, or read wrongly."""
    _device.flash[kind] += 1
    for name, x in (("query", query), ("key", key), ("value", value)):
        size = x.element_size()
        aligned = all(
            n == 1 or s * size % 16 == 0 for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
        problem = (
            f"dtype {x.dtype}" if x.dtype not in HALF or x.dtype != query.dtype
            else f"head dim {x.shape[-1]}" if x.shape[-1] % 8 or x.shape[-1] > 256
            else f"last stride {x.stride(-1)}" if x.stride(-1) != 1
            else f"strides {x.stride()}" if not aligned or x.storage_offset() * size % 16
            else "no tokens" if not x.shape[2]
            else f"{x.shape[1]} heads" if query.shape[1] % x.shape[1]
            else None
        )  # fmt: skip
        if problem:
            _device.refuse(f"flash attention ({kind}): {name} has {problem}")


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    debug: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """`_scaled_dot_product_flash_attention`; causal masks are aligned at the last token."""
    _check_flash("forward", query, key, value)
    scores, _ = _scores(query, key, causal, scale)
    values = value.float().repeat_interleave(query.shape[1] // value.shape[1], 1)
    out = (scores.softmax(-1).to(query.dtype).float() @ values).to(query.dtype)
    out = out.transpose(1, 2).contiguous().transpose(1, 2)
    state = torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    return (
        out, scores.logsumexp(-1), None, None, query.shape[2], key.shape[2], *state,
        query.new_empty(0),
    )  # fmt: skip


def _flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cum_q: None,
    cum_k: None,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    *state: torch.Tensor,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """Its gradients, by the log-sum-exp that is given, as the kernel has them."""
    _check_flash("backward", query, key, value)
    if not lse.is_contiguous() or lse.dtype != torch.float32 or grad.dtype != query.dtype:
        _device.refuse("flash attention (backward): log-sum-exp or gradient is not as the kernel's")
    scores, scale = _scores(query, key, causal, scale)
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.float().repeat_interleave(groups, 1) for x in (key, value))
    probs = (scores - lse[..., None]).exp()
    delta = (grad.float() * out.float()).sum(-1, keepdim=True)
    grad_scores = probs * (grad.float() @ values.mT - delta) * scale
    of_keys = (
        x.unflatten(1, (-1, groups)).sum(2)
        for x in (grad_scores.mT @ query.float(), probs.mT @ grad.float())
    )
    return tuple(x.to(query.dtype) for x in (grad_scores @ keys, *of_keys))


def _scores(
    query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float | None
) -> tuple[torch.Tensor, float]:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = scale * query.float() @ keys.mT
    if causal:
        n, m = scores.shape[-2:]
        scores.masked_fill_(~torch.ones(n, m, dtype=torch.bool).tril(m - n), float("-inf"))
    return scores, scale


def _rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    shape: Any,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, ...]:
    """`_fused_rms_norm_backward`, for which the host has no kernel."""
    normed = x.float() * rstd
    scaled = grad.float() * (1.0 if weight is None else weight.float())
    to_x = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    to_weight = (grad.float() * normed).flatten(0, -2).sum(0)
    return (
        to_x.to(x.dtype) if wanted[0] else None,
        to_weight.to(weight.dtype) if wanted[1] and weight is not None else None,
    )


_KERNELS: dict[str, Callable[..., Any]] = {
    "bmm.dtype": lambda a, b, dtype: a.to(dtype) @ b.to(dtype),
    "mm.dtype": lambda a, b, dtype: a.to(dtype) @ b.to(dtype),
    "_fused_rms_norm_backward": _rms_norm_backward,
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
}


class Factories(TorchDispatchMode):
    """What C++ makes on the device, or beside tensors of the device with their options."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = _is_device(kwargs.get("device"))
        if asked:
            kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": None}
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        if type(out) is not torch.Tensor or not (asked or _device.in_operator):
            return out
        return out if tensors_in((args, kwargs)) else DeviceTensor(_device.keep(out))


# ---- functions


def _autocast_list(macro: str) -> frozenset[str]:
    """Names of operators in one of the lists of torch's header."""
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    body = re.search(rf"#define {macro}\(_\)(.*?[^\\])\n", header.read_text(), re.DOTALL)
    assert body is not None, f"{header} has no {macro}"
    return frozenset(re.findall(r"_\((\w+)", body[1]))


LOWER = _autocast_list("AT_FORALL_LOWER_PRECISION_FP")
FLOAT32 = _autocast_list("AT_FORALL_FP32")
FLOAT32_BY_OPTION = _autocast_list("AT_FORALL_FP32_SET_OPT_DTYPE")
_OPERATORS = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow"}


def _autocast(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments, cast as autocast does on CUDA."""
    name = getattr(func, "__name__", "")
    name = _OPERATORS.get(name, name)

    def cast(to: torch.dtype, *of: torch.dtype) -> tuple[Any, Any]:
        def one(x: torch.Tensor) -> torch.Tensor:
            eligible = isinstance(x, DeviceTensor) and x.dtype in of and x.dtype != to
            return torch.Tensor.to(x, to) if eligible else x

        return mapped(one, args), mapped(one, kwargs)

    if name in LOWER:
        return cast(torch.get_autocast_dtype("cuda"), torch.float32, *HALF)
    if name in FLOAT32:
        return cast(torch.float32, *HALF)
    given = any(isinstance(x, torch.dtype) for x in (*args, *kwargs.values()))
    if name in FLOAT32_BY_OPTION and args[0].dtype in HALF and not given:
        kwargs = {**kwargs, "dtype": torch.float32}
    return args, kwargs


class Functions(TorchFunctionMode):
    """What Python calls of torch, before C++ takes the tensors for the host's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        on_device = any(isinstance(x, DeviceTensor) for x in tensors_in((args, kwargs)))
        if func in (torch.Tensor.backward, torch.autograd.backward):
            with self, _device.operator(on_device):  # custom functions and recomputed layers
                return _backward(*args, **kwargs)
        if on_device and torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(func, args, kwargs)
        if isinstance(first, DeviceTensor) and func in _HOST_READS:
            return func(to_host(first), *args[1:], **kwargs)
        if func is torch.Tensor.numpy and on_device:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if func is torch.Tensor.data_ptr and on_device:
            return first.memory.data_ptr()
        if func is torch.nn.functional.scaled_dot_product_attention and on_device:
            return _sdpa(*args, **kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return _move(func, *args, **kwargs)
        if func is torch.Tensor.new_tensor and on_device:
            _device.wait("new_tensor")
            return DeviceTensor(first.memory.new_tensor(*args[1:], **kwargs))
        if _is_device(kwargs.get("device")):
            return _make(func, args, kwargs)
        if kwargs.get("device") is not None and on_device:  # like one of ours, on the host
            out = func(*args, **{**kwargs, "device": None})
            return mapped(to_host, out)
        with _device.operator(on_device):
            return func(*args, **kwargs)


_HOST_READS = (torch.Tensor.tolist,)


def _backward(
    loss: torch.Tensor,
    gradient: torch.Tensor | None = None,
    retain_graph: bool = False,
    **options: Any,
) -> None:
    """`backward` of one tensor: torch's own would leave the mode before its engine runs."""
    gradient = torch.ones_like(loss) if gradient is None else gradient
    keep, create = bool(retain_graph), False
    torch.autograd.graph._engine_run_backward(
        (loss,), (gradient,), keep, create, (), allow_unreachable=True, accumulate_grad=True
    )


def _make(func: Any, args: Any, kwargs: Any) -> Any:
    """A factory that was asked for a tensor on the device."""
    kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != "cuda":
        _device.refuse("Expected a 'cuda' device type for generator but found 'cpu'")
    if func in (torch.tensor, torch.as_tensor, torch.asarray):
        if isinstance(args[0], torch.Tensor):
            return to_device(args[0], kwargs.get("dtype"))
        _device.wait(func.__name__)
    if any(isinstance(x, DeviceTensor) for x in tensors_in(args)):  # like one of ours
        with _device.operator(True):
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"})
    requires_grad = kwargs.pop("requires_grad", False)
    out = func(*args, **kwargs)

    def made(x: torch.Tensor) -> torch.Tensor:
        own = x if isinstance(x, DeviceTensor) else DeviceTensor(_device.keep(x))
        return own.requires_grad_(requires_grad)

    return mapped(made, out)


def _move(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`to`, `cpu` and `cuda`."""
    values = [*args, *kwargs.values()]
    dtype = next((x for x in values if isinstance(x, torch.dtype)), None)
    device: Any = next((x for x in values if isinstance(x, torch.device | str)), None)
    device = device if device is not None else next((x for x in values if type(x) is int), None)
    like = next((x for x in values if isinstance(x, torch.Tensor)), None)
    if like is not None:
        device, dtype = like.device, like.dtype
    if func is not torch.Tensor.to:
        device = "cpu" if func is torch.Tensor.cpu else CUDA
    if _is_device(device) and not isinstance(tensor, DeviceTensor):
        assert tensor.is_leaf or not torch.is_grad_enabled(), "moved with its gradient"
        if tensor.is_meta and _device.keep(torch.zeros(0)).device.type != "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return to_device(tensor, dtype)
    if isinstance(tensor, DeviceTensor) and device is not None and not _is_device(device):
        if torch.device(device).type == "meta":
            return torch.empty_like(tensor.memory, dtype=dtype, device="meta")
        return to_host(tensor).to(dtype or tensor.dtype)
    if isinstance(tensor, DeviceTensor):
        copy = kwargs.get("copy", False)
        with _device.operator(True):
            return torch.Tensor.to(tensor, dtype or tensor.dtype, copy=copy)
    if tensor.is_meta and device is not None and _device.keep(torch.zeros(0)).is_meta:
        return tensor  # a shape that is back on the host, such as a tied head's
    return func(tensor, *args, **kwargs)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """By a flash kernel where there is one for it, else by all scores."""
    if attn_mask is None and query.dtype in HALF and query.shape[-1] % 8 == 0:
        return _aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    with _device.operator(True):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
        scores = (query.shape[-1] ** -0.5 if scale is None else scale) * query @ key.mT
        if is_causal:
            seen = DeviceTensor(torch.ones(scores.shape[-2:], dtype=torch.bool).tril())
            scores = scores.masked_fill(~seen, float("-inf"))
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        return scores.softmax(-1) @ value


# ---- graphs


class Recorder(TorchDispatchMode):
    """Records operators, and afterwards puts back what they have written: nothing has run yet."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in tensors_in(written):
            memory = _memory(tensor)
            if (key := _key(memory)) not in self._made:
                storage = torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())
                self._before.setdefault(key, (storage, storage.clone()))
        known = {_key(x) for x in tensors_in((args, kwargs))}
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        fresh = [x for x in tensors_in(out) if _key(x) not in known]
        self._made |= {_key(x) for x in fresh}
        self.calls.append((func, args, kwargs, fresh))
        return out

    def undo(self) -> None:
        """Put back what was written."""
        for storage, before in self._before.values():
            storage.copy_(before)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recorded:
    """What remains of a graph: it holds no memory, as the graph itself does."""

    def __init__(self) -> None:
        self.kernels: list[str] = []
        """Operators that write memory, each a kernel or more."""
        self.num_replays = 0


class Graph:
    """`torch.cuda.CUDAGraph`: knows operators and memory, and nothing of Python."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.recorded = Recorded()

    @torch.no_grad()
    def replay(self) -> None:
        self.recorded.num_replays += 1
        for func, args, kwargs, fresh in self.calls:
            again = tensors_in(func(*args, **kwargs))
            for old, new in zip(fresh, again if fresh else (), strict=True):
                old.copy_(new)


@contextmanager
def _record(graph: Graph, pool: Any, capture_error_mode: str = "global") -> Iterator[None]:
    """`torch.cuda.graph`."""
    recorder = _device.recording = Recorder()
    try:
        with recorder:
            yield
    finally:
        _device.recording = None
        recorder.undo()
    graph.calls = recorder.calls
    written = [f for f, _, _, fresh in graph.calls if fresh or f._schema.is_mutable]
    names = [func._schema.name.removeprefix("aten::") for func in written]
    graph.recorded.kernels = [name for name in names if name not in _ALLOCATES]
    _device.graphs.append(graph.recorded)


# ---- torch's view of the machine

_PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
)


class _Guard:
    """`torch.cuda.device`, `stream` and `Stream`: all work is done in order."""

    def __init__(self, *of: Any, **options: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def synchronize(self) -> None: ...


def _seen_by_torch() -> dict[str, Any]:
    """Functions of `torch.cuda` that would ask a driver."""
    state = torch.zeros(16, dtype=torch.uint8)

    def constant(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    nothing = (
        "_lazy_init", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all",
        "reset_peak_memory_stats", "set_device", "set_rng_state", "set_rng_state_all",
        "set_stream", "synchronize",
    )  # fmt: skip
    return {
        **{name: constant(None) for name in nothing},
        "is_available": constant(True), "is_initialized": constant(True),
        "device_count": constant(1), "current_device": constant(0),
        "current_stream": constant(_Guard()), "graph_pool_handle": constant("pool"),
        "get_device_properties": constant(_PROPERTIES),
        "get_device_name": constant(_PROPERTIES.name), "get_device_capability": constant((9, 0)),
        "is_bf16_supported": constant(True), "memory_stats": constant({}),
        "memory_allocated": constant(0), "max_memory_allocated": constant(0),
        "max_memory_reserved": constant(0), "mem_get_info": constant((80 << 30, 80 << 30)),
        "get_rng_state": constant(state), "get_rng_state_all": constant([state]),
        "is_current_stream_capturing": lambda: _device.recording is not None,
        "CUDAGraph": Graph, "graph": _record, "device": _Guard, "stream": _Guard,
        "Stream": _Guard, "default_generators": (),
    }  # fmt: skip


class _FlashQuestion(SimpleNamespace):
    """`torch.backends.cuda.SDPAParams`."""

    def __init__(self, query: Any, key: Any, value: Any, mask: Any, *options: Any) -> None:
        super().__init__(query=query, key=key, value=value, mask=mask)


def _can_use_flash(asked: _FlashQuestion, debug: bool = False) -> bool:
    """As torch answers: head dims that are no multiple of 8 are padded by SDPA, so they can."""
    tensors = (asked.query, asked.key, asked.value)
    return (
        asked.mask is None
        and all(x.dtype in HALF and x.dtype == asked.query.dtype for x in tensors)
        and all(x.shape[2] > 0 and x.shape[-1] <= 256 and x.stride(-1) == 1 for x in tensors)
    )


def _reducer(make: Callable[..., Any]) -> Callable[..., Any]:
    """DDP's, whose C++ makes buckets for gradients."""

    def made(*args: Any, **kwargs: Any) -> Any:
        with _device.operator(True):
            return make(*args, **kwargs)

    return made


def _swap(a: torch.Tensor, b: torch.Tensor) -> None:
    """`torch.utils.swap_tensors` for modules that move, also where views of a weight are kept."""
    a.__class__, b.__class__ = b.__class__, a.__class__
    a.__dict__, b.__dict__ = b.__dict__, a.__dict__
    torch._C._swap_tensor_impl(a, b)


@contextmanager
def pretended_cuda(device: Device | None = None) -> Iterator[Device]:
    """Context in which torch has one CUDA device.

    Args:
        device: what it is; None computes values.
    """
    global _device
    _device = device or Device()
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # keeps tied weights tied
    with ExitStack() as stack:
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        enter = stack.enter_context
        enter(mock.patch.multiple(torch.cuda, **_seen_by_torch()))
        enter(
            mock.patch.multiple(
                torch.backends.cuda,
                SDPAParams=_FlashQuestion,
                can_use_flash_attention=_can_use_flash,
            )
        )
        enter(mock.patch.object(torch.utils, "swap_tensors", _swap))
        enter(mock.patch.object(torch.distributed, "Reducer", _reducer(torch.distributed.Reducer)))
        # loading threads would not see the modes
        enter(mock.patch.dict("os.environ", {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
        for module in (optimizers, _foreach_utils):
            supported = [*module._foreach_supported_types, DeviceTensor]
            enter(mock.patch.object(module, "_foreach_supported_types", supported))
        enter(
            mock.patch.object(
                torch.optim.Optimizer, "_accelerator_graph_capture_health_check", return_value=None
            )
        )
        enter(Factories())
        enter(Functions())
        enter(torch.autograd.set_multithreading_enabled(False))
        yield _device
