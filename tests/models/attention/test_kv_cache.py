"""Decoding attention against one softmax a row, while rows and prompts come and go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vrts.models.attention.flash as flash
from vrts.models.attention.kv_cache import CLASSES_AN_OCTAVE, KVCache, capacity_of
from vrts.models.attention.shared_prefix import PackedLayout

CPU = torch.device("cpu")
SCALING = 0.3
LAYERS, DIM, L = 2, 8, 9
NUM_ROWS, NUM_SLOTS = 5, 3
LENGTHS = [3, 16, 17, 40, 70]
"""Of prompts; the first two share a pool."""


def test_capacities_hold_and_waste_little():
    for n in range(1, 3000):
        capacity = capacity_of(n)
        assert n <= capacity <= max(n * (1 + 1 / CLASSES_AN_OCTAVE), n + 15)
        assert capacity_of(capacity) == capacity
    assert len({capacity_of(n) for n in range(1024, 2048)}) == CLASSES_AN_OCTAVE + 1


class Plain:
    """Keys and values of each row on its own, its prompt's before them."""

    def __init__(self, prompt_kv):
        self.kv = [[key.clone(), value.clone()] for key, value in prompt_kv]

    def attend(self, layer, query, key, value):
        """Append one token, ``[heads, 1, dim]``, and attend to all."""
        kept = self.kv[layer]
        kept[0], kept[1] = torch.cat([kept[0], key], 1), torch.cat([kept[1], value], 1)
        groups = query.shape[0] // key.shape[0]
        keys, values = (x.repeat_interleave(groups, 0) for x in kept)
        return (SCALING * query @ keys.mT).softmax(-1) @ values


class Flight:
    """A cache, and next to it each row on its own, under the rules of `DecodeBatch`."""

    def __init__(self, heads, kv_heads, fixed, generator):
        self.heads, self.kv_heads, self.fixed, self.generator = heads, kv_heads, fixed, generator
        self.cache = KVCache(
            (LAYERS, kv_heads, DIM), NUM_ROWS, L, torch.float64, CPU, fixed_shapes=fixed
        )
        self.rows: list[Plain] = []
        self.held: list[int] = []
        self.prompts: list[dict] = []
        """Pool, slot, and the rows that complete each."""

    def random(self, *shape):
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def begin(self, length, num_rows):
        pool = self.cache.pool(length)
        if len(pool.lengths) == pool.num_slots:
            pool.grow(pool.num_slots + 1, NUM_ROWS)
        kv = [
            (self.random(self.kv_heads, length, DIM), self.random(self.kv_heads, length, DIM))
            for _ in range(LAYERS)
        ]
        prefill = PackedLayout([length], [[]], CPU, {i: [x] for i, x in enumerate(kv)}, True)
        ((found, slot),) = self.cache.add(prefill)
        assert found is pool
        assert not prefill.prompt_kv, "it is moved, not copied"
        new = [Plain(kv) for _ in range(num_rows)]
        self.prompts.append({"pool": pool, "slot": slot, "rows": new})
        self.rows += new
        self.held += [0] * num_rows

    def end(self, place):
        """The last row takes the place; a prompt without rows leaves."""
        row, last = self.rows[place], len(self.rows) - 1
        self.rows[place] = self.rows[last]
        self.held[place] = self.held[last]
        if place != last:
            self.cache.move_rows(torch.tensor([place]), torch.tensor([last]))
        self.rows.pop()
        self.held.pop()
        (prompt,) = [p for p in self.prompts if row in p["rows"]]
        prompt["rows"].remove(row)
        if not prompt["rows"]:
            self.prompts.remove(prompt)
            moved = prompt["pool"].remove(prompt["slot"])
            for other in self.prompts:
                if other["pool"] is prompt["pool"] and other["slot"] == moved:
                    other["slot"] = prompt["slot"]

    def arrange(self):
        members = {c: [[] for _ in p.lengths] for c, p in self.cache.pools.items() if p.lengths}
        for prompt in self.prompts:
            places = [self.rows.index(row) for row in prompt["rows"]]
            members[prompt["pool"].capacity][prompt["slot"]] = places
        self.cache.arrange(members, NUM_ROWS if self.fixed else None)

    def step(self, tolerance):
        R = len(self.rows)
        columns = L if self.fixed else max(self.held) + 1
        self.cache.begin_step(torch.tensor(self.held), columns)
        for layer in range(LAYERS):
            query = self.random(R, self.heads, 1, DIM)
            key, value = (self.random(R, self.kv_heads, 1, DIM) for _ in range(2))
            got = self.cache.attend(layer, query, key, value, SCALING)
            assert got.shape == (R, 1, self.heads, DIM)
            for n, row in enumerate(self.rows):
                want = row.attend(layer, query[n], key[n], value[n])
                assert (got[n].transpose(0, 1) - want).abs().max() <= tolerance
        self.held = [n + 1 for n in self.held]


