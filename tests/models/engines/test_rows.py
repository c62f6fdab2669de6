"""Rows that end, move and are decoded in vain: each completion keeps its own tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vrts.models.engines.rows import DecodeRows, NewRow
from vrts.types import SamplingParams

END, V, L = 7, 9, 12
CPU = torch.device("cpu")


class Drawn:
    """Rows whose greedy tokens come from a stream of each completion's own."""

    def __init__(self, num_rows, look_every, streams):
        self.rows = DecodeRows(num_rows, L, V, torch.tensor([END]), look_every, CPU)
        self.streams = streams
        self.places: list[int | None] = []
        """The completion at each place; None where it has ended."""
        self.found = [([], []) for _ in streams]
        self.lengths = [0] * len(streams)

    def logits(self, places):
        out = torch.zeros(len(places), V)
        for n, place in enumerate(places):
            i = self.places[place]
            if i is None:  # decoded in vain, with any logits
                out[n, 3] = 5.0
                continue
            stream = self.streams[i]
            length = int(self.rows._lengths[place])
            out[n, stream[min(length, len(stream) - 1)]] = 4.0 + i % 3
        return out

    def enter(self, place, i, limit):
        self.places += [None] * (place + 1 - len(self.places))
        self.places[place] = i
        first = torch.zeros(1, V)
        first[0, self.streams[i][0]] = 4.0 + i % 3
        self.rows.enter([place], [NewRow(SamplingParams(0.0), i, limit, 100 * i)], first)

    def step(self):
        num_rows = len(self.places)
        tokens, positions, held = self.rows.next_inputs(num_rows)
        for place, i in enumerate(self.places):
            if i is not None:
                length = int(self.rows._lengths[place])
                assert tokens[place] == self.streams[i][length - 1]
                assert positions[place] == 100 * i + length - 1
                assert held[place] == length - 1
        self.rows.advance(self.logits(range(num_rows)))

    def look(self):
        """Take what is new; completions that have ended leave their places."""
        lengths, ended, ids, logprobs = self.rows.read(len(self.places))
        for place, i in enumerate(self.places):
            if i is None:
                continue
            own_ids, own_logprobs = self.found[i]
            new = lengths[place] - len(own_ids)
            own_ids += ids[place][:new]
            own_logprobs += logprobs[place, :new].tolist()
            if ended[place]:
                self.places[place] = None

    def close_up(self):
        to, source = [], []
        while None in self.places:
            last = self.places.pop()
            if last is not None:
                to.append(self.places.index(None))
                self.places[to[-1]] = last
                source.append(len(self.places))
        if to:
            self.rows.move(torch.tensor(to), torch.tensor(source))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, L)), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_each_completion_gets_its_own_stream(completions, num_rows, look_every, closes):
    streams = [
        torch.randint(0, V, (L,), generator=torch.Generator().manual_seed(seed)).tolist()
        for seed, _ in completions
    ]
    drawn = Drawn(num_rows, look_every, streams)
    waiting = list(range(len(completions)))
    turn = 0
    while waiting or any(i is not None for i in drawn.places):
        if closes[turn % len(closes)]:
            drawn.close_up()
        free = [p for p, i in enumerate(drawn.places) if i is None]
        for place in [*free, *range(len(drawn.places), num_rows)]:
            if waiting:
                i = waiting.pop(0)
                drawn.enter(place, i, completions[i][1])
                drawn.look()
        for _ in range(1 + turn % look_every):
            drawn.step()
        drawn.look()
        turn += 1
        assert turn < 200
    for (_, limit), stream, (ids, logprobs) in zip(completions, streams, drawn.found, strict=True):
        own = stream[:limit]
        length = own.index(END) + 1 if END in own else limit
        assert ids == own[:length]
        assert len(logprobs) == length
        assert max(logprobs) - min(logprobs) < 1e-6, "its logits are alike but for the token"


def test_an_ended_row_stays_as_it_is():
    drawn = Drawn(2, 8, [[1, 2, 3, 4], [5, 6, 1, 2]])
    drawn.enter(0, 0, L)
    drawn.look()
    drawn.enter(1, 1, L)
    drawn.look()
    drawn.step()
    drawn.rows.end([0])
    before = drawn.rows.next_inputs(1)
    drawn.step()
    assert all(torch.equal(a, b) for a, b in zip(before, drawn.rows.next_inputs(1), strict=True))
    lengths, ended, ids, _ = drawn.rows.read(2)
    assert (lengths, ended) == ([2, 3], [True, False])
    assert ids[1][:2] == [6, 1]


@pytest.mark.parametrize("ends", [[END], [2, END]])
def test_each_end_token_and_the_limit_end_a_row(ends):
    rows = DecodeRows(3, 2, V, torch.tensor(ends), 1, CPU)
    new = [NewRow(SamplingParams(0.0), 0, limit, 0) for limit in (2, 2, 1)]
    rows.enter([0, 1, 2], new, torch.eye(V)[[END, 2, 3]])
    assert rows.read(3)[1] == [True, 2 in ends, True]
