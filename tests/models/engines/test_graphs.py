"""Decoding through graphs, recorded on the CPU, against steps that run as they are."""

from contextlib import contextmanager

import pytest
import torch

from tests.models.engines.running import (
    make_engine,
    make_requests,
    mask_of,
    sampled_logprobs,
    tokens_of,
)
from tests.models.recorded_graph import RecordedGraph, use_recorded_graphs
from tests.models.vlm.test_policy import perturb_adapter
from vrts.models.engines.decode_batch import DecodeBatch
from vrts.models.engines.graphs import StepGraphs
from vrts.models.engines.native import NativeEngine
from vrts.models.vlm.loading import Lora
from vrts.types import SamplingParams

L = 45
MIXED = [
    SamplingParams(),
    SamplingParams(1.3, 0.8, 9, presence_penalty=0.4, frequency_penalty=0.2),
    SamplingParams(0.0),
    SamplingParams(0.7, stop=("e",)),
]


@pytest.fixture
def graphs(monkeypatch):
    """Small graphs: of up to 16 own tokens, and of 2 rows more or less."""
    monkeypatch.setattr("vrts.models.engines.decode_batch.GRAPH_COLUMNS", 16)
    monkeypatch.setattr("vrts.models.engines.decode_batch.GRAPH_ROWS", 2)
    return use_recorded_graphs(monkeypatch)


def graph_engine(policy, look_every=2, **options):
    engine = make_engine(policy, **options)
    engine._uses_graphs, engine._look_every = True, look_every
    return engine


def generate(engine, prompts, sampling, **options):
    results = engine.generate(make_requests(prompts, sampling, L, **options))
    return [result.completions for result in results]


def same(plain, replayed) -> None:
    for want, got in zip(sum(plain, ()), sum(replayed, ()), strict=True):
        assert tokens_of(got) == tokens_of(want)
        assert (got.text, got.finished, got.cancelled) == (want.text, want.finished, want.cancelled)
        assert not len(want.logprobs) or (got.logprobs - want.logprobs).abs().max() <= 1e-5


@pytest.fixture
def policy(load_policy):
    """One token in twenty-five ends a completion."""
    policy = load_policy().eval()
    policy.network().end_ids = torch.arange(0, policy.network().vocab_size, 25)
    return policy


@pytest.mark.parametrize("max_rows", [5, 64])
@pytest.mark.parametrize("sampling", [[SamplingParams()] * 3, MIXED])
def test_replayed_steps_decode_the_same(policy, samples, graphs, sampling, max_rows):
    """While rows and prompts come and go."""
    plain = make_engine(policy)
    prompts = plain.encode(samples)
    want = generate(plain, prompts, sampling)
    assert graphs == []
    same(want, generate(graph_engine(policy, max_rows=max_rows), prompts, sampling))
    assert len(graphs) >= 3
    assert sum(graph.num_replays for graph in graphs) > 30
    rows = {
        len(next(args[1] for func, args, *_ in g.calls if func is torch.ops.aten.embedding.default))
        for g in graphs
    }
    assert len(rows) > 1, "no rows were dropped: the test shows nothing"


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_copy_of_adapted_weights_is_replayed(
    load_policy, samples, graphs, checkpointing, monkeypatch
):
    """Checkpointing saves states of generators, which no graph can hold: the copy has none."""
    torch.manual_seed(0)  # of the adapter's first factor
    policy = load_policy(lora=Lora(rank=4), gradient_checkpointing=checkpointing).train()
    perturb_adapter(policy)
    engine = graph_engine(policy, dtype=torch.bfloat16)
    prompts = engine.encode(samples)
    eager = make_engine(policy, dtype=torch.bfloat16)
    # of the same shapes: in bfloat16 a product of another width rounds otherwise
    eager._uses_graphs, eager._look_every = True, 2
    got = generate(engine, prompts, [SamplingParams()] * 2)
    made = len(graphs)
    assert made >= 2
    monkeypatch.setattr(StepGraphs, "run", lambda self, key, step: step())
    same(generate(eager, prompts, [SamplingParams()] * 2), got)
    assert len(graphs) == made


def test_weights_that_change_in_place_count_from_the_next_request(policy, samples, graphs):
    engine = graph_engine(policy)
    prompts = engine.encode(samples)
    before = generate(engine, prompts, [SamplingParams()] * 2)
    made = len(graphs)
    with torch.no_grad():
        for parameter in policy.base.model.language_model.parameters():
            parameter.mul_(1.2)
    engine.sync(policy)
    after = generate(engine, prompts, [SamplingParams()] * 2)
    assert [c.text for c in before[0]] != [c.text for c in after[0]]
    scores = policy.logprobs(prompts, after, 1.0).logprobs[mask_of(after)]
    assert (scores - sampled_logprobs(after)).abs().max() < 1e-4
    assert made >= 2


