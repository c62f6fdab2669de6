"""Decoded frames on disk, so that many runs decode a video once."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
import zlib
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from jsonargparse.typing import PositiveFloat

from vrts.data.video.decoder import Decoder, check_video_file
from vrts.data.video.frames import WHOLE, FrameSampler, Window
from vrts.data.video.resolution import Resolution
from vrts.files.fingerprints import describe, json_digest, sampled_digest
from vrts.files.writing import make_folder, replacing
from vrts.types import Clip

SUFFIX = ".clip"
STALE_S = 3600.0
"""Age from which any other file is deleted: its writer was killed, or another version wrote it."""
FORMAT = 3
"""Part of all keys; to be changed when the same options give other frames or another file."""


class FrameCache:
    """A folder of clips, of bounded size, that several processes and machines may share.

    The key of a clip is made of the content of its video (`vrts.files.fingerprints`), window,
    number of frames, sampler, resolution and decoder with their options, and the version of vrts.
    Entries have a checksum and are written atomically; a damaged one is removed and decoded again.
    The least recently used entries are evicted after each write. Images and folders of frames are
    not cached.

    Args:
        folder: Made if it does not exist.
        max_gib: Maximum size of all entries, in GiB.
    """

    def __init__(self, folder: str, max_gib: PositiveFloat = 50.0) -> None:
        self.folder = Path(folder).expanduser()
        self.max_bytes = int(float(max_gib) * 2**30)

    def prepare(self) -> None:
        """Make the folder; raises `InputError` if it cannot be made or written to."""
        make_folder(self.folder / "clips", "data.cache.folder")

    def load(self, key: str) -> Clip | None:
        """Return a clip, or None if there is none or a damaged one, which is removed."""
        path = self._path(key)
        try:
            # read at once: another process may remove the file at any moment
            clip = _from_bytes(bytearray(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            with contextlib.suppress(OSError):  # it stays, and is decoded again each time
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # fails for another user's file: its age counts then
            os.utime(path)
        return clip

    def store(self, key: str, clip: Clip) -> None:
        """Keep a clip, unless it is larger than the cache or cannot be written."""
        if clip.frames.nbytes > self.max_bytes:
            return
        try:
            # a temporary name that no other process, thread or machine uses
            with replacing(self._path(key), writer=f".{uuid4().hex}", durable=False) as file:
                file.write(_to_bytes(clip))
            self._evict()
        except OSError as error:
            # the same text for each clip, so that it is shown once
            message = f"data.cache.folder: {self.folder}: not all clips are kept ({error.strerror})"
            warnings.warn(message, stacklevel=2)

    def _path(self, key: str) -> Path:
        return self.folder / "clips" / f"{key}{SUFFIX}"

    def _evict(self) -> None:
        """Remove the least recently used entries until the rest fits."""
        entries: list[tuple[float, int, str]] = []
        with os.scandir(self.folder / "clips") as files:
            for file in files:
                try:
                    state = file.stat()
                except FileNotFoundError:
                    continue  # another process has removed it
                if file.name.endswith(SUFFIX):
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
    """CRC-32 of the rest in 4 bytes, the fields as a line of JSON, the pixels."""
    values = {field.name: getattr(clip, field.name) for field in fields(clip)}
    values["frames"] = tuple(clip.frames.shape)
    body = json.dumps(values).encode() + b"\n" + clip.frames.contiguous().numpy().tobytes()
    return zlib.crc32(body).to_bytes(4, "big") + body


def _from_bytes(data: bytearray) -> Clip:
    """Return the clip of an entry; raises `ValueError` if it is damaged."""
    if zlib.crc32(memoryview(data)[4:]) != int.from_bytes(data[:4], "big"):
        raise ValueError("checksum differs")
    end = data.index(b"\n", 4)
    values: dict[str, Any] = json.loads(data[4:end])
    pixels = torch.frombuffer(data, dtype=torch.uint8, offset=end + 1)  # no copy
    values["frames"] = pixels.view(values["frames"])
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Clip(**values)


class CachingDecoder(Decoder):
    """Looks into a cache before it uses another decoder.

    Args:
        decoder: Decodes what is not in the cache.
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
        """Return a clip; raises as `Decoder.decode`."""
        check_video_file(path)
        options = [describe(part) for part in (self.decoder, sampler, resolution, window)]
        content = sampled_digest(Path(path), with_time=True)
        key = json_digest([content, num_frames, *options, version("vrts"), FORMAT])
        clip = self.cache.load(key)
        if clip is None:
            clip = self.decoder.decode(path, num_frames, sampler, resolution, window)
            # not if the file was changed meanwhile
            if sampled_digest(Path(path), with_time=True) == content:
                self.cache.store(key, clip)
        return clip
