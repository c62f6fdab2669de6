"""The README's pictures show what a run recorded."""

import json

import numpy as np
from PIL import Image

from tools.pictures import draw_accuracy, draw_rounds, draw_shared_prefix
from vrts.demo.questions import OBJECT
from vrts.demo.videos import make_dataset
from vrts.types import Prediction, Question, Round


def colours(path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        assert image.mode == "P", "few colours, few bytes"
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3)))


def test_frames_of_each_round_are_those_of_the_video(tmp_path):
    annotations = make_dataset(tmp_path, num_videos=1, seed=5, kinds=(OBJECT,))
    row = json.loads(annotations.read_text())
    asked = Question("0", row["problem"], str(tmp_path / row["path"]), options=("red", "green"))
    rounds = tuple(
        Round(n, ("",) * 5, ("A", "B", None, "A", "A"), 0.6, times_s=tuple(np.linspace(0, 3.8, n)))
        for n in (2, 4)
    )
    draw_rounds(Prediction(asked, rounds, "A"), tmp_path / "rounds.png")
    with Image.open(tmp_path / "rounds.png") as image:
        columns = np.asarray(image.convert("L")) < 200  # frames are darker than the page
    in_a_row = columns.mean(1)
    assert in_a_row.max() > 1.5 * np.sort(in_a_row[in_a_row > 0.1])[0], "4 frames fill more than 2"


def test_accuracy_has_a_point_for_each_run(tmp_path):
    run = {"accuracy": 0.6, "stderr": 0.02, "mean_frames": 8.0}
    summary = {model: dict.fromkeys(("sparse", "dense", "s2d"), run) for model in ("base", "rl")}
    draw_accuracy(summary, tmp_path / "demo.png")
    assert any(red < 60 and blue > 150 for red, _, blue in colours(tmp_path / "demo.png"))


def test_a_shared_prompt_is_drawn_with_both_masks(tmp_path):
    draw_shared_prefix(tmp_path / "mask.png")
    assert {(224, 160, 48), (31, 119, 180)} <= colours(tmp_path / "mask.png")
