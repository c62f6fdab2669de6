"""Penalties, stop texts and early stops of sampling, each against the plain computation."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.models.engines.running import make_engine, make_requests, sample, tokens_of
from tests.models.naive import plain_logits
from tools.tiny.tokenizer import build_tokenizer
from vrts.models.engines.sampling import RowSampler, penalise, row_uniforms
from vrts.models.engines.stop_texts import StopTexts
from vrts.types import Completion, SamplingParams

TOKENIZER = build_tokenizer()
L = 40


@pytest.fixture
def policy(load_policy):
    """One token in forty ends a completion."""
    policy = load_policy()
    vocab = policy.base.config.text_config.vocab_size
    policy.network().end_ids = torch.arange(7, vocab, 40)
    return policy


def roll(
    policy, samples, sampling: Sequence[SamplingParams], should_stop=None, seed=0, **options
) -> list[Completion]:
    """N completions, question-major."""
    _, groups = sample(policy, samples, sampling, L, seed, should_stop, **options)
    return [completion for group in groups for completion in group]


def plain_draw(logits: torch.Tensor, ids: list[int], s: SamplingParams, uniform: float) -> int:
    """One token of one completion, without any batch; logits are float32 ``[V]``."""
    logits = logits.double().clone()
    for token, count in Counter(ids).items():
        logits[token] -= s.presence_penalty + s.frequency_penalty * count
    if s.temperature == 0:
        return int(logits.argmax())
    probs, order = (logits / s.temperature).softmax(-1).sort(descending=True)
    if s.top_k:
        probs[s.top_k :] = 0
    if s.top_p < 1:
        probs = probs / probs.sum()
        enough = int((probs.cumsum(0) < s.top_p).sum()) + 1
        probs[enough:] = 0
    by_token = torch.zeros_like(logits).scatter(0, order, probs / probs.sum())
    return int((by_token.cumsum(0) <= uniform).sum())


PENALISED = [
    SamplingParams(0.8, 0.9, 50, presence_penalty=0.4, frequency_penalty=0.2),
    SamplingParams(presence_penalty=8.0),
    SamplingParams(0.5, frequency_penalty=3.0),
    SamplingParams(0.0, presence_penalty=0.4, frequency_penalty=0.2),
    SamplingParams(1.1),
    SamplingParams(0.0),
]


def test_penalties_equal_a_plain_draw_token_by_token(policy, samples):
    completions = roll(policy, samples, PENALISED)
    prompts = policy.network().encode(samples)
    G = len(PENALISED)
    uniforms = torch.stack([row_uniforms(seed, L) for seed in range(len(samples) * G)])
    repeats = 0
    for row, completion in enumerate(completions):
        ids, sampling = tokens_of(completion), PENALISED[row % G]
        with torch.no_grad():
            logits = plain_logits(policy, prompts[row // G], completion.token_ids)
        drawn = [
            plain_draw(logits[n], ids[:n], sampling, float(uniforms[row, n]))
            for n in range(len(ids))
        ]
        assert drawn == ids
        repeats += sum(token in ids[:n] for n, token in enumerate(ids))
        # what is recorded is how likely the model finds a token, without any penalty
        own = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
        own = own.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert (completion.logprobs - own).abs().max() < 1e-4
    assert repeats > 20, "nothing came twice: the test shows nothing"
    without = [SamplingParams(s.temperature, s.top_p, s.top_k) for s in PENALISED]
    others = roll(policy, samples, without)
    changed = [tokens_of(a) != tokens_of(b) for a, b in zip(completions, others, strict=True)]
    assert not any(changed[4::6] + changed[5::6]), "a row without penalties changed"
    assert any(changed)


def test_penalties_follow_rows_to_other_places():
    """Counts belong to a completion, wherever among the rows it is."""
    sampler = RowSampler(3, 4, torch.device("cpu"))
    sampler.penalises = True
    sampler.enter(torch.arange(3), [SamplingParams(0, frequency_penalty=1.0)] * 3)
    logits = torch.tensor([[3.0, 2.5, 0.0, 0.0]])
    uniforms = torch.zeros(3, dtype=torch.float64)

    def draw(*rows: int) -> list[int]:
        at = torch.tensor(rows)
        return sampler(logits.expand(len(rows), -1), uniforms[: len(rows)], at)[0].tolist()

    assert draw(2, 0, 1) == [0, 0, 0]
    assert draw(1) == [1]
    assert draw(1) == [0]
    sampler.move(torch.tensor([0]), torch.tensor([1]))  # held 0, 1 and 0
    assert draw(0) == [1]
    sampler.enter(torch.tensor([0]), [SamplingParams(0, frequency_penalty=1.0)])
    assert draw(0) == [0], "a new completion holds nothing"


def test_penalise():
    got = penalise(
        torch.zeros(2, 3),
        torch.tensor([[0, 1, 2], [0, 1, 2]]),
        torch.tensor([[0.5], [0.0]]),
        torch.tensor([[0.25], [-1.0]]),
    )
    assert got.tolist() == [[0.0, -0.75, -1.0], [0.0, 1.0, 2.0]]


@settings(deadline=None)
@given(st.data())
def test_a_stop_text_is_found_at_its_last_token(data):
    """Looks now and then find what a look at every token finds."""
    ids = data.draw(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=2, max_size=30))
    text = TOKENIZER.decode(ids, skip_special_tokens=True)
    assume(text)
    start = data.draw(st.integers(0, len(text) - 1))
    stops = [text[start : data.draw(st.integers(start + 1, start + 12))], "</answer>"]
    assume("\N{REPLACEMENT CHARACTER}" not in stops[0])
    want = next(
        n
        for n in range(1, len(ids) + 1)
        if any(s in TOKENIZER.decode(ids[:n], skip_special_tokens=True) for s in stops)
    )
    found, seen = None, 0
    finder = StopTexts(TOKENIZER, stops)
    while found is None and seen < len(ids):
        until = min(seen + data.draw(st.integers(1, 9)), len(ids))
        found, seen = finder.end(ids[:until], seen), until
    assert found == want


def middle(text: str) -> str:
    """Three letters of a text, not at its start."""
    places = range(len(text) // 3, len(text) - 3)
    return next((text[n : n + 3] for n in places if text[n : n + 3].isascii()), "</answer>")


@pytest.mark.parametrize("every", [1, 3, 8])
def test_stop_texts_cut_what_is_sampled_without_them(policy, samples, every):
    """Also where rows are decoded on until somebody looks."""
    plain = roll(policy, samples, [SamplingParams()] * 4)
    # for two of the four samples a text from each of its completions
    stops = {g: tuple(middle(c.text) for c in plain[g::4]) for g in (1, 3)}
    engine = make_engine(policy)
    engine._look_every = every
    sampling = [SamplingParams(stop=stops.get(g, ())) for g in range(4)]
    results = engine.generate(make_requests(engine.encode(samples), sampling, L))
    stopped = [c for result in results for c in result.completions]
    cuts = 0
    for row, (completion, got) in enumerate(zip(plain, stopped, strict=True)):
        ids = tokens_of(completion)
        ends = (
            n
            for n in range(1, len(ids) + 1)
            for text in stops.get(row % 4, ())
            if text in TOKENIZER.decode(ids[:n], skip_special_tokens=True)
        )
        length = next(ends, None)
        cuts += length is not None and length < len(ids)
        assert tokens_of(got) == ids[:length]
        assert got.text == TOKENIZER.decode(ids[:length], skip_special_tokens=True)
        assert got.finished == (length is not None or completion.finished)
        assert torch.allclose(got.logprobs, completion.logprobs[:length], atol=1e-5)
        assert not got.cancelled
    assert cuts >= 3, "nothing was stopped: the test shows nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("max_rows", "every"), [(2, 1), (64, 3)])
def test_an_early_stop_changes_no_completion_that_stays(policy, samples, max_rows, every):
    sampling = [SamplingParams(0.7 + 0.2 * g, frequency_penalty=0.1 * g) for g in range(5)]
    full = roll(policy, samples, sampling)
    engine = make_engine(policy, max_rows=max_rows)
    engine._look_every = every
    requests = make_requests(engine.encode(samples), sampling, L)
    rows = []
    for stops in (True, False):
        calls: list[tuple[int, tuple[str | None, ...]]] = []

        def two_are_enough(question, texts, stops=stops, calls=calls):
            calls.append((question, tuple(texts)))
            return stops and question != 1 and sum(text is not None for text in texts) >= 2

        requests = [
            dataclasses.replace(r, should_stop=lambda texts, means, b=b: two_are_enough(b, texts))
            for b, r in enumerate(requests)
        ]
        before = engine.count.rows
        groups = [result.completions for result in engine.generate(requests)]
        rows.append(engine.count.rows - before)
        if stops:
            early, noted = groups, calls
        else:
            texts = [c.text for group in groups for c in group]
            assert texts == [c.text for c in full], "called and not stopped"
    assert rows[0] < 0.9 * rows[1], "rows that were cancelled are still computed"

    assert any(c.cancelled for c in early[0])
    assert any(c.cancelled for c in early[2])
    assert not any(c.cancelled for c in early[1])
    cancelled = [c for group in early for c in group if c.cancelled]
    assert (min(c.num_tokens for c in cancelled) == 0) == (max_rows == 2), "not begun yet"
    for got, want in zip((c for group in early for c in group), full, strict=True):
        ids, wanted = tokens_of(got), tokens_of(want)
        if got.cancelled:
            assert len(ids) < len(wanted) or not want.finished
            assert ids == wanted[: len(ids)]
            assert not got.finished
            assert got.text == TOKENIZER.decode(ids, skip_special_tokens=True)
        else:
            assert ids == wanted
            assert got.text == want.text
            assert got.finished == want.finished
    for question, texts in noted:
        of_question = [c.text for c in full[question * 5 : question * 5 + 5]]
        assert any(text is None for text in texts), "it was called for nothing"
        assert all(text in (None, want) for text, want in zip(texts, of_question, strict=True))


def test_an_early_stop_does_not_depend_on_the_other_requests(policy, samples):
    sampling = [SamplingParams(stop=("e",))] * 4

    def two_are_enough(texts, mean_logprobs):
        return sum(text is not None for text in texts) >= 2

    together = roll(policy, samples, sampling, two_are_enough)
    assert any(c.cancelled for c in together)
    for b, one in enumerate(samples):
        alone = roll(policy, [one], sampling, two_are_enough, seed=4 * b)
        for got, want in zip(alone, together[4 * b : 4 * b + 4], strict=True):
            assert tokens_of(got) == tokens_of(want)
            assert got.cancelled == want.cancelled
