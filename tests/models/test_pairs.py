"""Features of pairs of frames that are known already are not computed again, and stay the same."""

import dataclasses

import pytest
import torch

from tests.models.conftest import make_sample
from vrts.types import Clip, Sample


def sparser(sample: Sample, pairs: list[int], size: tuple[int, int] | None = None) -> Sample:
    """Some pairs of a sample's frames, as a clip of their own."""
    clip = sample.clip
    assert clip is not None
    keep = [2 * pair + i for pair in pairs for i in (0, 1)]
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


def count_patches(policy) -> list[int]:
    counts: list[int] = []
    policy.base.model.visual.register_forward_hook(
        lambda module, args, out: counts.append(len(args[0]))
    )
    return counts


def test_known_pairs_are_not_encoded_again(load_policy, dense):
    policy = load_policy()
    sparse = [
        sparser(dense[0], [0, 2, 4]),
        sparser(dense[1], [1]),
        sparser(dense[2], [0, 3], size=(56, 56)),  # another size: other features
    ]
    known = policy.encode(sparse, 4)
    want = policy.encode(dense, 4)
    counts = count_patches(policy)
    got = policy.encode(dense, 4, known)
    assert torch.equal(got.features, want.features)
    # of 6, 4, 5 and 3 pairs 3, 1, 0 and 0 are known
    per_pair = [4 * 6, 8 * 4, 6 * 6, 4 * 4]
    assert counts == [sum(n * size for n, size in zip([3, 3, 5, 3], per_pair, strict=True))]
    # what was put together is known in its turn
    counts.clear()
    again = policy.encode(dense[:3][::-1], 4, got)
    assert counts == []
    assert torch.equal(again.features, policy.encode(dense[:3][::-1], 4).features)


def test_where_weights_are_sharded_the_vision_tower_is_never_left_out(
    load_policy, dense, monkeypatch
):
    policy = load_policy()
    known = policy.encode(dense, 4)
    counts = count_patches(policy)
    monkeypatch.setattr("vrts.models.qwen.is_sharded", lambda model: True)
    again = policy.encode(dense, 4, known)
    assert counts == [4 * 6], "one pair of the first video"
    torch.testing.assert_close(again.features, known.features)


def test_another_video_with_the_same_frames_is_not_taken_for_it(load_policy, dense):
    policy = load_policy()
    question = dataclasses.replace(dense[0].question, video="other.mp4")
    other = make_sample(9, 12, (56, 84), "What?")
    known = policy.encode([dense[0]], 4)
    got = policy.encode([Sample(question, other.clip)], 4, known)
    assert torch.equal(got.features, policy.encode([Sample(question, other.clip)], 4).features)
    assert not torch.equal(got.features, known.features)


def test_frames_of_one_name_in_one_batch_are_not_taken_for_each_other(load_policy, dense):
    """As T-GRPO's shuffled frames are not: their names are those of the frames in order."""
    policy = load_policy()
    first = dense[0]
    shuffled = dataclasses.replace(first.clip, frames=first.clip.frames.flip(0))
    both = policy.encode([first, Sample(first.question, shuffled)], 4).features.chunk(2)
    assert torch.equal(both[0], policy.encode([first], 4).features)
    assert not torch.equal(both[0], both[1])
