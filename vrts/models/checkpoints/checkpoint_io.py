"""Checkpoint files that are complete or not there. Plug-in point ``trainer.plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.checkpoint.api import CheckpointException

from vrts.files.writing import replacing
from vrts.models.checkpoints.reading import read_file
from vrts.types import InputError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to an older one of its name, and replaces that when all is on disk.

    Lightning's own writes to the final name, so that a full disk or a kill also destroys the older
    checkpoint. `vrts` uses this one where the configuration names no other.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; one with a URL, or with storage options, as Lightning does.

        Raises:
            InputError: it cannot be written; an older file of that name is unchanged.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        with error_context(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as out:
                torch.save(checkpoint, out)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint into the host's memory; nothing in it is run.

        Lightning's further arguments are ignored.

        Raises:
            InputError: it is damaged, or holds anything but tensors and plain values.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, weights_only=True)
        return read_file(Path(path), mmap=False)


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Writes checkpoints in a thread, while training continues.

    Tensors are copied to the host first, which takes as much memory again. A save that failed ends
    the run at the next save, or at the end. (Lightning's AsyncCheckpointIO deletes older
    checkpoints before the newer one is written, copies on the device, and replaces the writer that
    it wraps by Lightning's own.)
    """

    def __init__(self) -> None:
        self._background = Background()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Start to write a checkpoint, once the one before is written.

        Raises:
            InputError: an earlier one could not be written.
        """
        self.wait()
        copied = apply_to_collection(
            checkpoint, torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True)
        )
        self._background.submit(super().save_checkpoint, copied, path, storage_options)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, after those that replace it are written."""
        self.when_saved(super().remove_checkpoint, path)

    def when_saved(self, work: Callable[..., None], *args: Any) -> None:
        """Call something when all checkpoints so far are written, unless that fails."""
        self._background.submit(work, *args)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, one that was just saved too."""
        self.wait()
        return super().load_checkpoint(path, *args, **kwargs)

    def wait(self) -> None:
        """Wait until all is written; raises InputError where something could not be."""
        self._background.wait()

    def teardown(self) -> None:
        """Wait, and end the thread; raises as `wait` does."""
        self._background.close()


@contextmanager
def error_context(path: Path) -> Iterator[None]:
    """Context in which a failed write becomes a message that names the checkpoint.

    Raises:
        InputError: the checkpoint could not be written.
    """
    try:
        yield
    except (CheckpointException, OSError, RuntimeError) as error:
        cause: BaseException = error
        if isinstance(error, CheckpointException):
            cause, _ = next(iter(error.failures.values()))
        reason = _reason_of(cause)
        if reason is None and not isinstance(error, CheckpointException):
            raise
        # what the system reported does not survive the way between processes
        reason = reason or f"is the disk full? torch reports: {cause}"
        raise InputError(
            f"cannot write the checkpoint {path} ({reason}); checkpoints saved before are "
            "complete: fix this, then give the same command again with --ckpt_path last"
        ) from error


def _reason_of(error: BaseException | None) -> str | None:
    """What the system reported, by the error or one of its causes: torch hides a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


class Background:
    """A thread that runs calls in the order they are submitted, and none after a failure."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Call something after what was submitted before, unless that fails."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1)
        before = list(self._pending)

        def run() -> None:
            if all(future.exception() is None for future in before):
                work(*args)

        self._pending.append(self._thread.submit(run))

    def wait(self) -> None:
        """Wait for all calls; raises what the first failed one raised."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def close(self) -> None:
        """Wait, and end the thread; raises as `wait` does. Submitting again starts a new one."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
