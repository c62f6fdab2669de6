"""Synthetic data sets: real files that readers and decoders take, the same each time."""

import json

import numpy as np

from vrts.data.readers.video_rts import VideoR1Reader
from vrts.data.video.frames import UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import Resolution
from vrts.demo.questions import FIRST, FLASH, LAST, MOTION, OBJECT
from vrts.demo.scenes import COLOURS, FPS, NUM_FRAMES, SIZE, random_scene, render
from vrts.demo.videos import make_dataset, write_video

RESOLUTION = Resolution(min_pixels=SIZE * SIZE, max_pixels=SIZE * SIZE)


def rows(annotations) -> list[dict]:
    return [json.loads(line) for line in annotations.read_text().splitlines()]


def test_colours_survive_encoding_and_decoding(tmp_path):
    scene = random_scene(np.random.default_rng(1))
    frames = render(scene)
    write_video(tmp_path / "a.mp4", frames)
    assert (tmp_path / "a.mp4").stat().st_size < 20_000
    clip = PyAVDecoder().decode(str(tmp_path / "a.mp4"), NUM_FRAMES, UniformSampler(), RESOLUTION)
    assert (clip.fps, clip.num_source_frames) == (FPS, NUM_FRAMES)
    decoded = clip.frames.permute(0, 2, 3, 1).numpy().astype(float)
    assert np.abs(decoded - frames).mean() < 12
    palette = np.array(list(COLOURS.values()))
    for index in scene.flash_frames:
        seen = decoded[index][:6].mean((0, 1))
        nearest = np.abs(palette - seen).sum(1).argmin()
        assert list(COLOURS)[nearest] == scene.flash_colour


def test_reader_takes_the_annotations(tmp_path):
    annotations = make_dataset(tmp_path, 4, seed=0, kinds=(OBJECT, FLASH, MOTION))
    questions = VideoR1Reader(str(annotations)).read()
    assert len(questions) == 12
    assert len({q.video for q in questions}) == 4
    for question, row in zip(questions, rows(annotations), strict=True):
        letter = question.gold
        assert row["solution"] == f"<answer>{letter}</answer>"
        assert question.metadata["kind"] in ("object", "flash", "motion")


def test_same_arguments_give_the_same_files(tmp_path):
    first, second = (make_dataset(tmp_path / name, 2, seed=5) for name in "ab")
    other = make_dataset(tmp_path / "c", 2, seed=6)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    videos = [(p.parent / "videos/00001.mp4").read_bytes() for p in (first, second, other)]
    assert videos[0] == videos[1] != videos[2]


def test_order_of_options_and_kinds_do_not_alter_the_videos(tmp_path):
    shuffled = make_dataset(tmp_path / "a", 3, seed=5, kinds=(OBJECT, FLASH))
    fixed = make_dataset(tmp_path / "b", 3, seed=5, kinds=(MOTION,), shuffle_options=False)
    for name in ("00000.mp4", "00002.mp4"):
        a, b = ((p.parent / "videos" / name).read_bytes() for p in (shuffled, fixed))
        assert a == b
    assert {row["kind"] for row in rows(fixed)} == {"motion"}
    assert all([o[3:] for o in row["options"]] == list(MOTION.choices) for row in rows(fixed))


def test_kinds_are_asked_only_where_they_suit(tmp_path):
    annotations = make_dataset(tmp_path, 4, seed=0, kinds=(OBJECT, FIRST, LAST))
    by_video: dict[str, list[str]] = {}
    for row in rows(annotations):
        by_video.setdefault(row["path"], []).append(row["kind"])
    assert sorted(by_video.values()) == [["first", "last"]] * 2 + [["object"]] * 2
