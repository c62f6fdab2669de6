"""Decoding attention against one softmax a row, over segments, ragged prompts and dropped rows."""

import pytest
import torch
from vrts.models.decode_layout import DecodeLayout

from vrts.models import flash
from vrts.models.attention import PackedLayout

CPU = torch.device("cpu")
SCALING = 0.3


class Plain:
    """Keys and values of every row on its own."""

    def __init__(self, prompts, G):
        self.rows = {
            (b, g): [k.clone(), v.clone()] for b, (k, v) in enumerate(prompts) for g in range(G)
        }

    def attend(self, row, query, key, value):
        """Append one token, ``[heads, 1, dim]``, and attend to all."""
        kept = self.rows[row]
        kept[0], kept[1] = torch.cat([kept[0], key], 1), torch.cat([kept[1], value], 1)
        groups = query.shape[0] // key.shape[0]
        keys, values = (x.repeat_interleave(groups, 0) for x in kept)
        return (SCALING * query @ keys.mT).softmax(-1) @ values


@pytest.mark.parametrize("has_flash", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 1), (4, 4)])
@pytest.mark.parametrize(("lengths", "G"), [([7, 3, 11], 4), ([5], 1), ([6], 3), ([1, 9], 1)])
def test_each_row_attends_to_its_prompt_and_itself(
    heads, kv_heads, lengths, G, has_flash, monkeypatch
):
    monkeypatch.setattr(flash, "has_flash", lambda *tensors: has_flash)
    generator = torch.Generator().manual_seed(sum(lengths) + heads)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    dim, L = 8, 13
    prompts = [(random(kv_heads, P, dim), random(kv_heads, P, dim)) for P in lengths]
    prefill = PackedLayout(lengths, [[] for _ in lengths], CPU, {0: list(prompts)}, True)
    layout = DecodeLayout(prefill, G, L)
    assert not prefill.prompt_kv  # moved, not copied
    plain = Plain(prompts, G)
    grid = [[(b, g) for g in range(G)] for b in range(len(lengths))]
    segments = {0: 5, 5: 6, 6: 10, 10: L}
    for step in range(L):
        if step == 6 and len(lengths) > 1:
            # the first question leaves; the others go on with some rows, in another order
            questions = torch.arange(1, len(lengths))
            samples = torch.tensor([[G - 1, 0][:G] for _ in questions])
            layout.keep(questions, samples)
            grid = [
                [(int(b), int(g)) for g in row] for b, row in zip(questions, samples, strict=True)
            ]
        if step in segments:
            layout.begin_segment(segments[step])
        rows = [row for question in grid for row in question]
        query = random(len(rows), heads, 1, dim)
        key, value = (random(len(rows), kv_heads, 1, dim) for _ in range(2))
        layout.begin_step()
        got = layout.attend(0, query, key, value, SCALING)
        layout.step.add_(1)
        assert got.shape == (len(rows), 1, heads, dim)
        for n, row in enumerate(rows):
            want = plain.attend(row, query[n], key[n], value[n])
            assert (got[n].transpose(0, 1) - want).abs().max() <= (1e-12 if has_flash else 1e-6)


def test_what_is_not_written_yet_has_no_influence():
    prompts = [(torch.randn(2, 4, 8), torch.randn(2, 4, 8))]
    inputs = [torch.randn(3, h, 1, 8) for h in (4, 2, 2)]
    out = []
    for num_columns in (1, 9):
        prefill = PackedLayout([4], [[]], CPU, {0: list(prompts)}, True)
        layout = DecodeLayout(prefill, 3, 9)
        layout.begin_segment(num_columns)
        layout.begin_step()
        out.append(layout.attend(0, *inputs, SCALING))
    torch.testing.assert_close(*out)
