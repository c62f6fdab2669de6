"""QLoRA: an adapter is trained on 4-bit weights, which policy and engine share."""

import sys

import pytest
import torch

from tests.callbacks.runs import make_policy, questions
from tests.models.conftest import make_sample
from tests.models.engines.running import make_engine
from tests.models.steps import Snapshots, fit
from vrts.models.grpo.objectives import GRPO
from vrts.models.grpo.reference import AdapterOff
from vrts.models.vlm.loading import Lora
from vrts.types import Completion, InputError

pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")


def quantized(folder, **options):
    return make_policy(folder, **({"lora": Lora(rank=4), "quantize": "nf4"} | options))


def packed(model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.dtype == torch.uint8}


def test_the_decoders_matrices_and_no_others_take_four_bits(varied_model):
    plain, policy = make_policy(varied_model, lora=Lora(rank=4)), quantized(varied_model)
    for each in (plain, policy):
        each.load()
    sizes = {n: p.numel() for n, p in plain.base.named_parameters()}
    found = {n: p.numel() for n, p in packed(policy.base).items()}
    layers = policy.base.config.text_config.num_hidden_layers
    assert len(found) == 7 * layers
    assert all("language_model.layers" in n for n in found)
    assert found == {n: -(-sizes[n] // 2) for n in found}
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in plain.named_parameters() if p.requires_grad}
    prompts = make_engine(plain).encode([make_sample(0, 4, (56, 56), "What?")])
    own = [(Completion("", 5, 5, token_ids=torch.arange(20, 25)),)]
    assert policy.workload(prompts, own) == plain.workload(prompts, own)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_trains_the_adapter_alone(tmp_path, varied_model, videos, precision):
    look, policy = Snapshots(), quantized(varied_model)
    module, trainer = fit(
        tmp_path, policy, questions(videos["long"], 4), [look], objective=GRPO(beta=0.1),
        reference=AdapterOff(), trainer={"precision": precision},
    )  # fmt: skip
    first = look.parameters[0]
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, first[n])}
    assert moved
    assert all("lora_" in n for n in moved)
    assert trainer.callback_metrics["train/kl"] >= 0
    limit = 1e-4 if precision == "32-true" else 0.1
    assert trainer.callback_metrics["train/sampling/logprob_diff"] < limit
    # what samples has the policy's own packed weights, and what unpacks them
    mine, theirs = policy.base, module.engine._replica.model
    assert len(packed(mine)) > 0
    assert all(packed(theirs)[n] is p for n, p in packed(mine).items())
    layers = [m.model.language_model.layers[0].mlp.up_proj for m in (mine, theirs)]
    states = [layer.base_layer.quant_state for layer in layers]
    assert states[0] is states[1]

    # training continues from the adapter's folder, on the same weights
    policy.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = quantized(tmp_path / "adapter")
    again.load()
    prompts = [make_sample(0, 4, (56, 56), "What?")]
    found = [make_engine(p.eval()).encode(prompts)[0] for p in (policy, again)]
    assert torch.equal(found[0].features, found[1].features)
    named = dict(again.named_parameters())
    trained = {n: p for n, p in policy.named_parameters() if "lora_" in n}
    assert trained
    assert all(torch.equal(named[n], p) for n, p in trained.items())


def test_what_cannot_be_is_refused_with_a_remedy(tmp_path, varied_model, monkeypatch):
    with pytest.raises(InputError, match=r"lora\.yaml before it"):
        quantized(varied_model, lora=None).load()
    with pytest.raises(InputError, match="4-bit weights are not sharded"):
        quantized(varied_model).load_empty()
    policy = quantized(varied_model)
    policy.load()
    with pytest.raises(InputError, match="quantize null"):
        policy.save_pretrained(tmp_path, merge=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="merge_lora: false"):
        make_engine(policy, merge_lora=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"pip install 'vrts\[qlora\]'"):
        quantized(varied_model).load()
