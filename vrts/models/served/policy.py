"""A model that an OpenAI-compatible server runs, as a policy that predicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vrts.models.policy import WeightlessPolicy
from vrts.models.served.engine import ServedEngine
from vrts.models.served.frames import ImageFormat, image_parts, video_part
from vrts.prompts import PromptTemplate
from vrts.types import Clip, InputError, Question, Sample

if TYPE_CHECKING:
    from vrts.models.served.endpoint import Endpoint


class ServedPolicy(WeightlessPolicy):
    """Lets any OpenAI-compatible endpoint answer, such as vLLM's, SGLang's or a vendor's.

    Frames are decoded and resized here; ``docs/served.md`` has more about endpoints.

    Args:
        base_url: of the API, usually up to ``/v1``.
        model: name that the server gives the model.
        prompt: how a question is put to the model.
        frames: ``images``, each after its time, or a ``video`` (MP4, H.264) that starts at time 0.
        format: of images.
        quality: of JPEG and WebP from 1 to 100; a video has a CRF of ``(100 - quality) / 2``.
        logprobs: ask for log-probs, which votes may be weighted by.
        one_request: ask for all completions of a question in one request (field ``n``), which an
            early stop cannot cut short.
        max_concurrency: requests in flight at most, on each rank.
        max_retries: of a request, after 429, 5xx, a dropped connection or `timeout_s`.
        timeout_s: seconds for each attempt.
        api_key_variable: environment variable that holds the API key, if the server needs one.
        extra_body: further fields of each request.
        prompt_price: of a million tokens, to report what a run costs.
        completion_price: likewise.
    """

    no_weights = (
        "has no weights here: it predicts, and cannot be trained or exported; give model.policy a "
        "TransformersPolicy"
    )

    def __init__(
        self,
        base_url: str,
        model: str,
        prompt: PromptTemplate | None = None,
        frames: Literal["images", "video"] = "images",
        format: ImageFormat = "jpeg",
        quality: PositiveInt = 90,
        logprobs: bool = False,
        one_request: bool = False,
        max_concurrency: PositiveInt = 16,
        max_retries: NonNegativeInt = 8,
        timeout_s: PositiveFloat = 600.0,
        api_key_variable: str = "OPENAI_API_KEY",
        extra_body: dict[str, Any] | None = None,
        prompt_price: NonNegativeFloat | None = None,
        completion_price: NonNegativeFloat | None = None,
    ) -> None:
        super().__init__()
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or url.query or url.username:
            raise InputError(
                "model.policy.base_url must be http(s)://HOST/PATH, with neither password nor "
                f"query; the key belongs in the environment variable {api_key_variable}"
            )
        self._template = prompt or PromptTemplate()
        self._frames, self._format, self._quality = frames, format, min(int(quality), 100)
        self.base_url, self.model = base_url.rstrip("/"), model
        self.api_key_variable = api_key_variable
        self.asks_logprobs, self.one_request = logprobs, one_request
        self.extra_body = extra_body or {}
        self.max_concurrency, self.max_retries = int(max_concurrency), int(max_retries)
        self.timeout_s = float(timeout_s)
        prices = {"prompt_tokens": prompt_price, "completion_tokens": completion_price}
        self.prices = {name: price for name, price in prices.items() if price is not None}
        self._endpoint: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        """What requests are sent to; `load` comes first."""
        assert self._endpoint is not None
        return self._endpoint

    @property
    def loaded(self) -> bool:
        """Whether the endpoint has answered."""
        return self._endpoint is not None

    def load(self) -> None:
        """Ask the endpoint about grey frames, once, so that what is wrong is known beforehand.

        Raises:
            InputError: see `Endpoint.check`; or its HTTP client is missing.
        """
        if self.loaded:
            return
        try:
            from vrts.models.served.endpoint import Endpoint
        except ImportError as error:
            note = f"ServedPolicy needs httpx2 ({error}); pip install 'vrts[served]'"
            raise InputError(note) from error
        endpoint = Endpoint(self)
        frames = torch.full((4, 3, 56, 56), 128, dtype=torch.uint8, device="cpu")
        clip = Clip(frames, (0, 1, 2, 3), fps=1.0, num_source_frames=4)
        endpoint.check(self.messages(Sample(Question("", "What is this?", ""), clip)))
        self._endpoint = endpoint

    def frame_sizes(self) -> None:
        """Leave them to the data module, but `load`: this is called before questions are read."""
        self.load()

    def messages(self, sample: Sample) -> bytes:
        """JSON of a chat: the frames, then the text that a model in process reads too."""
        clip = sample.clip
        assert clip is not None
        if self._frames == "video" and not clip.is_image:
            parts = [video_part(clip, self._quality)]
        else:
            parts = image_parts(clip, self._format, self._quality)
        parts.append({"type": "text", "text": self._template.render(sample.question)})
        return json.dumps([{"role": "user", "content": parts}]).encode()

    def refuses(self, sample: Sample, max_new_tokens: int) -> str | None:
        """None: how long a prompt may be is known to the server alone."""
        return None

    def default_engine(self) -> ServedEngine:
        """Return the engine that sends requests."""
        return ServedEngine(self)

    def fingerprint(self) -> dict[str, Any]:
        """Endpoint, model, prompt, and how frames are sent; never the key."""
        return {
            "policy": "ServedPolicy",
            "base_url": self.base_url,
            "model": self.model,
            "prompt": asdict(self._template),
            "frames": f"{self._frames} {self._format} {self._quality}",
            "logprobs": self.asks_logprobs,
            "one_request": self.one_request,
            "extra_body": self.extra_body,
        }
