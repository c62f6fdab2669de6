"""A pretended CUDA device that knows shapes and no values, and counts the bytes it holds.

The code that runs is the real one. Whole numbers keep their values, since Python asks for them
(lengths, token ids, where attention windows lie); everything else is a shape.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from tests.pretended_cuda import Device, DeviceTensor, mapped, pretended_cuda, tensors_in
from vrts.models.engines.decode_batch import DecodeBatch
from vrts.models.engines.graphs import StepGraphs
from vrts.models.families.qwen3_5 import SharedDeltaNet

BLOCK = 512
"""Bytes; torch's allocator on CUDA rounds up to a multiple of it."""
SMALL = 2**16
"""What has no more elements is read as zeros, what has more stays a shape on the host too."""
FLASH_ROWS = 128
"""Rows of a tile in the backward of flash attention."""


class ShapesDevice(Device):
    """See the module.

    Args:
        num_bytes: of the card. Nothing fails beyond; the engine sizes its KV cache by it.
    """

    def __init__(self, num_bytes: float) -> None:
        super().__init__()
        self.num_bytes = int(num_bytes)
        self.held = 0
        """Bytes now."""
        self.between = 0
        """Bytes between two steps, for whoever notes them."""
        self.peaks: dict[str, int] = {}
        """Most bytes at once, by phase."""
        self.highest = 0
        """Most bytes at once, for whoever sets it back."""
        self._phase: str | None = None
        self._storages: dict[int, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context whose peak is noted under a name, unless it is within another one."""
        outer, self._phase = self._phase, self._phase or name
        self.note(0)
        try:
            yield
        finally:
            self._phase = outer

    def note(self, extra: int) -> None:
        """Note what is held now, and further bytes of an operation, among the peaks."""
        self.highest = max(self.highest, self.held + extra)
        if self._phase is not None:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self.held + extra)

    def made(self, tensor: DeviceTensor) -> None:
        """See `Device.made`."""
        storage = tensor.memory.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._storages[key] = size
        self.held += size
        self.note(0)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.held -= self._storages.pop(key)

    def keep(self, memory: torch.Tensor) -> torch.Tensor:
        """See `Device.keep`."""
        if memory.is_meta or not _is_shape(memory):
            return memory
        return torch.empty_strided(memory.shape, memory.stride(), dtype=memory.dtype, device="meta")

    def read(self, memory: torch.Tensor) -> torch.Tensor:
        """See `Device.read`."""
        if not memory.is_meta:
            return memory.detach().clone()
        if memory.numel() > SMALL:
            return torch.empty_like(memory)  # memory of its own, which is not counted
        return torch.zeros(memory.shape, dtype=memory.dtype)

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """See `Device.compute`."""
        if not any(x.is_meta for x in tensors_in((args, kwargs))):
            return mapped(self.keep, func(*args, **kwargs))
        name = func._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            return 0.0
        if name == "_scaled_dot_product_flash_attention_backward":
            return self._flash_backward(*args[:4])
        if name in ("index", "_unsafe_index"):  # a mask has values, by which the shape is known
            args = (args[0], [y for x in args[1] for y in _places(x)])
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        given = tensors_in((args, kwargs))
        shapes = {id(x): x if x.is_meta else torch.empty_like(x, device="meta") for x in given}

        def shape(x: torch.Tensor) -> torch.Tensor:
            return shapes[id(x)]

        out = func(*mapped(shape, args), **mapped(shape, kwargs))
        own = {id(shapes[id(x)]): x for x in given}  # what is written in place keeps its values
        return mapped(lambda x: own[id(x)] if id(x) in own else _zeros(x), out)

    def _flash_backward(
        self, grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Gradients, and what the kernel takes for itself.

        That is the queries' gradient in float32, and that of keys and values for each of the
        query heads.
        """
        B, H, N, D = query.shape
        extra = 4 * B * H * (-(-N // FLASH_ROWS) * FLASH_ROWS) * D
        if key.shape[1] != H:
            extra += 2 * 2 * B * H * key.shape[2] * D
        self.note(extra)
        return tuple(
            torch.empty_like(x.transpose(1, 2).contiguous()).transpose(1, 2)
            for x in (query, key, value)
        )


def _is_shape(memory: torch.Tensor) -> bool:
    """Whether values are dropped: numbers with fractions, pixels and packed 4-bit weights."""
    return memory.dtype.is_floating_point or memory.dtype == torch.uint8


def _zeros(x: torch.Tensor) -> torch.Tensor:
    """Whole numbers that were computed from shapes."""
    return x if _is_shape(x) or not x.is_meta else torch.zeros(x.shape, dtype=x.dtype)


def _places(index: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if index is None or index.dtype != torch.bool:
        return (index,)
    return index.nonzero(as_tuple=True)


def _once(device: ShapesDevice) -> Any:
    """`SharedDeltaNet._run`, of which only the first one on equal shapes runs.

    The others are noted with its peak, and return the same shapes. With gradients all of them run:
    what they keep for the backward pass is then held.
    """
    real: Any = SharedDeltaNet._run
    known: dict[Any, tuple[int, tuple[Any, ...], list[tuple[Any, ...]]]] = {}

    def shape(x: torch.Tensor) -> tuple[Any, ...]:
        elements = x.memory.untyped_storage().nbytes() // x.element_size()  # type: ignore[attr-defined]
        return elements, tuple(x.shape), x.stride(), x.storage_offset(), x.dtype

    def run(self: Any, rule: Any, inputs: Sequence[torch.Tensor], states: Any) -> Any:
        if torch.is_grad_enabled():
            return real(self, rule, inputs, states)
        given = [(x.shape, x.stride(), x.dtype) for x in (*inputs, *(states or ()))]
        key = (rule.__name__, *given)
        if key not in known:
            before, outer, device.highest = device.held, device.highest, 0
            out = real(self, rule, inputs, states)
            known[key] = (device.highest - before, shape(out[0]), [shape(x) for x in out[1]])
            device.highest = max(device.highest, outer)
            return out
        extra, output, after = known[key]
        device.note(extra)
        return _empty(*output), tuple(_empty(*x) for x in after)

    return run


def _empty(elements: int, size: Any, stride: Any, offset: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a storage that has so many elements."""
    return torch.empty(elements, dtype=dtype, device="cuda").as_strided(size, stride, offset)


@contextmanager
def shapes_only(num_bytes: float) -> Iterator[ShapesDevice]:
    """Context in which torch has a CUDA device without values.

    Decoding steps are not recorded as graphs, and of those on equal shapes only the first runs: the
    others hold nothing else. They count on, as a replayed graph would. So it is with recurrences,
    each of which is a loop over the chunks of a prompt.

    Args:
        num_bytes: of the card.
    """
    device = ShapesDevice(num_bytes)
    advance, seen = DecodeBatch.advance, set()

    def advance_once(self: DecodeBatch) -> None:
        rows, num_rows, cache = self._rows, len(self._places), self._cache
        key = (id(self), num_rows, self._columns, cache.shapes, rows.sampler.truncates)
        if key not in seen:
            seen.add(key)
            return advance(self)
        rows._lengths[:num_rows] += (~rows._ended[:num_rows]).long()
        rows._ended[:num_rows] |= rows._lengths[:num_rows] >= rows._limits[:num_rows]
        rows._since.add_(1)
        return None

    def free(*_: Any) -> tuple[int, int]:
        return max(device.num_bytes - device.held, 0), device.num_bytes

    def run(_: StepGraphs, __: Any, step: Callable[[], None]) -> None:
        step()

    with ExitStack() as stack:
        stack.enter_context(pretended_cuda(device))
        for target, name, new in (
            (DecodeBatch, "advance", advance_once),
            (StepGraphs, "run", run),
            (SharedDeltaNet, "_run", _once(device)),
            (torch.cuda, "mem_get_info", free),
        ):
            stack.enter_context(mock.patch.object(target, name, new))
        yield device
