"""Two training loops that take turns, a step each, in processes of their own.

A loop runs in a child process under its own trainer and stops before every step until the parent
gives it its turn. Nothing of one side (patched modules, allocator, random state) reaches the
other, and only one of them computes at a time.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self


class Turn:
    """A loop's end of the line to the parent.

    Args:
        line: of the child.
    """

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._start_s = self._start_cpu_s = 0.0

    def begin(self) -> None:
        """Wait for this loop's turn, then start the clock."""
        self._line.recv()
        self._start_s, self._start_cpu_s = time.perf_counter(), time.process_time()

    def end(self, facts: dict[str, Any]) -> None:
        """Stop the clock and report; the step's ``CPU s`` go with the facts.

        Args:
            facts: about the step, whatever can be pickled.
        """
        seconds = time.perf_counter() - self._start_s
        cpu_s = time.process_time() - self._start_cpu_s
        self._line.send((seconds, {"CPU s": cpu_s, **facts}))


Loop = Callable[..., None]
"""Runs steps as ``loop(turn, *args)``, each between ``turn.begin()`` and ``turn.end(facts)``."""


class Side:
    """The parent's end: a loop in a process of its own.

    Args:
        name: in messages.
        loop: importable, since the process is spawned.
        args: of the loop, after its turn.
    """

    def __init__(self, name: str, loop: Loop, args: Sequence[Any]) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._line, child_line = context.Pipe()
        self._process = context.Process(target=_run, args=(loop, child_line, tuple(args)))
        self._process.start()
        child_line.close()

    def step(self) -> tuple[float, dict[str, Any]]:
        """Let the loop make a step.

        Returns:
            Its wall time in seconds, and the facts that it reports.

        Raises:
            RuntimeError: the loop failed; the message has its traceback.
        """
        try:
            self._line.send(None)
            answer = self._line.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"{self.name} ended without a step") from error
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name} failed:\n{answer}")
        seconds, facts = answer
        return float(seconds), facts

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Wait for a loop that is through; end one that the parent no longer waits for."""
        if error is not None:
            self._process.terminate()
        self._process.join()
        self._line.close()


def _run(loop: Loop, line: Connection, args: tuple[Any, ...]) -> None:
    """Run a loop in the child, and tell the parent what went wrong."""
    try:
        loop(Turn(line), *args)
    except Exception:
        line.send(traceback.format_exc())
        raise
    finally:
        line.close()


def take_turns(
    sides: dict[str, tuple[Loop, Sequence[Any]]], repeats: int
) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Let loops make a step each, in turn; the first round warms up and does not count.

    Args:
        sides: loops and their arguments, by name. Each makes ``repeats + 1`` steps.
        repeats: steps of each that count.

    Returns:
        By name, seconds and facts of each step.
    """
    steps: dict[str, list[tuple[float, dict[str, Any]]]] = {name: [] for name in sides}
    with ExitStack() as stack:
        running = [stack.enter_context(Side(n, loop, args)) for n, (loop, args) in sides.items()]
        for _ in range(repeats + 1):
            for side in running:
                steps[side.name].append(side.step())
    return {name: made[1:] for name, made in steps.items()}
