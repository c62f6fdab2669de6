"""What the native engine samples with: shared where it can be, copied and refreshed where not."""

import logging

import pytest
import torch

from tests.models.engines.running import CPU, make_engine, make_requests, mask_of, sampled_logprobs
from tests.models.vlm.test_policy import perturb_adapter
from tests.pretended_cuda import pretended_cuda
from vrts.models.engines.weights import Replica
from vrts.models.vlm.loading import Lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import InputError, SamplingParams

L = 16


def make_replica(policy, dtype=None, will_shard=False, merge_lora=False) -> Replica:
    replica = Replica(policy, policy.network().model, CPU, dtype, will_shard, merge_lora)
    replica.refresh(policy)
    return replica


def generate(engine, samples, length=L):
    prompts = engine.encode(samples)
    results = engine.generate(make_requests(prompts, [SamplingParams()] * 3, length))
    return prompts, [result.completions for result in results]


def train_step(policy) -> None:
    """An optimizer's step that moves all that is trained, in place."""
    with torch.no_grad():
        for n, p in enumerate(p for p in policy.parameters() if p.requires_grad):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
            p.add_(0.02 * noise.to(p.device))


def own_names(policy, replica) -> set[str]:
    """Parameters of the copy that are not the policy's own."""
    theirs = {id(p) for p in policy.parameters()}
    return {n for n, p in replica.model.named_parameters() if id(p) not in theirs}


def test_weights_of_the_dtype_are_shared(load_policy):
    policy = load_policy()
    replica = make_replica(policy, torch.float32)
    assert own_names(policy, replica) == set()
    assert replica.model is not policy.base, "forwards of its own"
    assert not replica.model.training
    train_step(policy)
    named = dict(policy.base.named_parameters())
    assert all(p is named[n] for n, p in replica.model.named_parameters())


def test_only_the_adapter_of_bfloat16_weights_is_copied(model_folder):
    policy = TransformersPolicy(str(model_folder), lora=Lora(rank=4), dtype="bfloat16")
    policy.load()
    replica = make_replica(policy, torch.bfloat16)
    names = own_names(policy, replica)
    assert names
    assert all("lora_" in name for name in names)
    assert names == {n for n, p in policy.base.named_parameters() if "lora_" in n}
    assert {p.dtype for p in replica.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_where_weights_will_be_sharded_all_are_copied_once(load_policy, dtype):
    policy = load_policy()
    replica = make_replica(policy, dtype, will_shard=True)
    assert own_names(policy, replica) == {n for n, _ in policy.base.named_parameters()}
    head, embeddings = replica.model.lm_head, replica.model.model.language_model.embed_tokens
    assert head.weight is embeddings.weight, "tied weights stay tied"
    assert not any(p.requires_grad for p in replica.model.parameters())
    for name, parameter in policy.base.named_parameters():
        copied = replica.model.get_parameter(name)
        assert copied.data_ptr() != parameter.data_ptr()
        assert torch.equal(copied, parameter.to(dtype or parameter.dtype)), name


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_a_refresh_takes_what_is_trained(load_policy, lora, monkeypatch):
    policy = load_policy(lora=lora)
    replica = make_replica(policy, torch.bfloat16)
    before = {n: p.clone() for n, p in replica.model.named_parameters()}
    train_step(policy)
    frozen = policy.base.model.visual.patch_embed.proj.weight
    frozen.data += 1.0
    addresses = {n: p.data_ptr() for n, p in replica.model.named_parameters()}
    replica.refresh(policy)
    for name, parameter in policy.base.named_parameters():
        copied = replica.model.get_parameter(name)
        wanted = parameter.bfloat16() if parameter.requires_grad else before[name]
        assert torch.equal(copied, wanted), name
        assert copied.data_ptr() == addresses[name], "in place: graphs read it"


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_a_bfloat16_copy_samples_what_autocast_scores(load_policy, samples, lora):
    policy = load_policy(lora=lora).train()
    perturb_adapter(policy)
    engine = make_engine(policy, torch.bfloat16)
    assert engine._network.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):  # as Lightning's bf16-mixed calls it
        prompts, completions = generate(engine, samples, 24)
        scores = policy.logprobs(prompts, completions, 1.0).logprobs
        scores.sum().backward()
    mask = mask_of(completions)
    gap = (scores[mask] - sampled_logprobs(completions)).abs()
    # of the same order as bfloat16's own error against float32
    exact = policy.logprobs(prompts, completions, 1.0).logprobs
    error = (scores - exact)[mask].abs().mean()
    assert error > 1e-4
    assert gap.mean() <= 2 * error
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained if p.ndim > 1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"lora": Lora(rank=4)}, {"freeze_vision": False}])
def test_after_a_step_the_new_policy_is_sampled(load_policy, samples, options, dtype):
    """As by an engine that has never seen the old one."""
    policy = load_policy(**options)
    perturb_adapter(policy)
    engine = make_engine(policy, dtype)
    _, before = generate(engine, samples)
    train_step(policy)
    engine.sync(policy)
    _, after = generate(engine, samples)
    _, want = generate(make_engine(policy, dtype), samples)
    for group, wanted, old in zip(after, want, before, strict=True):
        assert [c.text for c in group] == [c.text for c in wanted] != [c.text for c in old]
        for got, other in zip(group, wanted, strict=True):
            assert torch.equal(got.logprobs, other.logprobs)


