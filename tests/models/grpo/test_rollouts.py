"""Rollouts of training: dynamic sampling and T-GRPO's bonus, against plain simulations."""

import random

import pytest
import torch

from tests.models.conftest import make_sample
from tests.models.scripted_engine import ScriptedEngine
from vrts.models.grpo.rollouts import RolloutWorker
from vrts.models.grpo.temporal import TemporalReward, shuffle_frames
from vrts.models.policy import Policy
from vrts.models.rewards import Reward
from vrts.types import Clip, InputError, Question, Sample

G = 4


class NoPolicy(Policy):
    """Is never called: the engine has a script."""

    loaded = True

    def load(self) -> None: ...

    def refuses(self, sample, max_new_tokens):
        return None

    def logprobs(self, prompts, completions, temperature):
        raise AssertionError("is not scored here")

    def adapter_disabled(self):
        raise AssertionError

    def save_pretrained(self, folder) -> None: ...

    def fingerprint(self):
        return {}


class Script(ScriptedEngine):
    """Completes from a table by question, on its frames in order or on others."""

    def __init__(self, script, shuffled=None, order=None):
        super().__init__(self.text_of, num_rows=100, length=lambda m, seeds: 3)
        self.script, self.shuffled, self.order = script, shuffled or {}, order or {}
        self.batches = []
        self.is_shuffled = []

    def encode(self, samples, known=None):
        self.batches.append([s.question.id for s in samples])
        self.is_shuffled = [
            not torch.equal(self.order.get(s.question.id, s.clip.frames), s.clip.frames)
            for s in samples
        ]
        return super().encode(samples, known)

    def generate(self, requests):
        self.tables = [self.shuffled if flag else self.script for flag in self.is_shuffled]
        out = []
        for request, table in zip(requests, self.tables, strict=True):
            self.table = table
            out += super().generate([request])
        return out

    def text_of(self, id, num_frames, m):
        return self.table[id][m]


class Length(Reward):
    """The number of characters."""

    name = "length"

    def score(self, completions, questions):
        return [float(len(c.text)) for c in completions]


def worker(engine, num_groups=None, temporal=None) -> RolloutWorker:
    return RolloutWorker(NoPolicy(), engine, [Length()], temporal, G, num_groups, 9, 1.0, 0)


def batch(rng: random.Random, count: int) -> tuple[list[Sample], dict]:
    """Samples, and completions of which half of the groups agree."""
    samples = [make_sample(i, 4, (28, 28), "Which?") for i in range(count)]
    script = {}
    for sample in samples:
        lengths = [rng.randint(1, 6)] * G
        if rng.random() < 0.5:
            lengths[rng.randrange(G)] += 1
        script[sample.question.id] = ["x" * n for n in lengths]
    return samples, script


def useful(script: dict, sample: Sample) -> bool:
    return len({len(text) for text in script[sample.question.id]}) > 1


@pytest.mark.parametrize("seed", range(12))
def test_useful_groups_are_sampled_until_there_are_enough(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 3)
    samples, script = batch(rng, rng.randint(1, 8))
    engine = Script(script)
    found = worker(engine, size)(samples, 0)
    rounds = 1
    while rounds * size < len(samples):
        if sum(useful(script, s) for s in samples[: rounds * size]) >= size:
            break
        rounds += 1
    tried = samples[: rounds * size]
    chosen = [s for s in tried if useful(script, s)] + [s for s in tried if not useful(script, s)]
    assert len(engine.batches) == rounds
    assert [g.sample for g in found.tried] == tried
    assert [g.sample for g in found.groups] == chosen[:size]
    for group in found.groups:
        texts = script[group.sample.question.id]
        assert [c.text for c in group.completions] == texts
        assert group.prompt.question == group.sample.question
        assert group.total.tolist() == group.rewards["length"].tolist() == [*map(len, texts)]
    metrics = found.metrics()
    assert metrics["sampled_groups"] == len(tried)
    share = sum(not useful(script, s) for s in tried) / len(tried)
    assert metrics["frac_reward_zero_std"] == pytest.approx(share)
    every = [float(len(t)) for s in tried for t in script[s.question.id]]
    assert metrics["reward/length"] == pytest.approx(sum(every) / len(every))
    assert found.sampled.num_completions == len(tried) * G


def test_without_dynamic_sampling_the_complete_batch_is_rolled_out_together():
    samples, script = batch(random.Random(1), 5)
    engine = Script(script)
    found = worker(engine)(samples, 0)
    assert engine.batches == [[s.question.id for s in samples]]
    assert [g.sample for g in found.groups] == samples


