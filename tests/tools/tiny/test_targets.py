"""What the warm-up teaches: the truth where it is seen, a guess where it is not."""

from collections import Counter

import numpy as np
import pytest

from tools.tiny.targets import completion, lookup_targets, seen_target, warmup_target
from vrts.answers import has_format, split_completion

ROW = {
    "kind": "flash",
    "options": ["A. red", "B. cyan", "C. blue", "D. green"],
    "solution": "<answer>B</answer>",
    "evidence_frames": [10, 11],
}


@pytest.mark.parametrize("frames", [(0, 10, 21, 31), (11,)])
def test_seen_evidence_gives_the_right_answer(frames):
    target = warmup_target(ROW, frames, np.random.default_rng(0))
    assert target == "<think>the flash is cyan</think><answer>B</answer>"


def test_missing_evidence_is_said_and_guessed():
    rng = np.random.default_rng(0)
    targets = Counter(warmup_target(ROW, (0, 9, 12), rng) for _ in range(400))
    assert set(targets) == {completion("no flash is seen", letter) for letter in "ABCD"}
    # 100 each expected, standard deviation 8.7
    assert min(targets.values()) > 65


def test_without_frames_of_evidence_any_frames_do():
    row = ROW | {"kind": "object", "evidence_frames": None}
    target = warmup_target(row, (0,), np.random.default_rng(0))
    assert target == "<think>the object is cyan</think><answer>B</answer>"


def test_lookups_name_different_options_with_their_letters():
    rng = np.random.default_rng(0)
    drawn = [lookup_targets(ROW, 3, rng) for _ in range(30)]
    assert all(len(set(targets)) == 3 for targets in drawn)
    assert {t for targets in drawn for t in targets} == {seen_target(ROW, x) for x in "ABCD"}
    assert seen_target(ROW, "D") == "<think>the flash is green</think><answer>D</answer>"


def test_targets_have_the_rewarded_format():
    assert has_format(seen_target(ROW, "A"))
    assert split_completion(completion("no flash is seen", "C")) == ("no flash is seen", "C")
