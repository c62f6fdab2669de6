"""A decoder that looks into a cache first."""

from importlib.metadata import version
from pathlib import Path

from vrts.data.cache import FrameCache
from vrts.data.decoding import Decoder, check_video_file
from vrts.data.resolution import Resolution
from vrts.data.sampling import FrameSampler
from vrts.data.windows import WHOLE, Window
from vrts.files.fingerprints import describe, json_digest, sampled_digest
from vrts.types import Clip

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
