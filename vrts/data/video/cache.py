"""Decoded frames on disk, so that a video is decoded once for many runs."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from jsonargparse.typing import PositiveFloat
from safetensors import SafetensorError
from safetensors.torch import load, save

from vrts.data.video.decoder import Decoder, check_video_file
from vrts.data.video.frames import WHOLE, FrameSampler, Window
from vrts.data.video.resolution import Resolution
from vrts.files.fingerprints import describe, json_digest, sampled_digest
from vrts.files.writing import replacing
from vrts.types import Clip, InputError

STALE_S = 3600.0
"""Age from which a file that is still being written belongs to a process that was killed."""


class FrameCache:
    """A folder of clips, of bounded size, which several processes and machines may share.

    A clip is kept under the content of its video (`vrts.files.fingerprints`), window, number
    of frames, sampler and resolution with their options, decoder and version of vrts: these decide
    which frames it has and how large they are. Entries are safetensors files with a checksum,
    written beside and moved into place; one that is damaged is removed and decoded again. After
    each write the entries that were used least recently are removed until the rest fits. Images
    and folders of frames are not kept.

    Args:
        folder: Made where it is missing.
        max_gib: Gibibytes that the entries have at most.
    """

    def __init__(self, folder: str, max_gib: PositiveFloat = 50.0) -> None:
        self.folder = Path(folder).expanduser()
        self.max_bytes = int(float(max_gib) * 2**30)

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made or written to.
        """
        probe = self.folder / "clips" / f"{uuid4().hex}.part"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()  # what may be written is known only then, on a network drive for one
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"data.cache.folder: cannot use {self.folder} ({error.strerror}); give another "
                "folder, or leave data.cache out"
            ) from error

    def load(self, key: str) -> Clip | None:
        """Return a clip, or None where there is none or a damaged one, which is removed."""
        path = self.folder / "clips" / f"{key}.safetensors"
        try:
            # whole and at once: another process may remove the file at any moment
            clip = _from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):  # it stays, and is decoded again each time
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # another user's file counts as used when it was made
            os.utime(path)
        return clip

    def store(self, key: str, clip: Clip) -> None:
        """Keep a clip; not one that is larger than all the room, or where writing fails."""
        if clip.frames.nbytes > self.max_bytes:
            return
        path = self.folder / "clips" / f"{key}.safetensors"
        try:
            # a name that no other process or thread writes to, on any machine; a damaged entry is
            # found by its checksum
            with replacing(path, writer=f".{uuid4().hex}", durable=False) as file:
                file.write(_to_bytes(clip))
            self._make_room()
        except OSError as error:
            # the same words for each clip, so that they are shown once
            message = f"data.cache.folder: {self.folder}: not all clips are kept ({error.strerror})"
            warnings.warn(message, stacklevel=2)

    def _make_room(self) -> None:
        """Remove the entries that were used least recently until the rest fits."""
        entries: list[tuple[float, int, str]] = []
        with os.scandir(self.folder / "clips") as files:
            for file in files:
                try:
                    state = file.stat()
                except FileNotFoundError:
                    continue  # another process has removed it
                if file.name.endswith(".safetensors"):
                    entries.append((state.st_mtime, state.st_size, file.path))
                elif time.time() - state.st_mtime > STALE_S:
                    Path(file.path).unlink(missing_ok=True)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


def _to_bytes(clip: Clip) -> bytes:
    told = {
        "frame_indices": clip.frame_indices,
        "fps": clip.fps,
        "num_source_frames": clip.num_source_frames,
        "times_s": clip.times_s,
        "num_damaged": clip.num_damaged,
    }
    parts = {
        "frames": clip.frames.contiguous(),
        "told": torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8),
    }
    return save(parts | {"checksum": torch.tensor(_checksum(parts))})


def _from_bytes(data: bytes) -> Clip:
    """Return the clip of an entry; what a damaged one raises is left to the caller."""
    parts = load(data)
    if int(parts.pop("checksum")) != _checksum(parts):
        raise ValueError("checksum differs")
    told = json.loads(bytes(parts["told"].tolist()))
    return Clip(
        frames=parts["frames"],
        frame_indices=tuple(told["frame_indices"]),
        fps=told["fps"],
        num_source_frames=told["num_source_frames"],
        times_s=tuple(told["times_s"]),
        num_damaged=told["num_damaged"],
    )


def _checksum(parts: dict[str, torch.Tensor]) -> int:
    total = 0
    for name in sorted(parts):
        array: Any = parts[name].numpy()  # numpy's annotations do not say it is a buffer
        total = zlib.crc32(array, total)
    return total


RULES = 2
"""Changes where the same options give other frames than before."""


class CachingDecoder(Decoder):
    """Looks into a cache before it asks another decoder.

    Args:
        decoder: Decodes what the cache does not have.
        cache: Keeps clips.
    """

    def __init__(self, decoder: Decoder, cache: FrameCache) -> None:
        self.decoder = decoder
        self.cache = cache

    def decode(
        self,
        path: str,
        num_frames: int,
        sampler: FrameSampler,
        resolution: Resolution,
        window: Window = WHOLE,
    ) -> Clip:
        """Return a clip; raises as `Decoder.decode` says."""
        check_video_file(path)
        wanted = [describe(part) for part in (self.decoder, sampler, resolution, window)]
        content = sampled_digest(Path(path), with_time=True)
        key = json_digest([content, num_frames, *wanted, version("vrts"), RULES])
        clip = self.cache.load(key)
        if clip is None:
            clip = self.decoder.decode(path, num_frames, sampler, resolution, window)
            # not of a file that changed meanwhile
            if sampled_digest(Path(path), with_time=True) == content:
                self.cache.store(key, clip)
        return clip
