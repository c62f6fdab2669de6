"""Real files on which faults were found, against what a player shows (their README)."""

import av
import numpy as np
import pytest
import torch

from vrts.data.video.decoder import resize_frame
from vrts.data.video.frames import WHOLE, UniformSampler, Window
from vrts.data.video.images import decode_animation, decode_image
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.data.workers.pool import DecodePool
from vrts.types import Question, VideoError

SMALL = Resolution(min_pixels=28 * 28, max_pixels=64 * 28 * 28)


@pytest.fixture(scope="module")
def found(shared):
    """The folder of those files, or a skip that names it."""
    folder = shared / "videos" / "found"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the files on which faults were found are not here")
    return folder


def decode(path, num_frames=32, window=WHOLE, resolution=SMALL):
    return PyAVDecoder().decode(str(path), num_frames, UniformSampler(), resolution, window)


def truth(path, clip, change=lambda image: image):
    """The frames of a clip by plain decoding from the start, without any seek."""
    with av.open(str(path), metadata_errors="ignore") as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    images = [np.ascontiguousarray(change(frames[i])) for i in clip.frame_indices]
    return torch.stack(
        [
            resize_frame(torch.from_numpy(i).permute(2, 0, 1), *clip.frames.shape[-2:])
            for i in images
        ]
    )


def test_key_frames_that_are_none(found):
    clip = decode(found / "MOV00006.3gp")
    assert (clip.num_source_frames, clip.num_damaged) == (222, 0)
    assert torch.equal(clip.frames, truth(found / "MOV00006.3gp", clip))


def test_no_table_of_key_frames(found):
    clip, intact = decode(found / "nostss_fast2.mp4"), decode(found / "intact.mp4")
    assert clip.frame_indices == tuple(UniformSampler().indices(120, 32, 30))
    assert torch.equal(clip.frames, intact.frames)
    assert torch.equal(intact.frames, truth(found / "intact.mp4", intact))


def test_metadata_that_is_not_utf8(found):
    clip = decode(found / "video_desks.3gp")
    assert (clip.num_source_frames, clip.num_damaged) == (71, 0)
    assert torch.equal(clip.frames, truth(found / "video_desks.3gp", clip))


def test_orientations(found):
    clip = decode(found / "rot.mkv")
    right = truth(found / "rot.mkv", clip, lambda image: np.rot90(image, -1))
    assert torch.equal(clip.frames, right)
    clip = decode(found / "m_hflip.mp4")
    right = truth(found / "m_hflip.mp4", clip, lambda image: image[:, ::-1])
    assert torch.equal(clip.frames, right)


def test_damage(found):
    intact = decode(found / "intact.mp4", 120)
    clip = decode(found / "damaged64.mp4")
    assert clip.num_damaged == 8  # the group of frames 30 to 59
    assert not set(range(30, 60)) & set(clip.frame_indices)
    assert torch.equal(clip.frames, intact.frames[list(clip.frame_indices)])
    clip = decode(found / "truncated97.mp4")
    assert (clip.num_source_frames, clip.num_damaged) == (120, 2)
    assert clip.frame_indices[-2:] == (114, 114)
    assert torch.equal(clip.frames, intact.frames[list(clip.frame_indices)])
    clip = decode(found / "cut97.ts")
    assert (clip.num_damaged, clip.frame_indices[-1]) == (1, 114)


def test_little_damage_passes_and_much_fails(found):
    for most, expected in [(0.1, [False, True, True]), (0.0, [False] * 3), (0.3, [True] * 3)]:
        pool = DecodePool(PyAVDecoder(), UniformSampler(), SMALL, 0, max_damaged=most)
        names = ["damaged64.mp4", "truncated97.mp4", "cut97.ts"]
        samples = [pool.submit(Question(n, "?", str(found / n)), 32).result() for n in names]
        pool.close()
        assert [sample.clip is not None for sample in samples] == expected
        for name, sample in zip(names, samples, strict=True):
            assert sample.error is None or f"{name}: " in sample.error


def test_slides(found):
    path = found / "slides.mp4"
    clip = decode(path, window=Window(12.0, 18.0))
    assert (clip.frame_indices, clip.times_s) == ((1, 1), (12.0, 12.0))
    assert torch.equal(clip.frames, truth(path, clip))
    assert decode(path).frame_indices == (0, 1, 2, 3, 4, 4)
    with pytest.raises(VideoError, match="has no frame from 50 s"):
        decode(path, window=Window(50.0))


def test_pictures(found):
    clip = decode_image(str(found / "text.png"), SMALL)
    image = clip.frames[0].float().mean(0)
    assert (image > 250).float().mean() > 0.5  # white ground
    assert image.min() < 60  # black text
    clip = decode_animation(str(found / "circle.gif"), 32, UniformSampler(), SMALL)
    assert (clip.num_source_frames, clip.num_frames) == (30, 30)
    assert clip.fps == pytest.approx(100 / 7)
    assert torch.unique(clip.frames, dim=0).shape[0] >= 15
