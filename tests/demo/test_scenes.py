"""Rendered scenes match their properties."""

import dataclasses

import numpy as np
import pytest

from vrts.demo.scenes import (
    BORDER,
    COLOURS,
    DIRECTIONS,
    NUM_FRAMES,
    RADIUS,
    SHAPES,
    SIZE,
    Scene,
    random_scene,
    render,
)

SCENES = [random_scene(np.random.default_rng(seed), bool(seed % 2)) for seed in range(60)]


def shape_mask(frame: np.ndarray, colour: str) -> np.ndarray:
    """Pixels of a colour inside the border."""
    mask = (frame == COLOURS[colour]).all(-1)
    mask[:BORDER] = mask[-BORDER:] = mask[:, :BORDER] = mask[:, -BORDER:] = False
    return mask


def test_all_properties_vary():
    for name, values in [
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("flash_colour", COLOURS),
        ("direction", DIRECTIONS),
        ("flash_length", (2, 3)),
    ]:
        assert {getattr(scene, name) for scene in SCENES} == set(values)


def test_change_only_where_asked_for():
    assert [scene.changes for scene in SCENES] == [bool(seed % 2) for seed in range(60)]


def test_same_seed_gives_the_same_scene():
    assert random_scene(np.random.default_rng(3)) == random_scene(np.random.default_rng(3))
    assert random_scene(np.random.default_rng(3)) != random_scene(np.random.default_rng(4))


@pytest.mark.parametrize("scene", SCENES[:12])
def test_flash_is_a_border_in_its_frames_and_no_others(scene):
    frames = render(scene)
    assert frames.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert frames.dtype == np.uint8
    shown = [i for i, frame in enumerate(frames) if (frame[0, 0] != scene.background).any()]
    assert tuple(shown) == scene.flash_frames
    for index in shown:
        assert (frames[index][:BORDER] == COLOURS[scene.flash_colour]).all()
        assert (frames[index][:, -BORDER:] == COLOURS[scene.flash_colour]).all()


@pytest.mark.parametrize("scene", SCENES[:12])
def test_shape_is_whole_in_every_frame_with_its_colour_of_the_moment(scene):
    frames = render(scene)
    areas = [
        shape_mask(frame, scene.shape_colour(index)).sum() for index, frame in enumerate(frames)
    ]
    # a shape that touched the border would lose pixels
    assert min(areas) > 0.85 * max(areas) > 100
    if scene.changes:
        before, after = scene.change_frame - 1, scene.change_frame
        assert (scene.shape_colour(before), scene.shape_colour(after)) == (
            scene.colour,
            scene.later_colour,
        )


@pytest.mark.parametrize("scene", SCENES[:12])
def test_shape_moves_in_its_direction(scene):
    frames = render(scene)
    centres = [
        np.argwhere(shape_mask(frames[i], scene.shape_colour(i))).mean(0)[::-1]
        for i in (0, NUM_FRAMES - 1)
    ]
    moved = centres[1] - centres[0]
    assert np.abs(moved - 14 * np.array(DIRECTIONS[scene.direction])).max() < 1


def test_shapes_differ():
    ys, xs = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    areas = {name: int(covers(xs, ys).sum()) for name, covers in SHAPES.items()}
    assert len(set(areas.values())) == len(SHAPES)
    assert areas["circle"] == pytest.approx(np.pi * RADIUS**2, rel=0.05)


def test_a_scene_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCENES[0].colour = "red"
    assert isinstance(SCENES[0], Scene)
