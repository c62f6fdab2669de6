"""Synthetic video questions: .mp4 files and an annotation file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from vrts.demo.questions import FLASH, OBJECT, QuestionKind, draw_options, question_row
from vrts.demo.scenes import FPS, Frames, random_scene, render

_ENCODER = {"preset": "ultrafast", "crf": "18", "threads": "1"}
"""One thread makes the bytes the same each time."""


def write_video(path: Path, frames: Frames) -> None:
    """Encode frames ``[T, H, W, C]`` as h264 in mp4, at `FPS` frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_ENCODER)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_dataset(
    folder: Path,
    num_videos: int,
    seed: int,
    kinds: Sequence[QuestionKind] = (OBJECT, FLASH),
    shuffle_options: bool = True,
) -> Path:
    """Write ``videos/*.mp4`` and ``questions.jsonl`` and return the path of the latter.

    They are the same for the same arguments and PyAV version. Each video has a question of every
    kind that fits its scene; the embedded model was trained on the default kinds.
    """
    changes = sorted({k.changes for k in kinds if k.changes is not None}) or [False]
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    annotations = folder / "questions.jsonl"
    problem_id = 0
    with annotations.open("w", encoding="utf-8") as file:
        for index in range(num_videos):
            # two generators: the order of options does not alter the videos
            video_rng, question_rng = (np.random.default_rng([seed, index, n]) for n in (0, 1))
            scene = random_scene(video_rng, changes[index % len(changes)])
            path = f"videos/{index:05d}.mp4"
            write_video(folder / path, render(scene))
            for kind in kinds:
                if not kind.suits(scene):
                    continue
                question = kind.question(scene)
                options = draw_options(kind, question.answer, shuffle_options, question_rng)
                row = question_row(problem_id, kind, question, options, path)
                file.write(json.dumps(row) + "\n")
                problem_id += 1
    return annotations
