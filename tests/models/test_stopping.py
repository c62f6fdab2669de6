"""Penalties, stop texts and early stops of a rollout, each against the plain computation."""

from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vrts.models.decode_layout import DecodeLayout

from vrts.demo.tokenizer import build_tokenizer
from vrts.models.sampling import RowSampler, penalise, row_uniforms
from vrts.models.stopping import StopTexts
from vrts.types import Rollout, Sampling

TOKENIZER = build_tokenizer()
L = 40


@pytest.fixture
def policy(load_policy):
    """One token in forty ends a completion."""
    policy = load_policy()
    policy._end_ids = torch.arange(7, policy.base.config.text_config.vocab_size, 40)
    return policy


def roll(policy, samples, sampling, stop_early=None, seed=0) -> Rollout:
    seeds = range(seed, seed + len(samples) * len(sampling))
    prompts = policy.encode(samples, L)
    return policy.rollout(prompts, sampling, list(seeds), L, stop_early)


def tokens_of(rollout: Rollout) -> list[list[int]]:
    pairs = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def plain_draw(logits: torch.Tensor, said: list[int], s: Sampling, uniform: float) -> int:
    """One token of one completion, without any batch; logits are float32 ``[V]``."""
    logits = logits.double().clone()
    for token, count in Counter(said).items():
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
    Sampling(0.8, 0.9, 50, presence_penalty=0.4, frequency_penalty=0.2),
    Sampling(presence_penalty=8.0),
    Sampling(0.5, frequency_penalty=3.0),
    Sampling(0.0, presence_penalty=0.4, frequency_penalty=0.2),
    Sampling(1.1),
    Sampling(0.0),
]


