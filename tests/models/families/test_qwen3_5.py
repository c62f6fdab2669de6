"""The hybrid: recurrent states that completions start from, in the update and while rows come and
go."""

import gc
import os
import random
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vrts.models.vlm.flops as counting
from tests.models.conftest import make_sample
from tests.models.engines.running import CPU, make_engine, mask_of, sampled_logprobs, tokens_of
from tests.models.families.conftest import CASES, FamilyModel
from tests.models.families.test_flops import computed_pairs
from tests.models.naive import keep_float64, plain_distributions, plain_logprobs, to_float64
from tests.models.recorded_graph import use_recorded_graphs
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.attention.kv_cache import KVCache, capacity_of
from vrts.models.attention.shared_prefix import PackedLayout
from vrts.models.engines.engine import Request
from vrts.models.families.qwen3_5 import SharedDeltaNet
from vrts.models.vlm.loading import Lora
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import Completion, InputError, SamplingParams

TOKEN_BYTES = 2 * 2 * 2 * 32 * 4
"""Keys and values of a token, in the two layers that attend."""
STATE_BYTES = 4 * ((2 * 2 * 16 + 4 * 24) * 3 + 4 * 16 * 24) * 4
"""Of a row, in the four gated delta nets."""
L = 20


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory) -> FamilyModel:
    (case,) = [case for case in CASES if case.name == "qwen3_5"]
    folder = tmp_path_factory.mktemp(case.name)
    case.build(folder)
    return FamilyModel(case, folder)


@pytest.fixture(scope="module")
def policy(hybrid):
    """One token in twenty ends a completion."""
    policy = hybrid.policy().eval()
    policy.network().end_ids = torch.arange(0, policy.network().vocab_size, 20)
    return policy


@pytest.fixture(scope="module")
def prompts(policy):
    """Of very different length; the first two share a pool of the cache."""
    found = policy.network().encode(
        [
            make_sample(0, 4, (64, 64), "Which?"),
            make_sample(1, 4, (64, 64), "Which one?"),
            make_sample(2, 10, (96, 96), "What colour is the circle after seven seconds?"),
        ]
    )
    sizes = [capacity_of(p.num_tokens) for p in found]
    assert sizes[0] == sizes[1] < sizes[2]
    return found


def delta_nets(policy):
    nets = [m for m in policy.base.modules() if isinstance(m, SharedDeltaNet)]
    assert len(nets) == 4
    return nets


@pytest.mark.parametrize("prompt_lengths", [[1, 70], [2, 3], [63, 64], [65, 130]])
def test_a_layer_shares_prompts_of_any_length(hybrid, prompt_lengths, monkeypatch):
    """Shorter than the convolution, and around the 64 tokens that the recurrence takes at once."""
    policy = hybrid.policy()
    to_float64(policy)
    keep_float64(monkeypatch)
    net = delta_nets(policy)[0]
    lengths = [[1, 65, 0, 3], [1, 1]]
    S = sum(prompt_lengths) + sum(map(sum, lengths))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, S, 96, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(1, S, 96, dtype=torch.float64, generator=generator)
    got = net(x, layout=PackedLayout(prompt_lengths, lengths, CPU))
    (weights * got).sum().backward()
    found = [x.grad, *(p.grad.clone() for p in net.parameters())]

    policy.zero_grad()
    x.grad = None
    parts, weighed, start = [], 0.0, 0
    for P, group in zip(prompt_lengths, lengths, strict=True):
        prompt = x[:, start : start + P]
        parts.append(net(prompt))
        weighed = weighed + (weights[:, start : start + P] * parts[-1]).sum()
        start += P
        for n in group:
            alone = net(torch.cat([prompt, x[:, start : start + n]], 1))[:, P:]
            weighed = weighed + (weights[:, start : start + n] * alone).sum()
            parts.append(alone)
            start += n
    assert (got - torch.cat(parts, 1)).abs().max() <= 1e-13
    weighed.backward()
    for gradient, want in zip(found, [x.grad, *(p.grad for p in net.parameters())], strict=True):
        assert (gradient - want).norm() <= 1e-12 * want.norm()
    assert len(found) == 10, "each parameter has a gradient"


