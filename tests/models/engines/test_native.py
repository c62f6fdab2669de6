"""Continuous batching: what a request gets is what it would get alone, whatever is decoded next to
it, in whatever memory."""

import dataclasses
import functools
import gc
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.conftest import make_sample
from tests.models.engines.running import CPU, make_engine, tokens_of
from tests.models.vlm.test_policy import image_sample, perturb_adapter
from vrts.models.attention.kv_cache import KVCache, capacity_of
from vrts.models.engines.engine import Request
from vrts.models.engines.native import NativeEngine
from vrts.models.vlm.loading import Lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import InputError, SamplingParams

SAMPLING = [
    SamplingParams(),
    SamplingParams(1.3, 0.8, 9, presence_penalty=0.4, frequency_penalty=0.2),
    SamplingParams(0.0),
    SamplingParams(0.7, stop=("e",)),
    SamplingParams(0.0, frequency_penalty=1.0),
]
TOKEN_BYTES = 3 * 2 * 2 * 24 * 4
"""Keys and values of a token in the tiny model."""


@pytest.fixture(scope="module")
def policy(model_folder) -> TransformersPolicy:
    """One token in twenty ends a completion."""
    policy = TransformersPolicy(
        str(model_folder), prompt=PromptTemplate(preamble=""), dtype="float32"
    )
    policy.load()
    policy.network().end_ids = torch.arange(0, policy.network().vocab_size, 20)
    return policy.eval()


@pytest.fixture(scope="module")
def prompts(policy):
    """Of very different length; the first two share a pool of the cache."""
    found = policy.network().encode(
        [
            make_sample(0, 4, (56, 56), "Which?"),
            make_sample(1, 4, (56, 56), "Which one?"),
            make_sample(2, 16, (84, 84), "What colour is the circle after seven seconds?"),
            image_sample(3, (56, 84)),
        ]
    )
    sizes = [capacity_of(p.num_tokens) for p in found]
    assert sizes[0] == sizes[1]
    assert sizes[2] >= 2 * sizes[0]
    assert len({p.num_tokens for p in found}) == 4
    return found


@pytest.fixture(scope="module")
def alone(policy, prompts):
    """A completion, when nothing else is decoded."""
    engine = make_engine(policy, max_rows=1)

    @functools.cache
    def sample(prompt: int, sampling: int, seed: int, length: int):
        request = Request(prompts[prompt], (SAMPLING[sampling],), (seed,), length)
        (result,) = engine.generate([request])
        engine.release()
        return result.completions[0]

    return sample


def check_same(got, want) -> None:
    assert tokens_of(got) == tokens_of(want)
    assert got.text == want.text
    assert got.finished == want.finished
    assert got.max_new_tokens == want.max_new_tokens
    assert not got.cancelled
    assert (got.logprobs - want.logprobs).abs().max() <= 1e-5


def plan_request(number: int) -> tuple[int, list[tuple[int, int]], int]:
    """Prompt, sampling and seed of each completion, and limit, from one number."""
    draw = random.Random(number)
    rows = [(draw.randrange(len(SAMPLING)), draw.randrange(3)) for _ in range(draw.randint(1, 5))]
    return draw.randrange(4), rows, draw.choice([1, 4, 30])


def make_request(prompts, plan, should_stop=None) -> Request:
    prompt, rows, length = plan
    return Request(
        prompts[prompt],
        tuple(SAMPLING[kind] for kind, _ in rows),
        tuple(seed for _, seed in rows),
        length,
        should_stop,
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.sampled_from([1, 2, 3, 5, 8, 64]),
    st.floats(1.0, 4.0),
    st.integers(1, 4),
    st.sampled_from([1, 3]),
)
def test_a_request_gets_what_it_would_get_alone(
    policy, prompts, alone, numbers, max_rows, memory, at_once, look_every
):
    """Requests come while others are decoded; there is memory for the largest one, or some more."""
    plans = [plan_request(number) for number in numbers]
    largest = max(capacity_of(prompts[p].num_tokens) + length for p, _, length in plans)
    gigabytes = int(largest * memory) * TOKEN_BYTES / 1e9
    engine = make_engine(policy, max_rows=max_rows, max_kv_gb=gigabytes)
    engine._look_every = look_every
    requests = {id(r): (r, plan) for plan in plans for r in [make_request(prompts, plan)]}
    coming = [r for r, _ in requests.values()]
    results = {}
    while coming or engine.num_pending:
        for request in coming[:at_once]:
            engine.add(request)
        del coming[:at_once]
        for result in engine.step():
            assert id(result.request) not in results
            results[id(result.request)] = result
        assert engine._num_rows <= max_rows
        assert engine._batch is None or engine._batch.num_bytes <= gigabytes * 1e9
        assert engine.num_pending + len(coming) + len(results) == len(requests)
    for key, (_, (prompt, rows, length)) in requests.items():
        assert results[key].error is None
        for got, (sampling, seed) in zip(results[key].completions, rows, strict=True):
            check_same(got, alone(prompt, sampling, seed, length))
    assert engine.step() == []