@pytest.mark.parametrize("num_groups", [None, 2])
def test_a_rank_without_samples_samples_nothing(num_groups):
    engine = Script({})
    found = worker(engine, num_groups, TemporalReward())([], 0)
    assert found.groups == found.tried == engine.batches == []
    assert found.metrics() == {}


# ---- T-GRPO


@pytest.mark.parametrize("seed", range(5))
def test_bonus_equals_the_plain_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(6, G, generator=generator).round(decimals=1)
    shuffled = torch.rand(6, 2, generator=generator).round(decimals=1)
    got = TemporalReward(alpha=0.3, mu=0.8).bonus(scores, shuffled)
    for b in range(6):
        p, p_shuffled = sum(scores[b].tolist()) / G, sum(shuffled[b].tolist()) / 2
        for g in range(G):
            right = scores[b, g] > 0.1
            want = 0.3 if right and p >= 0.8 * p_shuffled else 0.0
            assert got[b, g] == pytest.approx(want)


def test_frames_are_shuffled_and_nothing_else():
    sample = make_sample(1, 8, (28, 56), "Which?")
    shuffled = shuffle_frames(sample, 3)
    rows = sorted(range(8), key=lambda i: shuffled.clip.frames[i].flatten().tolist())
    want = sorted(range(8), key=lambda i: sample.clip.frames[i].flatten().tolist())
    assert torch.equal(shuffled.clip.frames[rows], sample.clip.frames[want])
    assert not torch.equal(shuffled.clip.frames, sample.clip.frames)
    assert torch.equal(shuffle_frames(sample, 3).clip.frames, shuffled.clip.frames)
    assert shuffled.question == sample.question
    assert shuffled.clip.sampled_fps == sample.clip.sampled_fps


def image(index: int) -> Sample:
    frames = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    question = Question(f"p{index}", "Which?", "a.png", options=("red", "blue"), gold="A")
    return Sample(question, Clip(frames, (0,), 1.0, 1))


def test_right_answers_of_groups_that_need_the_order_get_the_bonus():
    """Frames in order and at random are sampled together; images are sampled once."""
    right, wrong = "A", "B"
    videos = [make_sample(i, 8, (28, 28), "Which?") for i in range(3)]
    script = {
        "q0": [right, right, wrong, wrong],  # 0.5 in order, 0 shuffled: a bonus
        "q1": [right, wrong, wrong, wrong],  # 0.25 in order, 1 shuffled: none
        "q2": [right, right, right, right],  # 1 in order, 1 shuffled: at least 0.8 of it
        "p9": [right, right, wrong, wrong],
    }
    shuffled = {"q0": [wrong] * 2, "q1": [right] * 2, "q2": [right] * 2}
    samples = [*videos, image(9)]
    order = {s.question.id: s.clip.frames for s in samples}
    engine = Script(script, shuffled, order)
    groups = worker(engine, temporal=TemporalReward())(samples, 0).groups
    bonus = [g.rewards["temporal"].tolist() for g in groups]
    assert bonus[0] == pytest.approx([0.3, 0.3, 0, 0])
    assert bonus[1] == [0] * 4
    assert bonus[2] == pytest.approx([0.3] * 4)
    assert bonus[3] == [0] * 4
    assert groups[0].total.tolist() == pytest.approx([1.3, 1.3, 1, 1])
    assert engine.batches == [["q0", "q1", "q2", "p9", "q0", "q1", "q2"]]


def test_rewards_are_float32_whatever_the_default_dtype():
    """Lightning's bf16-true sets bfloat16, in which 1 + 0.3 is not 1.3 and 1/3 not 1/3."""
    sample = make_sample(0, 8, (28, 28), "Which?")
    engine = Script({"q0": ["A", "A", "B", "B"]}, {"q0": ["B"] * 3}, {"q0": sample.clip.frames})
    torch.set_default_dtype(torch.bfloat16)
    try:
        (group,) = worker(engine, 1, TemporalReward(num_generations=3))([sample], 0).groups
    finally:
        torch.set_default_dtype(torch.float32)
    assert group.rewards["temporal"].dtype == group.total.dtype == torch.float32
    assert group.total.tolist() == pytest.approx([1.3, 1.3, 1, 1], rel=1e-6)


def test_a_question_without_gold_answer_is_named():
    sample = make_sample(1, 4, (28, 28), "Which?")
    unknown = Question("u", "Which?", "a.mp4", options=("x", "y"), source="train.json:9")
    with pytest.raises(InputError, match=r"train\.json:9: no gold answer"):
        worker(Script({"u": ["A"] * G}), temporal=TemporalReward())(
            [Sample(unknown, sample.clip)], 0
        )
