"""Finished rows leave the decoding grid, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vrts.models.decode_layout import DecodeLayout
from vrts.models.decoding import CompletionBuffer

from vrts.models import decoding
from vrts.types import Sampling

END = 7


@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**31), st.booleans()
)
def test_shrinking_keeps_what_every_completion_gets(B, G, L, seed, shrink):
    """Each completion reads its own stream of tokens, whatever rows stand beside it."""
    stream = torch.randint(0, 9, (B * G, L), generator=torch.Generator().manual_seed(seed))
    buffer = CompletionBuffer(B, G, L, torch.tensor([END]))
    for step in range(L):
        if bool(buffer.finished.all()):
            break
        if shrink and step:
            before = buffer.rows
            kept = buffer.shrink()
            if kept is not None:
                assert (before[kept[0][:, None], kept[1]] == buffer.rows).all()
        assert len(buffer.rows.flatten().unique()) == buffer.rows.numel()
        assert set((~buffer.finished).nonzero()[:, 0].tolist()) <= set(
            buffer.rows.flatten().tolist()
        )
        rows = buffer.rows.flatten()
        buffer.add(step, stream[rows, step], stream[rows, step] / 10.0)
    ids, mask, logprobs = buffer.trimmed()
    for row, tokens in enumerate(stream.tolist()):
        length = tokens.index(END) + 1 if END in tokens else L
        assert ids[row][mask[row]].tolist() == tokens[:length]
        assert torch.equal(logprobs[row][mask[row]], stream[row, :length] / 10.0)
        assert (ids[row][~mask[row]] == END).all()
        assert not logprobs[row][~mask[row]].any()
        assert bool(buffer.finished[row]) == (END in tokens)


def test_shrink_waits_until_it_is_worth_it():
    buffer = CompletionBuffer(1, 4, 3, torch.tensor([END]))
    buffer.add(0, torch.tensor([END, 1, 1, 1]), torch.zeros(4))
    assert buffer.shrink() is not None  # 3 of 4 rows are left
    assert buffer.rows.tolist() == [[1, 2, 3]]
    assert buffer.shrink() is None


def test_cutting_and_giving_up():
    buffer = CompletionBuffer(1, 4, 4, torch.tensor([END, 8]))
    for step in range(3):
        buffer.add(step, torch.tensor([1, 2, 3, 4]) + 10 * step, torch.full((4,), -1.0 - step))
    buffer.cut([2, 0], [1, 3])
    buffer.abandon([3])
    buffer.add(3, torch.tensor([8, 8, 8, 8]), torch.full((4,), -9.0))
    ids, mask, logprobs = buffer.trimmed()
    assert ids.tolist() == [
        [1, 11, 21, END], [2, 12, 22, 8], [3, END, END, END], [4, 14, 24, END],
    ]  # fmt: skip
    assert mask.sum(1).tolist() == [3, 4, 1, 3]
    assert logprobs.tolist() == [[-1, -2, -3, 0], [-1, -2, -3, -9], [-1, 0, 0, 0], [-1, -2, -3, 0]]
    assert buffer.finished.tolist() == [True, True, True, False]
    assert buffer.abandoned.tolist() == [False, False, False, True]
    assert buffer.ended.all()


def test_a_question_without_unfinished_completions_leaves():
    buffer = CompletionBuffer(3, 2, 3, torch.tensor([END]))
    buffer.add(0, torch.tensor([END, 1, END, END, 1, 1]), torch.zeros(6))
    kept = buffer.shrink()
    assert kept is not None
    assert kept[0].tolist() == [0, 2]
    # the first question's finished sample fills its row up
    assert buffer.rows.tolist() == [[1, 0], [4, 5]]


@pytest.mark.parametrize("sampling", [[Sampling()] * 5, [Sampling(0.7), Sampling(1.3, 0.8, 9)] * 3])
def test_a_rollout_is_the_same_with_all_rows_kept(load_policy, samples, sampling, monkeypatch):
    policy = load_policy()
    vocab = policy.base.config.text_config.vocab_size
    policy._end_ids = torch.arange(0, vocab, 25)  # completions end after 25 tokens, on average
    monkeypatch.setattr("vrts.models.decoder.CHECK_EVERY", 2)
    sizes: list[int] = []
    keep = DecodeLayout.keep

    def recording_keep(layout, questions, rows):
        sizes.append(rows.numel())
        keep(layout, questions, rows)

    monkeypatch.setattr(DecodeLayout, "keep", recording_keep)
    seeds = list(range(len(samples) * len(sampling)))
    prompts = policy.encode(samples, 60)
    dropped = policy.rollout(prompts, sampling, seeds, 60)
    assert len(sizes) >= 2, "no rows were dropped: the test shows nothing"
    monkeypatch.setattr(decoding, "WORTH_DROPPING", 0.0)
    whole = policy.rollout(prompts, sampling, seeds, 60)
    assert torch.equal(dropped.completion_ids, whole.completion_ids)
    assert torch.equal(dropped.completion_mask, whole.completion_mask)
    assert torch.equal(dropped.finished, whole.finished)
    assert (dropped.logprobs - whole.logprobs).abs().max() <= 1e-5
    scores = policy.score(prompts, dropped, 1.0).logprobs
    if all(s.temperature == 1 for s in sampling):
        assert (scores - dropped.logprobs).abs().max() <= 1e-4