def test_prompts_are_prefilled_once(policy, prompts):
    engine = make_engine(policy, max_rows=2)
    plans = [(p, [(0, seed) for seed in range(4)], 8) for p in range(4)]
    engine.generate([make_request(prompts, plan) for plan in plans])
    assert engine.count.prefilled_tokens == sum(p.num_tokens for p in prompts)


def test_rows_are_kept_in_flight_where_lengths_differ(policy, prompts):
    """By 10x: four tokens or forty. One batch after the other would keep less than half."""
    network = policy.network()
    ends, network.end_ids = network.end_ids, torch.tensor([-1])
    try:
        engine = make_engine(policy, max_rows=12)
        draw = random.Random(0)
        plans = [(draw.randrange(2), [(0, 0)] * 3, draw.choice([4, 4, 4, 40])) for _ in range(40)]
        results = engine.generate([make_request(prompts, plan) for plan in plans])
    finally:
        network.end_ids = ends
    assert [r.completions[0].num_tokens for r in results] == [plan[2] for plan in plans]
    count = engine.count
    assert count.full_steps > 50
    assert count.full_rows >= 0.95 * 12 * count.full_steps
    assert count.rows == sum(3 * (plan[2] - 1) for plan in plans), "nothing is decoded in vain"


def test_the_first_that_waits_fits_whatever_the_others_need(policy, prompts):
    """The longest limit of those that wait, next to the longest prompt, is more than there is."""
    long, short = prompts[2], prompts[0]
    tokens = max(capacity_of(long.num_tokens) + 2, capacity_of(short.num_tokens) + 90)
    assert capacity_of(long.num_tokens) + 90 > tokens
    engine = make_engine(policy, max_kv_gb=tokens * TOKEN_BYTES / 1e9)
    requests = [
        Request(long, (SAMPLING[2],), (0,), 2),
        Request(short, (SAMPLING[2],), (0,), 90),
        Request(long, (SAMPLING[2],) * 3, (0,) * 3, 2),
    ]
    results = engine.generate(requests)
    assert [len(r.completions) for r in results] == [1, 1, 3]
    assert results[0].completions[0].num_tokens == results[2].completions[2].num_tokens


def test_later_requests_may_be_longer_and_have_more_completions(policy, prompts, alone):
    engine = make_engine(policy)
    first = (0, [(0, 0)], 4)
    later = (2, [(0, seed) for seed in range(5)], 30)
    engine.add(make_request(prompts, first))
    assert engine.step() == []
    engine.add(make_request(prompts, later))
    results = list(engine._drain())
    assert [len(result.completions) for result in results] == [1, 5]
    for seed, got in enumerate(results[1].completions):
        check_same(got, alone(2, 0, seed, 30))


def test_what_does_not_fit_even_alone_is_refused_with_the_numbers(policy, prompts):
    need = capacity_of(prompts[2].num_tokens) + 30
    engine = make_engine(policy, max_kv_gb=(need * TOKEN_BYTES - 1) / 1e9)
    plan = (2, [(0, 0)], 30)
    size = f"{need * TOKEN_BYTES / 1e9:.3g}"
    numbers = rf"{prompts[2].num_tokens} prompt tokens and 30 new .* {size} GB of KV cache"
    with pytest.raises(InputError, match=rf"^{numbers}"):
        engine.add(make_request(prompts, plan))
    with pytest.raises(InputError, match=rf"^question q2: {numbers}"):
        engine.generate([make_request(prompts, plan)])
    assert engine.num_pending == 0
    engine.add(make_request(prompts, (2, [(0, 0)], 29)))
    assert len(list(engine._drain())) == 1