def test_early_stop_and_graphs(policy, samples, graphs):
    def any_text(texts, means):
        return any(text is not None for text in texts)

    plain = make_engine(policy)
    plain._look_every = 2
    prompts = plain.encode(samples)
    want = generate(plain, prompts, MIXED, should_stop=any_text)
    assert any(c.cancelled for group in want for c in group)
    same(want, generate(graph_engine(policy), prompts, MIXED, should_stop=any_text))
    assert graphs


def test_the_recorded_graph_notices_what_a_graph_loses(graphs):
    """The stand-in itself: a step that counts in Python is not replayed as it would run."""
    steps, total, count = StepGraphs(enabled=True), torch.zeros(1), [0]

    def in_python() -> None:
        count[0] += 1
        total.add_(count[0])

    for _ in range(4):
        steps.run("a", in_python)
    assert total.item() == 1 + 2 + 2 + 2  # as on CUDA, and not 10
    steps.run("b", lambda: total.mul_(float(total)))
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        steps.run("b", lambda: total.mul_(float(total)))
    steps.run("c", lambda: total.add_(total[total > 0].sum()))
    with pytest.raises(AssertionError, match=r"nonzero|by a mask"):
        steps.run("c", lambda: total.add_(total[total > 0].sum()))
    assert len(RecordedGraph.made) == 3
    steps.clear()
    steps.run("a", in_python)
    assert count == [3], "it runs as it is once more"


def test_the_graphs_that_were_used_last_are_kept(graphs, monkeypatch):
    monkeypatch.setattr("vrts.models.engines.graphs.MAX_GRAPHS", 2)
    steps, runs = StepGraphs(enabled=True), []
    for key in "aabbabccab":
        steps.run(key, lambda key=key: runs.append(key))
    # a, b and c run as they are and are recorded; c drops a, which comes back as new and drops b
    assert runs == list("aabbccab")
    assert len(graphs) == 3


def test_a_step_that_cannot_be_recorded_is_decoded_as_it_is(
    policy, samples, graphs, monkeypatch, caplog
):
    plain = make_engine(policy)
    prompts = plain.encode(samples)
    want, streams = generate(plain, prompts, MIXED), []

    @contextmanager
    def refuse(*args, **kwargs):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    engine = graph_engine(policy)
    for _ in range(2):
        same(want, generate(engine, prompts, MIXED))
    assert len(graphs) == 1, "one attempt in all"
    assert streams == ["stream"], "a failed capture leaves its own stream as the current one"
    (line,) = [record.message for record in caplog.records]
    assert "operation not permitted" in line
    assert "cuda_graphs" in line
    assert "and more" not in line


@pytest.mark.parametrize(("option", "uses"), [(True, True), (False, False)])
def test_graphs_are_for_cuda_and_can_be_switched_off(policy, option, uses, monkeypatch):
    assert not make_engine(policy, cuda_graphs=True)._uses_graphs, "on a CPU"
    monkeypatch.setattr("vrts.models.engines.native.Replica", lambda *args: policy.network())
    engine = NativeEngine(cuda_graphs=option)
    engine.attach(policy, torch.device("cuda"), None, will_shard=False)
    assert engine._uses_graphs is uses


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_on_the_device(load_policy, samples, lora, monkeypatch):
    monkeypatch.setattr("vrts.models.engines.decode_batch.GRAPH_COLUMNS", 16)
    policy = load_policy(lora=lora).eval().cuda()
    perturb_adapter(policy)
    found = []
    for cuda_graphs in (True, False):
        engine = make_engine(policy, device=torch.device("cuda"), cuda_graphs=cuda_graphs)
        found.append(generate(engine, engine.encode(samples), MIXED))
    same(*found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_no_decoding_step_waits_for_the_device(load_policy, samples, cuda_graphs, monkeypatch):
    advance, count = DecodeBatch.advance, []

    def watched(self):
        torch.cuda.set_sync_debug_mode("error")
        try:
            advance(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        count.append(self.num_rows)

    policy = load_policy(lora=Lora(rank=4)).eval().cuda()
    engine = make_engine(policy, device=torch.device("cuda"), cuda_graphs=cuda_graphs)
    prompts = engine.encode(samples)
    generate(engine, prompts, MIXED)  # allocates, records
    monkeypatch.setattr(DecodeBatch, "advance", watched)
    generate(engine, prompts, MIXED)
    assert len(count) > 20
