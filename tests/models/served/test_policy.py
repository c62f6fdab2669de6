"""What is sent of a clip, and what is known before questions are read."""

import base64
import io
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import av
import numpy as np
import pytest
from PIL import Image

from tests.models.conftest import make_sample
from tests.models.served.server import Reply, parts_of, refusal, serving
from vrts.models.served.endpoint import _seconds
from vrts.models.served.policy import ServedPolicy
from vrts.types import InputError

URL = "http://localhost:1/v1"


def parts(sample, **options):
    return parts_of({"messages": json.loads(ServedPolicy(URL, "tiny", **options).messages(sample))})


def file_of(part):
    kind = part["type"]
    head, _, data = part[kind]["url"].partition(";base64,")
    return head, io.BytesIO(base64.b64decode(data))


class TestFrames:
    def test_images_come_in_order_after_their_times(self):
        sample = make_sample(0, 4, (28, 56), "Which?")
        *frames, text = parts(sample, format="png")
        assert [p["text"] for p in frames[::2]] == [
            "<0.0 seconds>", "<3.0 seconds>", "<6.1 seconds>", "<9.1 seconds>",
        ]  # fmt: skip
        for part, frame in zip(frames[1::2], sample.clip.frames, strict=True):
            head, file = file_of(part)
            assert head == "data:image/png"
            assert np.array_equal(np.asarray(Image.open(file)), frame.permute(1, 2, 0).numpy())
        assert text["type"] == "text"
        assert "Which?\nA. red\nB. green" in text["text"]

    def test_quality_makes_images_smaller(self):
        sample = make_sample(0, 2, (56, 56), "Which?")
        sizes = [len(json.dumps(parts(sample, quality=quality))) for quality in (20, 90)]
        assert sizes[0] < sizes[1]
        assert file_of(parts(sample)[1])[0] == "data:image/jpeg"

    def test_a_video_has_all_frames_at_their_rate(self):
        sample = make_sample(0, 8, (56, 112), "Which?")
        video, text = parts(sample, frames="video", quality=100)
        head, file = file_of(video)
        assert head == "data:video/mp4"
        with av.open(file) as container:
            (stream,) = container.streams.video
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            assert float(stream.average_rate) == pytest.approx(sample.clip.sampled_fps, rel=0.01)
        assert np.stack(frames).shape == (8, 56, 112, 3)
        assert "Which?" in text["text"]

    def test_an_image_has_no_time_and_makes_no_video(self):
        sample = make_sample(0, 1, (28, 28), "Which?")
        assert [p["type"] for p in parts(sample, frames="video")] == ["image_url", "text"]


class TestChecks:
    def test_a_model_that_answers_is_loaded_once(self, server):
        policy = ServedPolicy(server.url + "/", "tiny")
        assert not policy.loaded
        assert policy.frame_sizes() is None
        assert policy.loaded
        server.check = refusal(500, "not twice")
        policy.load()

    def test_no_server_is_told_at_once(self):
        with serving() as gone:
            url = gone.url
        start_s = time.monotonic()
        with pytest.raises(InputError, match=rf"cannot ask about a frame: {url} is not there"):
            ServedPolicy(url, "tiny").load()
        assert time.monotonic() - start_s < 5

    def test_the_nearest_name_is_told(self, server):
        message = "404 The model `tini` does not exist.; the nearest of its models is 'tiny'"
        with pytest.raises(InputError, match=message):
            ServedPolicy(server.url, "tini").load()

    def test_a_server_that_lists_no_models_is_asked_all_the_same(self, server):
        server.models = None
        ServedPolicy(server.url, "tiny").load()

    def test_a_refused_key_is_told_without_the_key(self, server, monkeypatch):
        server.key = "sk-right"
        with pytest.raises(InputError, match=r"401 Incorrect.*\(OPENAI_API_KEY holds no key\)"):
            ServedPolicy(server.url, "tiny").load()
        monkeypatch.setenv("MY_KEY", "sk-wrong-one")
        with pytest.raises(InputError, match=r"the key in MY_KEY is refused") as error:
            ServedPolicy(server.url, "tiny", api_key_variable="MY_KEY").load()
        assert "sk-wrong-one" not in str(error.value)
        monkeypatch.setenv("MY_KEY", "sk-right")
        policy = ServedPolicy(server.url, "tiny", api_key_variable="MY_KEY")
        policy.load()
        assert "sk-right" not in json.dumps(policy.fingerprint())

    def test_a_model_without_images_is_told_in_its_words(self, server):
        server.check = refusal(400, "tiny is not a multimodal model")
        with pytest.raises(InputError, match="400 tiny is not a multimodal model"):
            ServedPolicy(server.url, "tiny").load()

    def test_extra_fields_that_are_refused_are_told_and_not_left_out(self, server):
        answer = server.answer
        server.answer = lambda body: (
            refusal(400, "unknown field: 'min_q'") if "min_q" in body else answer(body)
        )
        with pytest.raises(InputError, match="400 unknown field: 'min_q'"):
            ServedPolicy(server.url, "tiny", extra_body={"min_q": 1}).load()

    def test_a_server_that_still_loads_is_waited_for(self, server):
        start_s = time.monotonic()
        answer = server.answer
        server.answer = lambda body: (
            answer(body) if time.monotonic() - start_s > 0.2 else Reply(503, "loading")
        )
        ServedPolicy(server.url, "tiny", max_retries=20).load()
        assert time.monotonic() - start_s > 0.2

    @pytest.mark.parametrize("url", ["localhost:8000", "http://me:secret@host/v1", f"{URL}?key=1"])
    def test_addresses_with_secrets_are_refused(self, url):
        with pytest.raises(InputError, match="base_url must be http") as error:
            ServedPolicy(url, "tiny")
        assert "secret" not in str(error.value)

    def test_it_is_neither_trained_nor_exported(self, tmp_path):
        policy = ServedPolicy(URL, "tiny")
        calls = (
            policy.train,
            lambda: policy.save_pretrained(tmp_path),
            lambda: policy.logprobs([], [], 1.0),
            policy.adapter_disabled,
        )
        for call in calls:
            with pytest.raises(InputError, match="ServedPolicy has no weights here"):
                call()
        assert not policy.eval().training


def test_retry_after_is_a_number_or_a_date():
    assert _seconds("1.5") == 1.5
    assert _seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60))) == pytest.approx(
        60, abs=5
    )
    assert [_seconds(text) for text in ("", "soon", "-3")] == [0, 0, 0]


def test_options_that_change_answers_are_in_the_fingerprint():
    plain = ServedPolicy(URL, "tiny").fingerprint()
    changes = {"frames": "video", "format": "png", "quality": 80, "extra_body": {"min_p": 0.1}}
    for name, value in changes.items():
        assert ServedPolicy(URL, "tiny", **{name: value}).fingerprint() != plain
    assert ServedPolicy(URL, "tiny", max_concurrency=3, prompt_price=1.0).fingerprint() == plain
