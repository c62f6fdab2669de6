"""Sparse-to-dense: features of patches that a sparser level has shown are used again."""

import re

import torch

from tests.models.conftest import make_sample
from tests.models.engines.running import make_engine
from tests.models.test_known_features import sparser


def test_a_denser_level_encodes_only_what_is_new(family_model, monkeypatch):
    policy = family_model.policy().eval()
    engine = make_engine(policy)
    dense = make_sample(0, 12, family_model.case.size(2, 3), "What colour is it?")
    (known,) = engine.encode([sparser(dense, [0, 2, 4])])
    (want,) = engine.encode([dense])
    encoded: list[int] = []
    family = type(policy.family)
    features = family.features

    def counting(self, model, patches, grids):
        encoded.append(sum(t for t, _, _ in grids))
        return features(self, model, patches, grids)

    monkeypatch.setattr(family, "features", counting)
    (got,) = engine.encode([dense], known)
    assert encoded == [want.grid[0] // 2], "half of the temporal patches are new"
    assert torch.equal(got.input_ids, want.input_ids)
    assert torch.equal(got.positions, want.positions)
    # fewer patches at once may round otherwise
    torch.testing.assert_close(got.features, want.features, rtol=1e-5, atol=1e-6)


def test_a_patch_keeps_its_tokens_at_every_level(family_model):
    """Its placeholders, and its time where the family writes times as text."""
    policy = family_model.policy()
    dense = make_sample(0, 12, family_model.case.size(2, 2), "What?")
    sparse = sparser(dense, [1, 5])
    prompts = [policy.network().encode([sample])[0] for sample in (dense, sparse)]
    every, some = (
        re.findall(
            r"<([\d.]+) seconds>|Frame from (\d+:\d+):",
            policy.processor.tokenizer.decode(prompt.input_ids),
        )
        for prompt in prompts
    )
    shown = [prompts[0].patch_keys.index(key) for key in prompts[1].patch_keys]
    assert len(every) in (0, prompts[0].grid[0])
    assert some == [every[i] for i in shown if every]
