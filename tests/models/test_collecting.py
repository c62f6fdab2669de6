"""Dynamic sampling and T-GRPO's bonus, against plain simulations, on one and on two processes."""

import random
import threading
from contextlib import nullcontext

import pytest
import torch

from tests.models.conftest import make_sample
from vrts.models.collecting import Collector
from vrts.models.groups import join
from vrts.models.policy import Policy, Prompts, Scores
from vrts.models.rewards import Reward
from vrts.models.temporal import TemporalReward, shuffle_frames, temporal_bonus
from vrts.types import Clip, InputError, Question, Rollout, Sample

G = 4


class Scripted(Policy):
    """Says what a table holds for a question, in order or on shuffled frames."""

    def __init__(self, said: dict[str, list[str]], shuffled: dict[str, list[str]] | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.said, self.shuffled = said, shuffled or {}
        self.asked: list[list[str]] = []
        self.order: dict[str, torch.Tensor] = {}
        """Frames in order; without them all count as in order."""

    loaded = True

    def load(self) -> None: ...

    def refuses(self, sample, max_new_tokens):
        return None

    def encode(self, samples, max_new_tokens):
        self.frames = {s.question.id: s.clip.frames for s in samples}
        return Prompts(tuple(s.question for s in samples))

    def rollout(self, prompts, sampling, seeds, max_new_tokens):
        assert len(seeds) == len(prompts.questions) * len(sampling)
        self.asked.append([q.id for q in prompts.questions])
        texts = []
        for q in prompts.questions:
            in_order = torch.equal(self.order.get(q.id, self.frames[q.id]), self.frames[q.id])
            texts += (self.said if in_order else self.shuffled)[q.id][: len(sampling)]
        lengths = torch.tensor([max(len(t), 1) for t in texts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.tensor(seeds)[:, None] % 97 * mask
        return Rollout(ids, mask, -ids.float(), lengths < max_new_tokens, tuple(texts))

    def score(self, prompts, rollout, temperature):
        return Scores(rollout.logprobs, rollout.logprobs)

    def adapter_disabled(self):
        return nullcontext()

    def save_pretrained(self, folder) -> None: ...

    def fingerprint(self):
        return {}


class Number(Reward):
    """The completion as a number of characters."""

    name = "number"

    def score(self, completions, questions):
        return [float(len(c.text)) for c in completions]


def collector(policy, num_groups, temporal=None, rewards=None) -> Collector:
    return Collector(policy, rewards or [Number()], temporal, G, num_groups, 9, 1.0, 0)


def alone(x: torch.Tensor) -> torch.Tensor:
    return x


class Together:
    """A mean over two threads that stands in for one over two processes."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=20)
        self.values: list[torch.Tensor | None] = [None, None]
        self.calls = [0, 0]

    def reduce(self, rank: int):
        def mean(x: torch.Tensor) -> torch.Tensor:
            self.values[rank] = x
            self.calls[rank] += 1
            self.barrier.wait()
            result = (self.values[0] + self.values[1]) / 2
            self.barrier.wait()
            return result

        return mean

    def run(self, functions) -> list:
        results = [None, None]

        def call(rank: int) -> None:
            try:
                results[rank] = functions[rank](self.reduce(rank))
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=call, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.barrier.broken
        return results


def batch(rng: random.Random, count: int, start: int = 0) -> tuple[list[Sample], dict]:
    """Samples, and completions of which half of the groups agree."""
    samples = [make_sample(start + i, 4, (28, 28), "Which?") for i in range(count)]
    said = {}
    for sample in samples:
        lengths = [rng.randint(1, 6)] * G
        if rng.random() < 0.5:
            lengths[rng.randrange(G)] += 1
        said[sample.question.id] = ["x" * n for n in lengths]
    return samples, said


def useful(said: dict, sample: Sample) -> bool:
    return len({len(text) for text in said[sample.question.id]}) > 1


def plain_choice(samples, said, rounds: int, size: int) -> list[str]:
    tried = samples[: rounds * size]
    if rounds == 1:
        return [s.question.id for s in tried]
    chosen = [s for s in tried if useful(said, s)] + [s for s in tried if not useful(said, s)]
    return [s.question.id for s in chosen[:size]]


def plain_rounds(samples, said, size: int) -> int:
    """Rounds that one process alone makes."""
    rounds = 1
    while rounds * size < len(samples):
        if sum(useful(said, s) for s in samples[: rounds * size]) >= size:
            break
        rounds += 1
    return rounds


@pytest.mark.parametrize("seed", range(12))
def test_useful_groups_are_sampled_until_there_are_enough(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 3)
    samples, said = batch(rng, rng.randint(1, 8))
    policy = Scripted(said)
    found = collector(policy, size)(samples, 0, alone)
    rounds = plain_rounds(samples, said, size)
    assert len(policy.asked) == rounds
    ids = [s.question.id for s in found.groups.samples]
    assert ids == plain_choice(samples, said, rounds, size)
    assert [q.id for q in found.prompts.questions] == ids
    assert found.groups.rollout.texts == tuple(text for i in ids for text in said[i])
    assert found.groups.total.tolist() == [len(text) for i in ids for text in said[i]]
    assert found.groups.rollout.lengths.tolist() == [len(text) for i in ids for text in said[i]]
    tried = samples[: rounds * size]
    assert found.metrics["sampled_groups"] == len(tried)
    share = sum(not useful(said, s) for s in tried) / len(tried)
    assert found.metrics["zero_advantage_groups"] == pytest.approx(share)


@pytest.mark.parametrize("seed", range(12))
def test_two_processes_use_the_model_equally_often(seed):
    rng = random.Random(100 + seed)
    size = rng.randint(1, 3)
    # failed videos leave one of them with fewer samples
    parts = [batch(rng, 6, 0), batch(rng, rng.randint(1, 6), 10)]
    policies = [Scripted(said) for _, said in parts]
    together = Together()
    results = together.run(
        [
            lambda reduce, p=p, s=s: collector(p, size)(s, 0, reduce)
            for p, (s, _) in zip(policies, parts, strict=True)
        ]
    )
    rounds = max(plain_rounds(samples, said, size) for samples, said in parts)
    assert [len(policy.asked) for policy in policies] == [rounds] * 2
    assert together.calls[0] == together.calls[1] == rounds
    for found, (samples, said) in zip(results, parts, strict=True):
        ids = [s.question.id for s in found.groups.samples]
        assert ids == plain_choice(samples, said, rounds, size)
        assert found.metrics["sampled_groups"] == min(len(samples), rounds * size)


@pytest.mark.parametrize("num_groups", [None, 2])
@pytest.mark.parametrize("temporal", [None, TemporalReward()])
def test_a_process_without_samples_takes_part(num_groups, temporal):
    samples, said = batch(random.Random(0), 6)
    together = Together()
    full, empty = together.run(
        [
            lambda reduce: collector(Scripted(said, said), num_groups, temporal)(
                samples, 0, reduce
            ),
            lambda reduce: collector(Scripted({}), num_groups, temporal)([], 0, reduce),
        ]
    )
    assert empty is None
    assert len(full.groups.samples) == (num_groups or 6)
    assert together.calls[0] == together.calls[1]


def test_without_dynamic_sampling_the_whole_batch_is_rolled_out_once():
    samples, said = batch(random.Random(1), 5)
    policy = Scripted(said)
    found = collector(policy, None)(samples, 0, alone)
    assert policy.asked == [[s.question.id for s in samples]]
    assert list(found.groups.samples) == samples


def test_joined_groups_are_taken_apart_again():
    samples, said = batch(random.Random(2), 5)
    parts = [collector(Scripted(said), None)([s], 0, alone).groups for s in samples]
    whole = join(parts)
    for b, part in enumerate(parts):
        again = whole.take([b])
        assert again.samples == part.samples
        assert again.rollout.texts == part.rollout.texts
        for name in ("completion_ids", "completion_mask", "logprobs", "finished"):
            assert torch.equal(getattr(again.rollout, name), getattr(part.rollout, name))
        assert torch.equal(again.rewards["number"], part.rewards["number"])


# ---- T-GRPO


@pytest.mark.parametrize("seed", range(5))
def test_bonus_equals_the_plain_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(6, G, generator=generator).round(decimals=1)
    shuffled = torch.rand(6, 2, generator=generator).round(decimals=1)
    got = temporal_bonus(scores, shuffled, alpha=0.3, mu=0.8, min_score=0.1)
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


def picture(index: int) -> Sample:
    frames = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    question = Question(f"p{index}", "Which?", "a.png", options=("red", "blue"), gold="A")
    return Sample(question, Clip(frames, (0,), 1.0, 1))


def test_right_answers_of_groups_that_need_the_order_get_the_bonus():
    right, wrong = "A", "B"
    videos = [make_sample(i, 8, (28, 28), "Which?") for i in range(3)]
    said = {
        "q0": [right, right, wrong, wrong],  # 0.5 in order, 0 shuffled: a bonus
        "q1": [right, wrong, wrong, wrong],  # 0.25 in order, 1 shuffled: none
        "q2": [right, right, right, right],  # 1 in order, 1 shuffled: at least 0.8 of it
        "p9": [right, right, wrong, wrong],
    }
    shuffled = {"q0": [wrong] * 2, "q1": [right] * 2, "q2": [right] * 2}
    policy = Scripted(said, shuffled)
    for sample in [*videos, picture(9)]:
        policy.order[sample.question.id] = sample.clip.frames
    found = collector(policy, None, TemporalReward())([*videos, picture(9)], 0, alone)
    bonus = found.groups.rewards["temporal"].view(-1, G)
    assert bonus[0].tolist() == pytest.approx([0.3, 0.3, 0, 0])
    assert bonus[1].tolist() == [0] * 4
    assert bonus[2].tolist() == pytest.approx([0.3] * 4)
    assert bonus[3].tolist() == [0] * 4
    assert found.groups.total.view(-1, G)[0].tolist() == pytest.approx([1.3, 1.3, 1, 1])
    assert policy.asked == [["q0", "q1", "q2"], ["q0", "q1", "q2", "p9"]]


def test_rewards_are_float32_whatever_the_default_dtype():
    """Lightning's bf16-true sets bfloat16, in which 1 + 0.3 is not 1.3 and 1/3 not 1/3."""
    policy = Scripted({"q0": ["A", "A", "B", "B"]}, {"q0": ["B"] * 3})
    sample = make_sample(0, 8, (28, 28), "Which?")
    policy.order["q0"] = sample.clip.frames
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = collector(policy, 1, TemporalReward(num_generations=3))([sample], 0, alone)
    finally:
        torch.set_default_dtype(torch.float32)
    groups = found.groups
    assert groups.rewards["temporal"].dtype == groups.total.dtype == torch.float32
    assert groups.total.tolist() == pytest.approx([1.3, 1.3, 1, 1], rel=1e-6)


def test_pictures_alone_are_not_asked_twice_unless_another_process_has_videos():
    said = {"p1": ["A"] * G, "q2": ["A"] * G}
    alone_policy = Scripted(said, said)
    collector(alone_policy, None, TemporalReward())([picture(1)], 0, alone)
    assert alone_policy.asked == [["p1"]]
    policies = [Scripted(said, said), Scripted(said, said)]
    videos = [make_sample(2, 4, (28, 28), "Which?")]
    Together().run(
        [
            lambda reduce: collector(policies[0], None, TemporalReward())([picture(1)], 0, reduce),
            lambda reduce: collector(policies[1], None, TemporalReward())(videos, 0, reduce),
        ]
    )
    assert policies[0].asked == [["p1"], ["p1"]]
    assert policies[1].asked == [["q2"], ["q2"]]


def test_a_question_without_gold_answer_is_named():
    sample = make_sample(1, 4, (28, 28), "Which?")
    unknown = Question("u", "Which?", "a.mp4", options=("x", "y"), source="train.json:9")
    with pytest.raises(InputError, match=r"train\.json:9: no gold answer"):
        collector(Scripted({"u": ["A"] * G}), None, TemporalReward())(
            [Sample(unknown, sample.clip)], 0, alone
        )
