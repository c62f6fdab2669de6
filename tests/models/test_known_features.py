"""Features of patches that are known already are not computed again, and stay the same."""

import dataclasses

import pytest
import torch

from tests.models.conftest import make_sample
from vrts.types import Clip, Sample


def sparser(sample: Sample, patches: list[int], size: tuple[int, int] | None = None) -> Sample:
    """The frames of some temporal patches of a sample, as a clip of their own."""
    clip = sample.clip
    assert clip is not None
    keep = [2 * patch + i for patch in patches for i in (0, 1)]
    frames = clip.frames[keep]
    if size is not None:
        frames = torch.nn.functional.interpolate(frames.float(), size).byte()
    indices = tuple(clip.frame_indices[i] for i in keep)
    return Sample(sample.question, Clip(frames, indices, clip.fps, clip.num_source_frames))


@pytest.fixture
def dense() -> list[Sample]:
    """Videos of different length and size, and of different names."""
    made = [
        make_sample(0, 12, (56, 84), "What?"),
        make_sample(1, 8, (112, 56), "Which of them?"),
        make_sample(2, 10, (84, 84), "Who?"),
        make_sample(3, 6, (56, 56), "Why?"),
    ]
    return [
        Sample(dataclasses.replace(s.question, video=f"{i}.mp4"), s.clip)
        for i, s in enumerate(made)
    ]


def count_patches(network) -> list[int]:
    counts: list[int] = []
    network.model.model.visual.register_forward_hook(
        lambda module, args, out: counts.append(len(args[0]))
    )
    return counts


def test_known_patches_are_not_encoded_again(load_policy, dense):
    network = load_policy().network()
    sparse = [
        sparser(dense[0], [0, 2, 4]),
        sparser(dense[1], [1]),
        sparser(dense[2], [0, 3], size=(56, 56)),  # another size: other features
        dense[0],
    ]
    of_dense = [dense[0], dense[1], dense[2], sparser(dense[0], [1, 3])]
    known = [network.encode([sample])[0] for sample in sparse]
    want = [network.encode([sample])[0] for sample in of_dense]
    counts = count_patches(network)
    for sample, before, expected in zip(of_dense, known, want, strict=True):
        (got,) = network.encode([sample], before)
        # fewer patches at once may round otherwise
        torch.testing.assert_close(got.features, expected.features, rtol=1e-5, atol=1e-6)
        # what was put together is known in its turn
        (again,) = network.encode([sample], got)
        assert torch.equal(again.features, got.features)
    # of 6 and 4 temporal patches 3 and 1 are known, none of 5, and both of 2
    assert counts == [3 * 4 * 6, 3 * 8 * 4, 5 * 6 * 6]


def test_another_video_with_the_same_frames_is_not_taken_for_it(load_policy, dense):
    network = load_policy().network()
    question = dataclasses.replace(dense[0].question, video="other.mp4")
    other = Sample(question, make_sample(9, 12, (56, 84), "What?").clip)
    (known,) = network.encode([dense[0]])
    (got,) = network.encode([other], known)
    assert torch.equal(got.features, network.encode([other])[0].features)
    assert not torch.equal(got.features, known.features)


def test_frames_of_one_name_in_one_batch_are_not_taken_for_each_other(load_policy, dense):
    """As T-GRPO's shuffled frames are not: their names are those of the frames in order."""
    network = load_policy().network()
    first = dense[0]
    clip = dataclasses.replace(first.clip, frames=first.clip.frames.flip(0))
    a, b = network.encode([first, Sample(first.question, clip)])
    assert torch.equal(a.features, network.encode([first])[0].features)
    assert not torch.equal(a.features, b.features)


def test_many_videos_are_encoded_in_groups(load_policy, dense, monkeypatch):
    """One pass has no more patches than memory is meant for; results depend on none of it."""
    monkeypatch.setattr("vrts.models.vlm.network.MAX_PATCHES", 300)
    network = load_policy().network()
    alone = [network.encode([sample])[0].features for sample in dense]
    counts = count_patches(network)
    together = network.encode(dense)
    assert counts == [6 * 4 * 6 + 4 * 8 * 4, 5 * 6 * 6 + 3 * 4 * 4]
    for prompt, features in zip(together, alone, strict=True):
        torch.testing.assert_close(prompt.features, features, rtol=1e-5, atol=1e-6)
