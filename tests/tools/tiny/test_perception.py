"""Labels of pairs of frames, and a vision tower that learns them."""

import numpy as np
import torch

from tools.tiny.model import build_model_folder
from tools.tiny.perception import (
    MAX_STEP,
    NO_FLASH,
    Labels,
    Probe,
    draw_pairs,
    label_pairs,
    train_vision,
)
from vrts.demo.scenes import COLOURS, NUM_FRAMES, random_scene
from vrts.models.vlm.policy import TransformersPolicy


def test_pairs_ascend_and_the_last_shows_the_flash():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = random_scene(rng)
        pairs = draw_pairs(scene, 4, rng)
        assert len(pairs) == 4
        assert all(0 <= a < b < NUM_FRAMES and b - a <= MAX_STEP for a, b in pairs)
        assert pairs[-1][0] == scene.flash_start


def test_labels_say_what_a_pair_shows():
    scene = random_scene(np.random.default_rng(2), changes=True)
    change, flash = scene.change_frame, scene.flash_start
    apart = (flash + 10) % (NUM_FRAMES - 4)
    labels = label_pairs(
        scene, [(change - 2, change - 1), (change - 1, change), (flash, flash + 1), (apart, apart)]
    )
    colours = list(COLOURS)
    assert [colours[i] for i in labels.colour[:2]] == [scene.colour, scene.later_colour]
    assert colours[int(labels.flash[2])] == scene.flash_colour
    assert int(labels.flash[3]) == NO_FLASH


def test_labels_follow_the_shape():
    scene = random_scene(np.random.default_rng(3))
    first, last = label_pairs(scene, [(0, 1), (NUM_FRAMES - 2, NUM_FRAMES - 1)]).centre
    axis = 0 if scene.direction in ("left", "right") else 1
    sign = 1 if scene.direction in ("right", "down") else -1
    moved = last - first
    assert sign * float(moved[axis]) > 1.8
    assert abs(float(moved[1 - axis])) < 1e-6


def test_probe_averages_the_tokens_of_each_pair():
    torch.manual_seed(0)
    probe = Probe(8)
    labels = Labels(torch.tensor([0, 3]), torch.tensor([NO_FLASH, 1]), torch.zeros(2, 2))
    features = torch.randn(8, 8)
    within = features.view(2, 4, 8)[:, [2, 0, 3, 1]].reshape(8, 8)
    across = features.view(2, 4, 8)[[1, 0]].reshape(8, 8)
    loss = probe.loss(features, labels)
    assert torch.allclose(loss, probe.loss(within, labels))
    assert not torch.allclose(loss, probe.loss(across, labels))


def test_a_few_steps_lower_the_loss_and_leave_the_language_model(tmp_path):
    build_model_folder(tmp_path, seed=0)
    policy = TransformersPolicy(str(tmp_path), freeze_vision=False, dtype="float32")
    policy.load()
    language = policy.base.model.language_model
    before = {name: p.clone() for name, p in language.named_parameters()}
    rng = np.random.default_rng(0)
    losses = list(train_vision(policy, 40, 2e-3, rng, num_scenes=8))
    # chance is ln 6 + ln 7 + about 0.4
    assert np.mean(losses[:3]) > 3
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    assert all(torch.equal(before[name], p) for name, p in language.named_parameters())