def test_penalties_equal_a_plain_draw_token_by_token(policy, samples):
    rollout = roll(policy, samples, PENALISED)
    prompts = policy.encode(samples, L)
    G = len(PENALISED)
    uniforms = row_uniforms(range(len(samples) * G), L)
    repeats = 0
    for row, ids in enumerate(tokens_of(rollout)):
        prompt, sampling = prompts.encoded[row // G], PENALISED[row % G]
        steps = prompt.next_position + torch.arange(len(ids))
        with torch.no_grad():
            logits = policy.base(
                input_ids=torch.cat([prompt.input_ids, torch.tensor(ids)])[None],
                position_ids=torch.cat([prompt.positions, steps.expand(3, -1)], 1)[:, None],
                pixel_values_videos=prompt.patches,
                video_grid_thw=torch.tensor([prompt.grid]),
                use_cache=False,
            ).logits[0, len(prompt.input_ids) - 1 : -1]
        logits = logits.float().index_fill(-1, policy._banned_ids, float("-inf"))
        drawn = [
            plain_draw(logits[n], ids[:n], sampling, float(uniforms[row, n]))
            for n in range(len(ids))
        ]
        assert drawn == ids
        repeats += sum(token in ids[:n] for n, token in enumerate(ids))
        # what is recorded is how likely the model finds a token, without any penalty
        own = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
        own = own.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert (rollout.logprobs[row, : len(ids)] - own).abs().max() < 1e-4
    assert repeats > 20, "nothing came twice: the test shows nothing"
    without = [Sampling(s.temperature, s.top_p, s.top_k) for s in PENALISED]
    others = tokens_of(roll(policy, samples, without))
    changed = [a != b for a, b in zip(tokens_of(rollout), others, strict=True)]
    assert not any(changed[4::6] + changed[5::6]), "a row without penalties changed"
    assert any(changed)


def test_penalties_follow_the_rows_that_stay():
    """Counts belong to a completion, wherever in the grid it stands."""
    sampler = RowSampler([Sampling(0, frequency_penalty=1.0)] * 3, 4, torch.device("cpu"))
    logits = torch.tensor([[3.0, 2.5, 0.0, 0.0]])
    uniforms = torch.zeros(3, dtype=torch.float64)
    drawn = [sampler(logits.expand(3, -1), uniforms, torch.tensor([2, 0, 1]))[0].tolist()]
    drawn += [sampler(logits, uniforms[:1], torch.tensor([row]))[0].tolist() for row in (1, 1, 0)]
    assert drawn == [[0, 0, 0], [1], [0], [1]]


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
def test_stop_texts_cut_what_is_sampled_without_them(policy, samples, every, monkeypatch):
    monkeypatch.setattr("vrts.models.decoder.CHECK_EVERY", every)
    plain = roll(policy, samples, [Sampling()] * 4)
    # for two of the four samples a text from each of its completions
    stops = {g: tuple(map(middle, plain.texts[g::4])) for g in (1, 3)}
    stopped = roll(policy, samples, [Sampling(stop=stops.get(g, ())) for g in range(4)])
    cuts = 0
    for row, ids in enumerate(tokens_of(plain)):
        ends = (
            n
            for n in range(1, len(ids) + 1)
            for text in stops.get(row % 4, ())
            if text in TOKENIZER.decode(ids[:n], skip_special_tokens=True)
        )
        length = next(ends, None)
        cuts += length is not None and length < len(ids)
        want = ids[:length]
        assert tokens_of(stopped)[row] == want
        assert stopped.texts[row] == TOKENIZER.decode(want, skip_special_tokens=True)
        assert bool(stopped.finished[row]) == (length is not None or bool(plain.finished[row]))
        got = stopped.logprobs[row]
        assert torch.allclose(got[: len(want)], plain.logprobs[row, : len(want)], atol=1e-5)
        assert not got[len(want) :].any()
        assert torch.isin(stopped.completion_ids[row, len(want) :], policy._end_ids[0]).all()
    assert cuts >= 3, "nothing was stopped: the test shows nothing"
    assert stopped.abandoned is None


def test_an_early_stop_changes_no_completion_that_stays(policy, samples, monkeypatch):
    monkeypatch.setattr("vrts.models.decoder.CHECK_EVERY", 2)
    sampling = [Sampling(0.7 + 0.2 * g, frequency_penalty=0.1 * g) for g in range(5)]
    full = roll(policy, samples, sampling)
    told: list[tuple[int, tuple[str | None, ...]]] = []
    forwarded: list[int] = []
    attend = DecodeLayout.attend

    def counting(layout, layer, query, *rest):
        forwarded.append(len(query))
        return attend(layout, layer, query, *rest)

    monkeypatch.setattr(DecodeLayout, "attend", counting)

    def two_are_enough(question, texts, mean_logprobs):
        told.append((question, tuple(texts)))
        return question != 1 and sum(text is not None for text in texts) >= 2

    early = roll(policy, samples, sampling, two_are_enough)
    rows, forwarded[:] = sum(forwarded), []
    roll(policy, samples, sampling)
    assert rows < 0.8 * sum(forwarded), "rows that were given up are still computed"

    assert early.abandoned is not None
    given_up = early.abandoned.tolist()
    assert any(given_up[:5])
    assert any(given_up[10:])
    assert not any(given_up[5:10])
    for row, (got, want) in enumerate(zip(tokens_of(early), tokens_of(full), strict=True)):
        if given_up[row]:
            assert 0 < len(got) < len(want) or not full.finished[row]
            assert got == want[: len(got)]
            assert not early.finished[row]
            assert early.texts[row] == TOKENIZER.decode(got, skip_special_tokens=True)
        else:
            assert got == want
            assert early.texts[row] == full.texts[row]
            assert early.finished[row] == full.finished[row]
    for question, texts in told:
        of_question = full.texts[question * 5 : question * 5 + 5]
        assert any(text is None for text in texts), "it was asked about nothing"
        assert all(text in (None, want) for text, want in zip(texts, of_question, strict=True))


def test_an_early_stop_does_not_depend_on_the_batch(policy, samples):
    sampling = [Sampling(stop=("e",))] * 4

    def two_are_enough(question, texts, mean_logprobs):
        return sum(text is not None for text in texts) >= 2

    together = roll(policy, samples, sampling, two_are_enough)
    assert together.abandoned is not None
    for b, sample in enumerate(samples):
        alone = roll(policy, [sample], sampling, two_are_enough, seed=4 * b)
        assert tokens_of(alone) == tokens_of(together)[4 * b : 4 * b + 4]
        assert torch.equal(alone.abandoned, together.abandoned[4 * b : 4 * b + 4])
    assert together.abandoned.any()
