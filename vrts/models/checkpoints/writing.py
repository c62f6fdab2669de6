"""Checkpoint files that are whole or not there. Plug-in point ``trainer.plugins``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning_utilities.core.apply_func import apply_to_collection

from vrts.files.writing import replacing
from vrts.models.checkpoints.reading import read_file
from vrts.types import InputError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside an older one of its name, and replaces that when all is on disk.

    Lightning's own writes into the final name, so that a full disk or a kill takes the older
    checkpoint along. `vrts` uses this one where the configuration names no other.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Lightning's.
            path: of the file; what is no local path goes Lightning's way.
            storage_options: are refused, as Lightning does.

        Raises:
            InputError: it cannot be written; an older file of that name is as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as out:
                torch.save(checkpoint, out)
        except (OSError, RuntimeError) as error:  # torch hides a full disk behind the latter
            reason = reason_of(error)
            if reason is None:
                raise
            raise InputError(unwritten(file, reason)) from error

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint into the host's memory; nothing in it is run.

        Args:
            path: of the file; what is no local path is read Lightning's way.
            args: of Lightning's, which do not count here.
            kwargs: likewise.

        Raises:
            InputError: it is damaged, or holds anything but tensors and plain values.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, weights_only=True)
        return read_file(Path(path), mmap=False)


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Writes checkpoints in a thread, while training continues.

    Tensors are copied to the host first, so a checkpoint is of the moment at which it was asked
    for, and takes as much memory again. A save that failed ends the run at the next save, or at
    the end. (Lightning's AsyncCheckpointIO deletes older checkpoints before the newer one is
    written, copies on the device, and puts Lightning's own writer in the place of what it wraps.)
    """

    def __init__(self) -> None:
        self._background = Background()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Begin to write a checkpoint, when the one before is written.

        Args:
            checkpoint: Lightning's.
            path: of the file.
            storage_options: are refused, as Lightning does.

        Raises:
            InputError: an earlier one could not be written.
        """
        self.wait()
        copied = apply_to_collection(checkpoint, torch.Tensor, _to_host)
        self._background.submit(super().save_checkpoint, copied, path, storage_options)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, after those that are to take its place are written."""
        self.when_saved(super().remove_checkpoint, path)

    def when_saved(self, work: Callable[..., None], *args: Any) -> None:
        """Do something when all checkpoints so far are written, unless that fails.

        Args:
            work: to do.
            args: of it.
        """
        self._background.submit(work, *args)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, one that was just saved too."""
        self.wait()
        return super().load_checkpoint(path, *args, **kwargs)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            InputError: something could not be.
        """
        self._background.wait()

    def teardown(self) -> None:
        """Wait, and end the thread; raises as `wait` does."""
        self._background.close()


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def reason_of(error: BaseException | None) -> str | None:
    """What the system said of a write that failed.

    Args:
        error: or what it was caused by.

    Returns:
        None where the error is none of writing.
    """
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def unwritten(path: Path, reason: str) -> str:
    """Message about a checkpoint that could not be written.

    Args:
        path: of it.
        reason: of the system.
    """
    return (
        f"cannot write the checkpoint {path} ({reason}); checkpoints saved before are whole: put "
        "this right, then give the same command again with --ckpt_path last"
    )


class Background:
    """A thread that does what it is given in that order, and nothing more after a failure."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Have something done after what was given before, unless that fails.

        Args:
            work: to do.
            args: of it.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1)
        before = list(self._pending)

        def run() -> None:
            if all(future.exception() is None for future in before):
                work(*args)

        self._pending.append(self._thread.submit(run))

    def wait(self) -> None:
        """Wait until all is done; raises what the first failure raised."""
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