def test_cancelled_requests_leave_nothing(policy, prompts, alone):
    engine = make_engine(policy, max_rows=3)
    plans = [(p, [(0, seed) for seed in range(3)], 30) for p in range(4)]
    for plan in plans:
        engine.add(make_request(prompts, plan))
    engine.step()
    engine.step()
    assert engine.num_pending >= 3
    engine.cancel()
    assert engine.num_pending == 0
    assert engine.step() == []
    assert engine.has_room()
    (result,) = engine.generate([make_request(prompts, plans[2])])
    for seed, got in enumerate(result.completions):
        check_same(got, alone(2, 0, seed, 30))


def test_room_is_for_rows_that_begin_at_once(policy, prompts):
    engine = make_engine(policy, max_rows=4)
    assert engine.has_room()
    engine.add(make_request(prompts, (2, [(0, seed) for seed in range(5)], 30)))
    assert not engine.has_room(), "its rows have no places yet"
    engine.step()
    assert not engine.has_room()
    while engine.num_pending:
        engine.step()
    assert engine.has_room()


@pytest.mark.parametrize("how", ["release", "cancel"])
def test_memory_goes_at_once(policy, prompts, how, monkeypatch):
    """No garbage collection comes before the update needs it."""
    kept = []
    init, grow = KVCache.__init__, torch.Tensor.new_zeros

    def noting(self, *args, **options):
        init(self, *args, **options)
        kept.append(weakref.ref(self._own))

    def noting_pool(self, *args, **options):
        out = grow(self, *args, **options)
        if out.dim() == 6:
            kept.append(weakref.ref(out))
        return out

    monkeypatch.setattr(KVCache, "__init__", noting)
    monkeypatch.setattr(torch.Tensor, "new_zeros", noting_pool)
    engine = make_engine(policy)
    requests = [make_request(prompts, (p, [(0, 0)] * 2, 30)) for p in range(4)]
    gc.disable()
    try:
        if how == "release":
            results = engine.generate(requests)
            engine.release()
            assert len(results) == 4
        else:
            for request in requests:
                engine.add(request)
            engine.step()
            engine.cancel()
        assert len(kept) == 3, "of rows, and of two pools of prompts"
        assert [buffer() for buffer in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_release_waits_for_what_is_pending(policy, prompts, alone):
    engine = make_engine(policy)
    engine.add(make_request(prompts, (0, [(0, 1)], 30)))
    engine.step()
    engine.release()
    (result,) = engine._drain()
    check_same(result.completions[0], alone(0, 0, 1, 30))


def test_should_stop_is_asked_about_new_ends_alone(policy, prompts):
    seen = []

    def never(texts, means):
        seen.append([text is not None for text in texts])
        assert all(mean < 0 for mean, text in zip(means, texts, strict=True) if text is not None)
        return False

    engine = make_engine(policy, max_rows=2)
    plan = (0, [(0, seed) for seed in range(5)], 30)
    (result,) = engine.generate([make_request(prompts, plan, never)])
    assert len(result.completions) == 5
    counts = [sum(ended) for ended in seen]
    assert counts == sorted(set(counts)), "each time more have ended"
    assert counts[-1] < 5


def test_a_request_may_have_any_samplings_and_seeds(policy, prompts, alone):
    """Equal seeds draw equal completions; others draw others."""
    engine = make_engine(policy)
    plan = (1, [(0, 0), (0, 1), (0, 0), (2, 0), (2, 1)], 30)
    (result,) = engine.generate([make_request(prompts, plan)])
    texts = [c.text for c in result.completions]
    assert texts[0] == texts[2] != texts[1]
    assert texts[3] == texts[4], "greedy"
    shifted = dataclasses.replace(result.request, seeds=(9, 0, 9, 9, 9))
    (other,) = engine.generate([shifted])
    assert other.completions[1].text == texts[0]
    assert other.completions[0].text != texts[0]


def test_training_may_follow_validation(load_policy, samples):
    """Which runs in inference mode, whose tensors may not be written outside of it."""
    policy = load_policy(lora=Lora(rank=4))
    perturb_adapter(policy)
    plan = (0, [(0, seed) for seed in range(3)], 12)
    engine = NativeEngine()
    engine.attach(policy, CPU, torch.bfloat16, will_shard=False)  # by configure_model
    with torch.inference_mode():
        engine.sync(policy)
        prompts = engine.encode(samples)
        (first,) = engine.generate([make_request(prompts, plan)])
    engine.sync(policy)  # without a release in between
    (second,) = engine.generate([make_request(prompts, plan)])
    assert [c.text for c in second.completions] == [c.text for c in first.completions]
    scores = policy.logprobs(prompts[:1], [second.completions], 1.0)
    scores.logprobs.sum().backward()
