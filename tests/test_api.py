"""`vrts.ask` leaves the model that it is given as it is."""

import pytest
import torch

import vrts
from tests.callbacks.conftest import model_folder, videos  # noqa: F401 fixtures
from vrts.data.video.resolution import Resolution
from vrts.types import InputError

OPTIONS = {
    "levels": (2, 4),
    "num_samples": 2,
    "max_new_tokens": 4,
    "resolution": Resolution(max_pixels=56 * 56),
    "accelerator": "cpu",
    "enable_model_summary": False,
}


@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
def test_a_precision_is_that_of_one_call(model_folder, videos, precision):  # noqa: F811
    """Weights keep dtype and values, and a call without it answers as one before it."""
    policy = vrts.load(str(model_folder), dtype="float32")
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    frequencies = [b.clone() for b in policy.buffers()]

    def ask(**options):
        found = vrts.ask(policy, videos["long"], "What is it?", ["A", "B"], **OPTIONS | options)
        assert found.error is None, found.error
        return found

    first = ask()
    converted = [ask(precision=precision) for _ in range(2)]
    assert converted[0] == converted[1]
    after = policy.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.float32, name
        assert torch.equal(after[name], weight), name
    for buffer, wanted in zip(policy.buffers(), frequencies, strict=True):
        assert torch.equal(buffer, wanted)
    assert policy.device == torch.device("cpu")
    assert ask() == first


def test_weights_are_as_they_were_after_an_error(model_folder, tmp_path):  # noqa: F811
    policy = vrts.load(str(model_folder), dtype="float32")
    with pytest.raises(InputError, match="no such"):
        vrts.ask(policy, str(tmp_path / "no.mp4"), "?", **OPTIONS, precision="bf16-true")
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
