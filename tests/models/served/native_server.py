"""What a server answers that decodes requests with vrts's own engine."""

import base64
import io
import json
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.models.engines.running import make_engine
from tests.models.served.server import completion, parts_of
from vrts.demo.scenes import FPS, NUM_FRAMES
from vrts.models.engines.engine import Request
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import Clip, Question, Sample, SamplingParams


class NativeRule:
    """A rule of `FakeServer`: completes what a request shows and asks, and knows nothing else.

    Frames and their times become a clip again, of a video as `vrts.demo` makes them: a time, which
    is rounded to a tenth of a second, is that of one of its frames.

    Args:
        path: of the model.
    """

    def __init__(self, path: Path) -> None:
        policy = TransformersPolicy(str(path), prompt=PromptTemplate(*[""] * 7), dtype="float32")
        policy.load()
        self._engine = make_engine(policy)
        self._lock = threading.Lock()

    def __call__(self, body: dict, index: int) -> str:
        *parts, text = parts_of(body)
        images = [self._image(part) for part in parts if part["type"] == "image_url"]
        times = [part["text"] for part in parts if part["type"] == "text"]
        assert [f"<{float(t.strip('<>').split()[0]):.1f} seconds>" for t in times] == times
        indices = tuple(round(float(t.strip("<>").split()[0]) * FPS) for t in times) or (0,)
        is_image = not times
        num_source_frames = 1 if is_image else NUM_FRAMES
        clip = Clip(torch.stack(images), indices, float(FPS), num_source_frames)
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        sampling = SamplingParams(**{name: body[name] for name in names if name in body})
        with self._lock:
            (prompt,) = self._engine.encode([Sample(Question("", text["text"], ""), clip)])
            request = Request(prompt, (sampling,), (body["seed"],), body["max_tokens"])
            (result,) = self._engine.generate([request])
        (found,) = result.completions
        reason = "stop" if found.finished else "length"
        response = json.loads(completion(body, [found.text], finish_reason=reason))
        response["usage"]["completion_tokens"] = found.num_tokens
        return json.dumps(response)

    @staticmethod
    def _image(part: dict) -> torch.Tensor:
        """``[C, H, W]`` of an image in the request."""
        head, _, data = part["image_url"]["url"].partition(";base64,")
        assert head == "data:image/png"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
