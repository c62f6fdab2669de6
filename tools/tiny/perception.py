"""The first lesson of the warm-up: the vision tower learns to see.

Pairs of frames, the vision tower's temporal patches, are labelled with what they show, and linear
probes on the tower's features learn the labels together with it. The probes are thrown away. A
language model learns to read such features within 150 steps; features of a random tower it did
not learn to read in 300, and the tower learnt nothing from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vrts.demo.scenes import COLOURS, FPS, NUM_FRAMES, SIZE, TRAVEL, Scene, random_scene, render
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Clip, Question, Sample

NO_FLASH = len(COLOURS)
"""Class of a pair of frames without a flash."""
MAX_STEP = 5
"""Frames between the two of a pair, at most."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What ``K`` pairs of frames show."""

    colour: torch.Tensor
    """int64 ``[K]``, index of the shape's colour in the second frame."""
    flash: torch.Tensor
    """int64 ``[K]``, index of the flash's colour, or `NO_FLASH`."""
    centre: torch.Tensor
    """float32 ``[K, 2]``, x and y of the shape's centre, from -1 to 1 within its travel."""


class Probe(nn.Module):
    """Linear maps from the mean feature of a pair of frames to its labels."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.colour = nn.Linear(hidden_size, len(COLOURS))
        self.flash = nn.Linear(hidden_size, len(COLOURS) + 1)
        self.centre = nn.Linear(hidden_size, 2)

    def loss(self, features: torch.Tensor, labels: Labels) -> torch.Tensor:
        """Sum of the three losses.

        Args:
            features: ``[K * tokens, D]``, video tokens pair after pair.
            labels: of K pairs.
        """
        pairs = features.view(len(labels.colour), -1, self.hidden_size).mean(1)
        # normalised as in front of the language model's first layer
        pairs = F.rms_norm(pairs, (self.hidden_size,))
        return (
            F.cross_entropy(self.colour(pairs), labels.colour)
            + F.cross_entropy(self.flash(pairs), labels.flash)
            + F.mse_loss(self.centre(pairs), labels.centre)
        )


def draw_pairs(scene: Scene, num_pairs: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw pairs of frames, the last of them with the beginning of the flash."""
    starts = [*rng.integers(0, NUM_FRAMES - 1, num_pairs - 1).tolist(), scene.flash_start]
    steps = rng.integers(1, MAX_STEP + 1, num_pairs).tolist()
    return [(a, min(a + step, NUM_FRAMES - 1)) for a, step in zip(starts, steps, strict=True)]


def label_pairs(scene: Scene, pairs: list[tuple[int, int]]) -> Labels:
    """What pairs of frames of one scene show."""
    colours = list(COLOURS)
    flash = set(scene.flash_frames)
    centres = [np.mean([scene.centre(a), scene.centre(b)], axis=0) for a, b in pairs]
    return Labels(
        colour=torch.tensor([colours.index(scene.shape_colour(b)) for _, b in pairs]),
        flash=torch.tensor(
            [colours.index(scene.flash_colour) if flash & {a, b} else NO_FLASH for a, b in pairs]
        ),
        centre=torch.tensor(
            (np.array(centres) - SIZE / 2) / (TRAVEL / 2), dtype=torch.float32
        ).clamp(-2, 2),
    )


def train_vision(
    policy: TransformersPolicy,
    num_steps: int,
    learning_rate: float,
    rng: np.random.Generator,
    num_scenes: int = 24,
    num_pairs: int = 4,
) -> Iterator[float]:
    """Train the vision tower with probes on freshly drawn scenes.

    Args:
        policy: loaded; its vision tower is changed in place.
        num_steps: optimizer steps.
        learning_rate: falls to 0 in the second half.
        rng: draws scenes and pairs.
        num_scenes: scenes in a step.
        num_pairs: pairs of frames of each scene.

    Yields:
        The loss of each step.
    """
    tower = policy.base.model.visual
    probe = Probe(policy.base.config.text_config.hidden_size)
    parameters = [*tower.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98))
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, 2 * (1 - step / num_steps))
        samples, labels = [], []
        for _ in range(num_scenes):
            scene = random_scene(rng, changes=bool(rng.integers(2)))
            pairs = draw_pairs(scene, num_pairs, rng)
            indices = [index for pair in pairs for index in pair]
            frames = torch.from_numpy(render(scene)[indices]).permute(0, 3, 1, 2)
            clip = Clip(frames, tuple(indices), float(FPS), NUM_FRAMES)
            samples.append(Sample(Question("", "", ""), clip))
            labels.append(label_pairs(scene, pairs))
        prompts = cast(list[VideoPrompt], policy.network().encode(samples))
        patches = torch.cat([prompt.patches(policy.device) for prompt in prompts])
        grids = [prompt.grid for prompt in prompts]
        features = policy.family.features(policy.base, patches, grids)
        loss = probe.loss(
            features,
            Labels(
                torch.cat([x.colour for x in labels]),
                torch.cat([x.flash for x in labels]),
                torch.cat([x.centre for x in labels]),
            ),
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield float(loss.detach())
