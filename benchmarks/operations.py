"""Counting operations of long runs: torch's formulas, without its record of modules.

`torch.utils.flop_counter.FlopCounterMode` makes short decoding steps many times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperationCounter(TorchDispatchMode):
    """Adds up the floating point operations of what runs within it: matrix products, attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0
        self._whole: set[Any] = set()
        """Operators that are not made of others."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count it, or those that it is made of where it has no formula."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func not in self._whole:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
            self._whole.add(func)
        found = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=found)
        return found


def operations(run: Callable[[], Any]) -> int:
    """Floating point operations of a call, as torch counts them."""
    counter = OperationCounter()
    with counter:
        run()
    return counter.total