@torch.no_grad()
def test_decoding_is_exact_while_rows_move(hybrid, prompts, monkeypatch):
    """In float64, token by token as given, against transformers' own model."""
    policy = hybrid.policy().eval()
    to_float64(policy)
    keep_float64(monkeypatch)
    network = policy.network()
    encoded = network.encode(
        [make_sample(5, 4, (64, 96), "What?"), make_sample(6, 2, (64, 64), "")]
    )
    ids = torch.randint(0, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    want = plain_distributions(
        policy,
        encoded,
        [[Completion("", 12, 12, token_ids=row) for row in g] for g in (ids[:2], ids[2:])],
    )
    cache = KVCache(
        network.kv_shape,
        5,
        12,
        torch.float64,
        CPU,
        fixed_shapes=False,
        row_states=network.row_states,
    )
    for prompt in encoded:
        cache.pool(prompt.num_tokens).grow(2, 5)
    prefill, first = network.prefill(encoded)
    placed, states = cache.add(prefill), prefill.take_states()
    assert not prefill.prompt_kv
    assert not prefill.prompt_states
    rows = [2, 0, 4]  # of each completion
    for row, prompt in zip(rows, (0, 0, 1), strict=True):
        cache.enter(row, states[prompt])
    errors = [(first[p].log_softmax(-1) - want[n][0]).abs() for n, p in enumerate((0, 0, 1))]
    for step in range(11):
        if step == 5:
            cache.move_rows(torch.tensor([1, 3]), torch.tensor([2, 4]))
            rows = [1, 0, 3]
        members = {}
        for (pool, slot), own in zip(placed, (rows[:2], rows[2:]), strict=True):
            members.setdefault(pool.capacity, {})[slot] = own
        cache.arrange({c: [m[s] for s in sorted(m)] for c, m in members.items()}, None)
        tokens, positions = torch.zeros(2, 5, dtype=torch.int64)
        tokens[rows] = ids[:, step]
        starts = torch.tensor([network.first_position(encoded[p]) for p in (0, 0, 1)])
        positions[rows] = starts + step
        held = torch.full((5,), step)
        cache.begin_step(held, step + 1)
        logits = network.decode(tokens, positions, cache)[rows]
        errors += [
            (a - w[step + 1]).abs() for a, w in zip(logits.log_softmax(-1), want, strict=True)
        ]
    assert max(float(e[e.isfinite()].max()) for e in errors) <= 1e-12


def make_request(prompts, prompt: int, seeds, length: int = L, should_stop=None) -> Request:
    return Request(
        prompts[prompt], (SamplingParams(),) * len(seeds), tuple(seeds), length, should_stop
    )


def check_same(got, want) -> None:
    assert tokens_of(got) == tokens_of(want)
    assert (got.finished, got.cancelled) == (want.finished, want.cancelled)
    assert not len(want.logprobs) or (got.logprobs - want.logprobs).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def alone(policy, prompts):
    """Completions of the seeds 0 to 5 of each prompt, one decoded after the other."""
    engine = make_engine(policy, max_rows=1)
    requests = [make_request(prompts, p, [seed]) for p in range(3) for seed in range(6)]
    results = engine.generate(requests)
    found = [results[6 * p : 6 * p + 6] for p in range(3)]
    completions = [[result.completions[0] for result in own] for own in found]
    assert len({c.num_tokens for own in completions for c in own}) > 5, "ragged"
    return completions


@pytest.mark.parametrize(("max_rows", "memory"), [(2, 1.0), (3, 1.6), (5, 9.0), (64, 3.0)])
def test_a_request_gets_what_it_would_get_alone(policy, prompts, alone, max_rows, memory):
    """Rows begin, end and move while others wait, in little memory or in much."""
    draw = random.Random(max_rows)
    plans = [(draw.randrange(3), draw.sample(range(6), draw.randint(1, 5))) for _ in range(9)]
    largest = (capacity_of(prompts[2].num_tokens) + L) * TOKEN_BYTES + 2 * STATE_BYTES
    engine = make_engine(policy, max_rows=max_rows, max_kv_gb=memory * largest / 1e9)
    requests = [make_request(prompts, p, seeds) for p, seeds in plans]
    coming, results = list(requests), {}
    while coming or engine.num_pending:
        for request in coming[:2]:
            engine.add(request)
        del coming[:2]
        results |= {id(result.request): result for result in engine.step()}
        if engine._batch is not None:
            assert engine._batch.num_bytes <= memory * largest
            assert len(engine._batch._states) <= 1
    for request, (prompt, seeds) in zip(requests, plans, strict=True):
        for got, seed in zip(results[id(request)].completions, seeds, strict=True):
            check_same(got, alone[prompt][seed])


def test_states_count_in_the_memory(policy, prompts):
    network = policy.network()
    assert network.kv_shape == (2, 2, 32)
    assert sum(own.nbytes for own in network.row_states) == STATE_BYTES
    need = (capacity_of(prompts[2].num_tokens) + L) * TOKEN_BYTES + 2 * STATE_BYTES
    engine = make_engine(policy, max_kv_gb=(need - 1) / 1e9)
    with pytest.raises(InputError, match=f"need {need / 1e9:.3g} GB"):
        engine.add(make_request(prompts, 2, [0]))
    engine.add(make_request(prompts, 2, [0], L - 1))
    assert len(list(engine._drain())) == 1

    row = L * TOKEN_BYTES + STATE_BYTES
    budget = 16 * row
    engine = make_engine(policy, max_kv_gb=budget / 1e9)
    engine.add(make_request(prompts, 0, range(64)))
    engine.step()
    batch = engine._batch
    assert batch.num_places == 7, "half, without what a prompt's states take"
    pool = capacity_of(prompts[0].num_tokens) * TOKEN_BYTES
    assert batch.num_bytes == 7 * row + pool + STATE_BYTES, "the prompt's: rows wait"
    engine.cancel()


@pytest.mark.parametrize("how", ["early stop", "cancel"])
def test_states_go_with_their_prompt_at_once(policy, prompts, how):
    engine = make_engine(policy, max_rows=2)
    engine.add(make_request(prompts, 0, range(6), should_stop=lambda texts, means: any(texts)))
    gc.disable()
    try:
        engine.step()
        (states,) = engine._batch._states.values()
        kept = [weakref.ref(own) for own in states]
        del states
        if how == "cancel":
            engine.cancel()
        else:
            (result,) = engine._drain()
            assert sum(c.cancelled for c in result.completions) >= 3
        assert [own() for own in kept] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("max_rows", [3, 64])
def test_replayed_steps_decode_the_same(policy, prompts, alone, max_rows, monkeypatch):
    """A graph reads and writes the same states, whoever's they are by then."""
    monkeypatch.setattr("vrts.models.engines.decode_batch.GRAPH_COLUMNS", 8)
    monkeypatch.setattr("vrts.models.engines.decode_batch.GRAPH_ROWS", 2)
    graphs = use_recorded_graphs(monkeypatch)
    engine = make_engine(policy, max_rows=max_rows)
    engine._uses_graphs, engine._look_every = True, 2
    results = engine.generate([make_request(prompts, p, range(6)) for p in range(3)])
    for result, want in zip(results, alone, strict=True):
        for got, one in zip(result.completions, want, strict=True):
            check_same(got, one)
    assert len(graphs) >= 2
    assert sum(graph.num_replays for graph in graphs) > 8


@pytest.mark.parametrize("merge_lora", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_copy_of_adapted_weights_samples_the_same(hybrid, merge_lora, dtype):
    torch.manual_seed(0)  # of the adapter's first factor
    policy = hybrid.policy(lora=Lora(rank=4, alpha=8)).train()
    perturb_adapter(policy)
    adapted = {n.rpartition(".lora_A")[0] for n, _ in policy.named_parameters() if ".lora_A" in n}
    assert len(adapted) == 4 * 5 + 2 * 4 + 6 * 3
    engine = make_engine(policy, dtype=dtype, merge_lora=merge_lora)
    products = engine._replica._products
    assert len(products) == (len(adapted) if merge_lora else 6 * (2 + 2))
    samples = [make_sample(i, 4, (64, 64), "Which?") for i in range(2)]
    encoded = engine.encode(samples)
    results = engine.generate([make_request(encoded, p, range(3)) for p in range(2)])
    completions = [result.completions for result in results]
    mask, sampled = mask_of(completions), sampled_logprobs(completions)
    exact = policy.logprobs(encoded, completions, 1.0).logprobs[mask]
    if dtype is None:
        assert (exact - sampled).abs().max() <= 2e-5
        plain = torch.cat(plain_logprobs(policy, encoded, completions))
        assert (plain - exact).abs().max() <= 1e-5
        return
    with torch.autocast("cpu", dtype):
        scores = policy.logprobs(encoded, completions, 1.0).logprobs[mask]
    error = (scores - exact).abs().mean()
    assert error > 1e-4
    assert (scores - sampled).abs().mean() <= 2 * error


def test_four_bits_are_not_for_gates(hybrid):
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    policy = hybrid.policy(lora=Lora(rank=4), quantize="nf4").train()
    perturb_adapter(policy)
    packed = [n for n, p in policy.base.named_parameters() if p.dtype == torch.uint8]
    assert len(packed) == 4 * 3 + 2 * 4 + 6 * 3
    assert not any("in_proj_a" in name or "in_proj_b" in name for name in packed)
    engine = make_engine(policy)
    encoded = engine.encode([make_sample(0, 4, (64, 64), "Which?")])
    completions = [engine.generate([make_request(encoded, 0, range(3))])[0].completions]
    scores = policy.logprobs(encoded, completions, 1.0).logprobs[mask_of(completions)]
    assert (scores - sampled_logprobs(completions)).abs().max() <= 1e-4
    assert policy.workload(encoded, completions) == hybrid.policy(lora=Lora(rank=4)).workload(
        encoded, completions
    )


def test_an_adapter_starts_the_same_however_it_is_loaded(hybrid):
    """Building a gated delta net draws random numbers, which may not move the seed's."""
    found = []
    for load in ("load", "load_empty"):
        policy = TransformersPolicy(str(hybrid.folder), dtype="float32", lora=Lora(rank=4))
        torch.manual_seed(0)
        getattr(policy, load)()
        found.append({n: p for n, p in policy.named_parameters() if "lora_A" in n})
    assert found[0].keys() == found[1].keys()
    for name, parameter in found[0].items():
        assert torch.equal(found[1][name], parameter), name


def test_autocast_rounds_no_state(policy, prompts):
    """Kernels of GPUs compute the recurrence in float32; the plain functions have to as well."""
    (net, *_), x = delta_nets(policy), torch.randn(1, 70, 96)
    layout = PackedLayout([70], [[]], CPU, keep_prompt_kv=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(x, layout=layout)
        inputs = [net.in_proj_qkv(x)]
    ((conv, matrices),) = layout.prompt_states[0]
    assert (conv.dtype, matrices.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(conv, inputs[0][:, -3:].mT)
    assert not torch.equal(matrices, matrices.bfloat16().float())


KINDS = {"full": {}, "vision": {"freeze_vision": False}, "lora": {"lora": Lora(rank=4)}}


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(hybrid, kind, monkeypatch):
    """But for the recurrence: its functions compute chunks. It is counted by hand."""
    policy = hybrid.policy(**KINDS[kind])
    monkeypatch.setattr(counting, "visible_pairs", computed_pairs)
    monkeypatch.setattr("vrts.models.attention.shared_prefix.has_flash", lambda *_: False)

    def without_products(query, key, value, g, beta, **options):
        out = value * (g.exp() * beta)[..., None] + query.mean() + key.mean()
        return out, query.new_zeros(len(query), 4, 16, 24)

    for net in delta_nets(policy):
        monkeypatch.setitem(net.functions, "torch_chunk_gated_delta_rule", without_products)
        # torch counts the gradient of a kernel of one channel as that of one of all
        net.conv1d.requires_grad_(False)
    prompts = policy.network().encode([make_sample(0, 10, (96, 96), "What?")])
    ids = torch.randint(0, 200, (3, 12), generator=torch.Generator().manual_seed(3))
    completions = [[Completion("", 12, 12, token_ids=row) for row in ids]]
    work = policy.workload(prompts, completions)
    num_tokens = prompts[0].num_tokens + 3 * 11
    recurrence = 4 * 4 * 3 * 2 * 16 * 24 * num_tokens
    assert policy.family.recurrence_work(num_tokens) == recurrence
    head = 2 * policy.base.lm_head.weight.numel() * work.num_completion_tokens

    def counted(run) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    with torch.no_grad():
        scored = counted(lambda: policy.logprobs(prompts, completions, 1.0))
    assert scored == pytest.approx(work.scoring_flops - recurrence, rel=0.01)
    updated = counted(lambda: policy.logprobs(prompts, completions, 1.0).logprobs.sum().backward())
    # backward computes the head's logits again, which is not work done
    assert updated - head == pytest.approx(work.update_flops - 3 * recurrence, rel=0.01)


KERNELS = {
    "causal_conv1d/__init__.py": """
from torch.nn import functional as F
calls = []
def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    calls.append(x.shape)
    assert x.is_contiguous() and activation == "silu"
    padded = F.pad(x, (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))
""",
    "fla/__init__.py": "",
    "fla/ops/__init__.py": "",
    "fla/ops/gated_delta_rule.py": """
import inspect
calls = {"chunk": [], "recurrent": []}
def _plain(kind, *args, **kwargs):
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module
    calls[kind].append(args[0].shape)
    return inspect.unwrap(getattr(module, f"torch_{kind}_gated_delta_rule"))(*args, **kwargs)
def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None,
                           output_final_state=False, use_qk_l2norm_in_kernel=False):
    return _plain("chunk", q, k, v, g=g, beta=beta, initial_state=initial_state,
                  output_final_state=output_final_state,
                  use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel)
def fused_recurrent_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None,
                                     output_final_state=False, use_qk_l2norm_in_kernel=False):
    return _plain("recurrent", q, k, v, g=g, beta=beta, initial_state=initial_state,
                  output_final_state=output_final_state,
                  use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel)
""",
}
"""Packages of the names and signatures of the fast kernels, which call the plain functions."""

USES_KERNELS = """
import sys, torch, causal_conv1d
from fla.ops.gated_delta_rule import calls
from tests.models.conftest import make_sample
from tests.models.engines.running import mask_of, sample, sampled_logprobs
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import SamplingParams
policy = TransformersPolicy(sys.argv[1], dtype="float32")
policy.load()
prompts, completions = sample(policy, [make_sample(0, 4, (64, 64), "?")], [SamplingParams()] * 2, 6)
assert calls["chunk"] and calls["recurrent"] and causal_conv1d.calls
num_chunk = len(calls["chunk"])
policy.logprobs(prompts, completions, 1.0).logprobs.sum().backward()
assert len(calls["chunk"]) == num_chunk + 2 * 4  # prompt and completions, in four layers
scored = policy.logprobs(prompts, completions, 1.0).logprobs.detach()[mask_of(completions)]
torch.testing.assert_close(sampled_logprobs(completions), scored, rtol=0, atol=1e-4)
"""


@pytest.mark.slow
def test_fast_kernels_are_taken_where_they_are_installed(hybrid, tmp_path):
    """In the update and in sampling, by the functions of their packages."""
    for name, text in KERNELS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    subprocess.run(
        [sys.executable, "-c", USES_KERNELS, str(hybrid.folder)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        timeout=300,
    )
