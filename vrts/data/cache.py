"""Decoded frames on disk, so that a video is decoded once for many runs."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vrts.data.content import describe, file_digest
from vrts.data.decoding import Decoder, check_video_file
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.data.windows import WHOLE, Window
from vrts.types import Clip, InputError

ABANDONED_S = 3600.0
"""Age from which a file that is still being written belongs to a process that was killed."""


class FrameCache:
    """A folder of clips, of bounded size, which several processes and machines may share.

    A clip is kept under the content of its video (SHA-256 of the whole file), window, number of
    frames, sampler and resolution with their options, decoder and version of vrts: these decide
    which frames it has and how large they are. A file is hashed once and again when its place,
    size or time of change differs. Entries are safetensors files with a checksum, written beside
    and moved into place; one that is damaged is removed and decoded anew. After each write the
    entries that were used least recently are removed until the rest fits. Pictures and folders of
    frames are not kept.

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
        try:
            for name in ("clips", "digests"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            usable = os.access(self.folder / "clips", os.W_OK)
        except OSError as error:
            raise InputError(f"data.cache.folder: {self.folder} ({error.strerror})") from error
        if not usable:
            raise InputError(f"data.cache.folder: {self.folder} cannot be written to")

    def digest(self, path: str) -> str:
        """Return the digest of a file's content, kept until the file's place or state differs.

        Raises:
            OSError: the file cannot be read.
        """
        file = Path(path).resolve()
        state = file.stat()
        seen = (str(file), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        note = self.folder / "digests" / _sha256(seen)
        try:
            known = note.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            known = ""
        if len(known) == 64:
            return known
        digest = file_digest(file)
        part = _part(note)
        part.write_text(digest, encoding="ascii")
        part.replace(note)
        return digest

    def load(self, key: str) -> Clip | None:
        """Return a clip, or None where there is none or a damaged one, which is removed."""
        path = self.folder / "clips" / f"{key}.safetensors"
        try:
            with safe_open(path, framework="pt") as entry:
                frames: torch.Tensor = entry.get_tensor("frames")
                told = json.loads(entry.metadata()["clip"])
            if _checksum(frames) != told.pop("checksum"):
                raise ValueError("checksum differs")
            clip = Clip(
                frames=frames,
                frame_indices=tuple(told["frame_indices"]),
                fps=told["fps"],
                num_source_frames=told["num_source_frames"],
                times_s=tuple(told["times_s"]),
            )
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            return None
        return clip

    def store(self, key: str, clip: Clip) -> None:
        """Keep a clip; one that is larger than all the room is not kept.

        Raises:
            OSError: the folder cannot be written to.
        """
        if clip.frames.nbytes > self.max_bytes:
            return
        path = self.folder / "clips" / f"{key}.safetensors"
        told = {
            "frame_indices": clip.frame_indices,
            "fps": clip.fps,
            "num_source_frames": clip.num_source_frames,
            "times_s": clip.times_s,
            "checksum": _checksum(clip.frames),
        }
        part = _part(path)
        save_file({"frames": clip.frames}, part, {"clip": json.dumps(told)})
        part.replace(path)
        self._make_room()

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
                elif time.time() - state.st_mtime > ABANDONED_S:
                    Path(file.path).unlink(missing_ok=True)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


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
        key = _sha256([self.cache.digest(path), num_frames, *wanted, version("vrts")])
        clip = self.cache.load(key)
        if clip is None:
            clip = self.decoder.decode(path, num_frames, sampler, resolution, window)
            self.cache.store(key, clip)
        return clip


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checksum(frames: torch.Tensor) -> int:
    array: Any = frames.contiguous().numpy()  # numpy's annotations do not say it is a buffer
    return zlib.crc32(array)


def _part(path: Path) -> Path:
    """A name beside a file that no other process or thread writes to."""
    return path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
