"""Frames become patches on any device, bit for bit as transformers' processors make them."""

import dataclasses

import pytest
import torch

from tests.models.conftest import make_sample
from tests.models.engines.running import CPU
from vrts.models.families.prompt import GridPatcher
from vrts.prompts import PromptTemplate
from vrts.types import Clip, InputError


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("num_frames", "size"), [(8, (56, 84)), (5, (112, 28)), (1, (28, 56))])
def test_patches_are_those_of_the_video_processor(load_policy, num_frames, size):
    policy = load_policy()
    sample = make_sample(7, num_frames, size, "What?")
    clip = sample.clip
    prompt = policy.family.encode(dataclasses.replace(sample, clip=clip), PromptTemplate())
    kind = policy.processor.image_processor if clip.is_image else policy.processor.video_processor
    if clip.is_image:
        want = kind(
            images=[clip.frames[0]], do_resize=False, input_data_format="channels_first",
            return_tensors="pt",
        )  # fmt: skip
        pixels, grid = want["pixel_values"], want["image_grid_thw"]
    else:
        want = kind(
            videos=[clip.frames], do_resize=False, do_sample_frames=False,
            cap_pixels_per_frame=False, return_tensors="pt",
        )  # fmt: skip
        pixels, grid = want["pixel_values_videos"], want["video_grid_thw"]
    patches = prompt.patches(CPU)
    assert torch.equal(patches, pixels)
    assert patches.dtype == torch.float32
    assert prompt.grid == tuple(grid[0].tolist())
    by_time = patches.unflatten(0, (prompt.grid[0], -1))
    some = [prompt.grid[0] - 1, 0]
    assert torch.equal(prompt.patches(CPU, some), by_time[some].flatten(0, 1))


def test_each_processor_has_its_own_values(load_policy):
    policy = load_policy()
    policy.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    policy.processor.image_processor.image_std = [0.5, 0.25, 0.125]
    clip = Clip(torch.full((1, 3, 28, 28), 51, dtype=torch.uint8), (0,), 1.0, 1)
    sample = make_sample(0, 2, (28, 28), "What?")
    sample = dataclasses.replace(
        sample, clip=clip, question=dataclasses.replace(sample.question, is_image=True)
    )
    policy.adopt(policy.model, policy.processor)
    patches = policy.family.encode(sample, PromptTemplate()).patches(CPU).unflatten(1, (3, -1))
    for channel, want in enumerate([0.2, 0.0, -0.8]):
        assert patches[:, channel].unique().item() == pytest.approx(want, abs=1e-6)


def test_pixels_are_float32_whatever_the_default(load_policy, bfloat16_by_default):
    sample = make_sample(1, 2, (56, 56), "What?")
    patches = load_policy().family.encode(sample, PromptTemplate()).patches(CPU)
    again = GridPatcher.of(load_policy().processor.video_processor)
    assert patches.dtype == again.mean.dtype == torch.float32
    assert len(patches.unique()) > 500, "of 768 values that bytes of 3 channels can have"


def test_a_processor_that_does_not_normalise_is_refused(load_policy):
    policy = load_policy()
    policy.processor.video_processor.do_rescale = False
    with pytest.raises(InputError, match="do_rescale"):
        GridPatcher.of(policy.processor.video_processor)


def test_prompts_keep_no_float_pixels(load_policy, samples):
    """Through decoding, only features and bytes: patches are four times the frames' bytes."""
    policy = load_policy()
    prompts = policy.network().encode(samples)
    kept = [
        value
        for prompt in prompts
        for value in (getattr(prompt, field.name) for field in dataclasses.fields(prompt))
        if isinstance(value, torch.Tensor)
    ]
    floats = [t for t in kept if t.is_floating_point()]
    assert [id(t) for t in floats] == [id(p.features) for p in prompts]
    assert sum(t.numel() for t in kept if t.dtype == torch.uint8) == sum(
        s.clip.frames.numel() for s in samples
    )
