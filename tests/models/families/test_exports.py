"""What is written of every family loads in other libraries, and computes the same there."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.models.families.test_exactness import LORA
from tests.models.vlm.test_policy import perturb_adapter

KINDS = {"full": ({}, False), "adapter": (LORA, False), "merged": (LORA, True)}


@pytest.mark.parametrize("kind", KINDS)
def test_in_plain_transformers_and_peft(family_model, kind, tmp_path):
    options, merge = KINDS[kind]
    policy = family_model.policy(**options).eval()
    perturb_adapter(policy)
    generator = torch.Generator().manual_seed(3)
    if not options:
        for parameter in policy.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "saved"
    policy.save_pretrained(folder, merge)
    base = family_model.folder if kind == "adapter" else folder
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    if kind == "adapter":
        model = PeftModel.from_pretrained(model, folder).eval()
    else:
        # the names that transformers itself writes, which serving engines read
        saved, own = (load_file(f / "model.safetensors") for f in (folder, family_model.folder))
        assert saved.keys() == own.keys()
    network = policy.network()
    (prompt,) = network.encode(family_model.samples(generator, 2)[:1])
    with torch.no_grad():
        inputs = policy.family.model_inputs(model, prompt)
        got = model(**inputs).logits[0, -1].float()
        _, (want,) = network.prefill([prompt])
    kept = want.isfinite()
    assert kept.sum() > 100
    torch.testing.assert_close(got[kept], want[kept], rtol=0, atol=2e-4)


def test_a_merged_adapter_is_another_model(family_model, tmp_path):
    """Else the comparison above would show nothing."""
    policy = family_model.policy(**LORA)
    perturb_adapter(policy)
    policy.save_pretrained(tmp_path / "saved", merge=True)
    merged, plain = (
        load_file(path / "model.safetensors") for path in (tmp_path / "saved", family_model.folder)
    )
    changed = [name for name in plain if (plain[name] != merged[name]).any()]
    assert changed
    assert all("vision" not in name and "visual" not in name for name in changed)