def test_the_copy_checkpoints_nothing(load_policy, samples):
    policy = load_policy(gradient_checkpointing=True).train()
    engine = make_engine(policy)
    layers = policy.base.model.language_model.layers
    assert all(layer.gradient_checkpointing for layer in layers)
    copied = [m for m in engine._network.model.modules() if hasattr(m, "gradient_checkpointing")]
    assert len(copied) > len(layers)
    assert not any(m.gradient_checkpointing for m in copied)


def test_rotary_frequencies_stay_in_float32(load_policy):
    policy = load_policy()
    replica = make_replica(policy, torch.bfloat16)
    named = dict(policy.base.named_buffers())
    frequencies = [n for n in named if n.endswith("inv_freq")]
    assert len(frequencies) >= 2
    for name in frequencies:
        copied = replica.model.get_buffer(name)
        assert copied.dtype == torch.float32
        assert torch.equal(copied, named[name])
        assert copied.data_ptr() != named[name].data_ptr()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_merged_adapter_samples_within_rounding(load_policy, samples, dtype, caplog):
    policy = load_policy(lora=Lora(rank=4)).eval()
    engine = make_engine(policy, dtype, merge_lora=True)
    assert not caplog.records, "an adapter begins at zero: there is nothing to round"
    perturb_adapter(policy)
    with caplog.at_level(logging.INFO):
        engine.sync(policy)
        engine.sync(policy)
    lines = [r.getMessage() for r in caplog.records if "merging the adapter" in r.getMessage()]
    assert len(lines) == (dtype is not None), "once, where anything is rounded"
    assert all(1e-3 < float(line.split()[4]) < 0.2 for line in lines)
    prompts, completions = generate(engine, samples, 24)
    mask, sampled = mask_of(completions), sampled_logprobs(completions)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, dtype is not None):
        scores = policy.logprobs(prompts, completions, 1.0).logprobs[mask]
        with policy.adapter_disabled():
            base = policy.logprobs(prompts, completions, 1.0).logprobs[mask]
    gap = (scores - sampled).abs()
    assert gap.max() < (1e-4 if dtype is None else 0.6)
    assert gap.mean() < 0.1 * (base - sampled).abs().mean(), "the adapter is in it"
    named = dict(policy.base.named_parameters())
    assert all(named[n] is p or dtype for n, p in engine._network.model.named_parameters())


def test_what_does_not_fit_the_device_is_refused_with_the_numbers(load_policy, monkeypatch):
    policy = load_policy()
    size = sum(p.numel() for p in policy.parameters()) * 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size - 1, 80 * 10**9))
    with pytest.raises(InputError, match=rf"copy of all weights of {size / 1e9:.1f} GB .*80.0 GB"):
        Replica(policy, policy.base, torch.device("cuda"), torch.bfloat16, False)


class TestOnAPretendedDevice:
    """It computes on the host, by CUDA's rules: two memories, and graphs that hold no wait."""

    @pytest.fixture
    def device(self):
        with pretended_cuda() as found:
            yield found

    @pytest.mark.slow
    @pytest.mark.parametrize("merge_lora", [False, True])
    def test_an_offloaded_copy_leaves_and_comes_back(
        self, model_folder, samples, device, merge_lora
    ):
        policy = TransformersPolicy(
            str(model_folder),
            prompt=PromptTemplate(preamble=""),
            lora=Lora(rank=4),
            dtype="float32",
        )
        policy.load()
        perturb_adapter(policy)
        policy.to("cuda")
        cuda = torch.device("cuda")
        options = {"device": cuda, "dtype": torch.bfloat16, "merge_lora": merge_lora}
        engine = make_engine(policy, offload=True, **options)
        _, before = generate(engine, samples[:1], 8)
        own = dict(engine._network.model.named_parameters())
        assert all(p.is_cuda for p in own.values())
        engine.release()
        assert not any(p.is_cuda for p in own.values())
        assert all(p.is_cuda for p in policy.parameters())
        _, again = generate(engine, samples[:1], 8)
        assert [c.text for c in again[0]] == [c.text for c in before[0]]
        engine.release()
        train_step(policy)
        engine.sync(policy)
        assert all(p.is_cuda for p in own.values())
        _, after = generate(engine, samples[:1], 8)
        _, want = generate(make_engine(policy, **options), samples[:1], 8)
        assert [c.text for c in after[0]] == [c.text for c in want[0]]
        assert [c.text for c in after[0]] != [c.text for c in before[0]]
        assert torch.equal(sampled_logprobs(after), sampled_logprobs(want))
        assert device.violations == []
        assert device.graphs