@pytest.mark.parametrize("kernel", [True, False])
@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from([(6, 2), (3, 1), (4, 4)]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12),
    st.integers(0, 2**31),
)
def test_each_row_attends_to_its_prompt_and_itself(kernel, heads, fixed, moves, seed):
    """With CPU's kernel, and by the products that CUDA runs."""
    attend = flash.attend_with_lse
    if not kernel:

        def attend(query, key, value, scaling, bias=None):
            scores = flash.product_float32(query, key.mT) * scaling
            scores = scores if bias is None else scores + bias
            lse = scores.logsumexp(-1)
            return (scores - lse[..., None]).exp() @ value, lse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vrts.models.attention.kv_cache.attend_with_lse", attend)
        flight = Flight(*heads, fixed, torch.Generator().manual_seed(seed))
        for what, number in moves:
            free = NUM_ROWS - len(flight.rows)
            if what < 5 and free and len(flight.prompts) < NUM_SLOTS:
                flight.begin(LENGTHS[number % len(LENGTHS)], 1 + number % free)
            elif what < 7 and flight.rows:
                flight.end(number % len(flight.rows))
            while flight.held and max(flight.held) == L:
                flight.end(flight.held.index(L))
            if flight.rows:
                flight.arrange()
                flight.step(1e-12)


@pytest.mark.parametrize("fixed", [True, False])
def test_what_is_not_written_yet_has_no_influence(fixed):
    """Whatever is there: memory that was used before is not zeroed."""
    outs = []
    for rubbish in (0.0, 1e4):
        flight = Flight(4, 2, fixed, torch.Generator().manual_seed(0))
        flight.begin(5, 2)
        flight.begin(3, 2)  # shorter, in the same pool
        flight.cache._own.fill_(rubbish)
        pool = flight.cache.pool(5)
        pool.kv[:, :, 0, :, 5:] = rubbish
        pool.kv[:, :, 1, :, 3:] = rubbish
        flight.arrange()
        flight.cache.begin_step(torch.zeros(4, dtype=torch.int64), L)
        inputs = [flight.random(4, h, 1, DIM) for h in (4, 2, 2)]
        outs.append(flight.cache.attend(0, *inputs, SCALING))
    torch.testing.assert_close(*outs)


def test_memory_is_counted_and_given_back():
    cache = KVCache((2, 2, 8), 4, 16, torch.float32, CPU, fixed_shapes=False)
    own = 2 * 2 * 4 * 2 * 16 * 8 * 4
    assert cache.num_bytes == own
    cache.pool(5).grow(3, 4)
    assert cache.num_bytes == own + 2 * 2 * 3 * 2 * 16 * 8 * 4
    cache.pool(100).grow(1, 4)
    kv = [(torch.ones(2, 5, 8), torch.ones(2, 5, 8))] * 2
    cache.pool(5).add(kv)
    assert cache.drop_empty_pools()
    assert cache.num_bytes == own + 2 * 2 * 3 * 2 * 16 * 8 * 4, "the used one stays"
    assert not cache.drop_empty_pools()
