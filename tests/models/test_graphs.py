"""Rollouts through graphs, recorded on the CPU, against rollouts that run every step."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from vrts.models.decode_layout import DecodeLayout

from tests.models.recorded_graph import RecordedGraph, use_recorded_graphs
from tests.models.test_qwen import perturb_adapter
from vrts.models.graphs import GraphSteps, Steps, can_capture, is_sharded
from vrts.models.qwen_loading import Lora
from vrts.types import Sampling

L = 45
MIXED = [
    Sampling(),
    Sampling(1.3, 0.8, 9, presence_penalty=0.4, frequency_penalty=0.2),
    Sampling(0.0),
    Sampling(0.7, stop=("e",)),
]


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr("vrts.models.decoder.GRAPH_SEGMENT", 16)
    return lambda: use_recorded_graphs(monkeypatch)


def same(a, b) -> None:
    assert torch.equal(a.completion_ids, b.completion_ids)
    assert torch.equal(a.completion_mask, b.completion_mask)
    assert torch.equal(a.finished, b.finished)
    assert a.texts == b.texts
    assert (a.logprobs - b.logprobs).abs().max() <= 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
@pytest.mark.parametrize("sampling", [[Sampling()] * 3, MIXED])
def test_replayed_steps_decode_the_same(
    load_policy, samples, graphs, sampling, lora, checkpointing
):
    torch.manual_seed(0)  # of the adapter's first factor
    policy = load_policy(lora=lora, gradient_checkpointing=checkpointing).train()
    perturb_adapter(policy)
    vocab = policy.base.config.text_config.vocab_size
    policy._end_ids = torch.arange(0, vocab, 25)
    prompts = policy.encode(samples, L)
    seeds = list(range(len(samples) * len(sampling)))
    plain = policy.rollout(prompts, sampling, seeds, L)
    made = graphs()
    replayed = policy.rollout(prompts, sampling, seeds, L)
    same(plain, replayed)
    assert len(made) >= 2  # segments: 1 to 15, 16 to 31, 32 to 44
    assert made[0].num_replays == 14  # the first step of a segment runs as it is


def test_rows_leave_between_segments(load_policy, samples, graphs):
    policy = load_policy().eval()
    vocab = policy.base.config.text_config.vocab_size
    policy._end_ids = torch.arange(0, vocab, 10)
    prompts = policy.encode(samples, L)
    plain = policy.rollout(prompts, [Sampling()] * 5, list(range(15)), L)
    made = graphs()
    same(plain, policy.rollout(prompts, [Sampling()] * 5, list(range(15)), L))
    rows = [
        next(args[1] for func, args, *_ in g.calls if func is torch.ops.aten.embedding.default)
        for g in made
    ]
    assert len({len(r) for r in rows}) > 1, "no rows were dropped: the test shows nothing"


def test_weights_that_change_in_place_count_from_the_next_rollout(load_policy, samples, graphs):
    policy = load_policy().eval()
    prompts = policy.encode(samples, L)
    made = graphs()
    before = policy.rollout(prompts, [Sampling()] * 2, list(range(6)), L)
    with torch.no_grad():
        for parameter in policy.base.model.language_model.parameters():
            parameter.mul_(1.2)
    after = policy.rollout(prompts, [Sampling()] * 2, list(range(6)), L)
    assert before.texts != after.texts
    scores = policy.score(prompts, after, 1.0)
    assert (scores.logprobs - after.logprobs).abs().max() < 1e-4
    assert len(made) >= 2


def test_mixed_precision_decodes_the_same(load_policy, samples, graphs, monkeypatch):
    # segments of one length: in bfloat16 a product of another width rounds otherwise
    monkeypatch.setattr("vrts.models.decoder.CHECK_EVERY", 16)
    policy = load_policy().eval()
    prompts = policy.encode(samples, L)
    with torch.autocast("cpu", torch.bfloat16):
        plain = policy.rollout(prompts, [Sampling()] * 3, list(range(9)), L)
        made = graphs()
        same(plain, policy.rollout(prompts, [Sampling()] * 3, list(range(9)), L))
    assert made


def test_early_stop_and_graphs(load_policy, samples, graphs):
    policy = load_policy().eval()
    vocab = policy.base.config.text_config.vocab_size
    policy._end_ids = torch.arange(0, vocab, 15)
    prompts = policy.encode(samples, L)

    def any_text(question, texts, *more):
        return any(text is not None for text in texts)

    plain = policy.rollout(prompts, [Sampling()] * 4, list(range(12)), L, any_text)
    graphs()
    replayed = policy.rollout(prompts, [Sampling()] * 4, list(range(12)), L, any_text)
    assert plain.abandoned.any()
    assert torch.equal(plain.abandoned, replayed.abandoned)
    same(plain, replayed)


def test_the_recorded_graph_notices_what_a_graph_loses(monkeypatch):
    """The stand-in itself: a step that counts in Python is not replayed as it would run."""
    use_recorded_graphs(monkeypatch)
    steps, total, count = GraphSteps(), torch.zeros(1), [0]

    def in_python() -> None:
        count[0] += 1
        total.add_(count[0])

    steps.begin(in_python)
    for _ in range(4):
        steps()
    assert total.item() == 1 + 2 + 2 + 2  # as on CUDA, and not 10
    steps.begin(lambda: total.mul_(float(total)))
    steps()
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        steps()
    steps.begin(lambda: total.add_(total[total > 0].sum()))
    steps()
    with pytest.raises(AssertionError, match=r"nonzero|by a mask"):
        steps()
    assert len(RecordedGraph.made) == 3


def test_a_rollouts_buffers_go_with_it(load_policy, samples, graphs, monkeypatch):
    """At once: no garbage collection comes before the update needs the memory."""
    policy = load_policy().eval()
    prompts = policy.encode(samples, L)
    caches: list[weakref.ref] = []
    init = DecodeLayout.__init__

    def noting(self, *args):
        init(self, *args)
        caches.append(weakref.ref(self))

    monkeypatch.setattr(DecodeLayout, "__init__", noting)
    gc.disable()
    try:
        policy.rollout(prompts, [Sampling()] * 2, list(range(6)), L)
        graphs().append(None)
        policy.rollout(prompts, [Sampling()] * 2, list(range(6)), L)
        assert [cache() for cache in caches] == [None, None]
    finally:
        gc.enable()


def test_a_step_that_cannot_be_recorded_is_decoded_as_it_is(
    load_policy, samples, graphs, monkeypatch, caplog
):
    policy = load_policy().eval()
    prompts = policy.encode(samples, L)
    plain = policy.rollout(prompts, MIXED, list(range(12)), L)
    made, streams = graphs(), []

    @contextmanager
    def refuse(*args, **kwargs):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    for _ in range(2):
        same(plain, policy.rollout(prompts, MIXED, list(range(12)), L))
    assert len(made) == 1, "one attempt in all"
    assert streams == ["stream"], "a failed capture leaves its own stream as the current one"
    (line,) = [record.message for record in caplog.records]
    assert "operation not permitted" in line
    assert "cuda_graphs" in line
    assert "and more" not in line


def test_graphs_can_be_switched_off(load_policy, samples, graphs):
    policy = load_policy(cuda_graphs=False).eval()
    made = graphs()
    policy.rollout(policy.encode(samples, L), MIXED, list(range(12)), L)
    assert made == []


def test_what_cannot_be_captured(load_policy):
    policy = load_policy()
    assert not can_capture(policy.base)  # on a CPU
    assert not is_sharded(policy.base)
    with pytest.raises(AssertionError, match="begin"):
        Steps()()


def test_sharded_models_are_known_while_their_weights_are_gathered(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        assert not is_sharded(model)
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(model[0], mesh=mesh)
        assert is_sharded(model)
        model[0].unshard()
        assert not isinstance(model[0].weight, DTensor)
        assert is_sharded(model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_on_the_device(load_policy, samples, lora, monkeypatch):
    policy = load_policy(lora=lora).eval().cuda()
    perturb_adapter(policy)
    monkeypatch.setattr("vrts.models.decoder.GRAPH_SEGMENT", 16)
    prompts = policy.encode(samples, L)
    replayed = policy.rollout(prompts, MIXED, list(range(12)), L)
    monkeypatch.setattr("vrts.models.qwen.can_capture", lambda model: False)
    same(policy.rollout(prompts, MIXED, list(range(12)), L), replayed)
