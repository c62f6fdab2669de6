"""vLLM samples what the native engine samples. `make test-vllm` runs all of it; elsewhere, without
vLLM, what does not need it."""

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning import Callback

import vrts
from tests.callbacks.plugins import ScriptedPolicy
from tests.cli.test_command import fit_args, own_train, predict_args
from tests.models.conftest import make_sample
from tests.models.engines.running import CPU, make_engine, make_requests, tokens_of
from tests.models.families import tiny
from tests.models.naive import random_samples
from tests.models.vllm.padded import pad_model, untie
from vrts.cli.command import main
from vrts.files.shipped import find_model
from vrts.models.engines.engine import Request
from vrts.models.families.positions import VideoGrid, video_positions
from vrts.models.vllm import process
from vrts.models.vllm.engine import VLLMEngine
from vrts.models.vllm.prompts import fitting_seconds
from vrts.models.vlm.policy import TransformersPolicy
from vrts.prompts import PromptTemplate
from vrts.types import InputError, SamplingParams

HAS_VLLM = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed; make test-vllm has it")
OPTIONS = {
    "gpu_memory_utilization": 0.05,
    "max_model_len": 4096,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "engine_args": {"block_size": 32},
}
"""Of an engine that takes little of a small machine's memory."""
GREEDY = SamplingParams(0.0)
SAMPLING = [
    GREEDY,
    SamplingParams(0.0, frequency_penalty=1.0),
    SamplingParams(0.0, stop=("e",)),
    SamplingParams(),
    SamplingParams(1.0, 0.9, 20),
    SamplingParams(1.0, presence_penalty=0.4, frequency_penalty=0.2),
]
NUM_GREEDY = 3
PENALTIES = ", ".join(f"{{temperature: 0, frequency_penalty: {n / 4}}}" for n in range(5))
"""Five ways to decode greedily, which differ."""
S2D = f"{{class_path: SparseToDense, init_args: {{levels: [4, 8, 16], sampling: [{PENALTIES}]}}}}"
WRITER = "{class_path: PredictionWriter}"


# ---- without vLLM


def test_seconds_give_vllm_the_positions_that_weights_were_trained_with():
    """vLLM's own expression, in float64, on the fitting seconds and on those of the clips."""
    num_wrong = {"fitting": 0, "own": 0}
    for fps, num_frames in product((12.5, 23.976, 25, 29.97, 30, 60), (2, 8, 32, 128)):
        for total in range(num_frames, 20000, 371):
            own = 2 / (num_frames / total * fps)
            grid = VideoGrid(num_frames // 2, 2, 2, own, tokens_per_second=2.0)
            wanted = video_positions(grid, 2)[0].numpy()
            for name, seconds in (
                ("fitting", fitting_seconds(torch.from_numpy(wanted), 2.0)),
                ("own", own),
            ):
                got = (np.arange(num_frames // 2) * (seconds * 2.0)).astype(np.int64)
                assert abs(got - wanted).max() <= 1
                num_wrong[name] += (got != wanted).any()
    assert num_wrong["fitting"] == 0
    assert num_wrong["own"] > 5, "else they need not be fitted"


def test_patches_that_no_rate_fits_are_a_position_off():
    wanted = video_positions(VideoGrid(64, 2, 2, 2 / (128 / 2496 * 30), 2.0), 2)[0]
    got = (torch.arange(64, dtype=torch.float64) * (fitting_seconds(wanted, 2.0) * 2.0)).long()
    assert (got != wanted).sum() == 1
    assert (got - wanted).abs().max() == 1


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "vLLM is not installed; pip install"), ("0.11.0", "vLLM 0.11.0 is too old")],
)
def test_a_missing_or_old_vllm_is_told_before_the_model_is_loaded(
    version, message, model, annotations, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(process, "find_spec", lambda name: version)
    monkeypatch.setattr(metadata, "version", lambda name: version)
    monkeypatch.setattr(TransformersPolicy, "load", lambda self: pytest.fail("loads the model"))
    args = predict_args(model, tmp_path, annotations, "--config=vllm")
    assert main(args) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 3


def test_what_cannot_be_sampled_from_is_refused(monkeypatch, model):
    monkeypatch.setattr(process, "vllm_version", lambda: "0.32.0")
    engine = VLLMEngine()
    with pytest.raises(InputError, match="does not sample from ScriptedPolicy"):
        engine.check(ScriptedPolicy(), CPU, None)
    four_bits = TransformersPolicy(str(model), quantize="nf4")
    with pytest.raises(InputError, match="does not sample from 4-bit weights"):
        engine.check(four_bits, CPU, None)
    monkeypatch.setattr(process, "SERVED", ())
    with pytest.raises(InputError, match=r"does not take the features of Qwen2\.5-VL"):
        engine.check(TransformersPolicy(str(model)), CPU, None)


def test_what_cannot_be_trained_with_is_refused(load_policy):
    with pytest.raises(InputError, match=r"model\.temperature is 0\.7"):
        VLLMEngine().check(load_policy(), CPU, 0.7)
    with pytest.raises(InputError, match="sleeps on CUDA alone"):
        VLLMEngine(sleep=True).check(load_policy(), CPU, 1.0)
    with pytest.raises(InputError, match=r"trainer\.strategy shards them"):
        VLLMEngine().attach(load_policy(), CPU, None, will_shard=True)


def test_ranks_do_not_share_devices(load_policy, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="each rank has a vLLM of its own"):
        VLLMEngine(tensor_parallel_size=2).attach(load_policy(), CPU, None, will_shard=False)


def test_a_padded_model_is_the_same_function(padded, prompts_of):
    """Else what is compared with it below would be another model."""
    source, wide = load(find_model("assets/tiny")), load(padded)
    logits = [
        policy.network().prefill(prompts_of(policy))[1].log_softmax(-1) for policy in (source, wide)
    ]
    suppressed = source.network().suppressed_ids
    logits = [x.index_fill(-1, suppressed, 0.0) for x in logits]
    assert (logits[0] - logits[1]).abs().max() <= 1e-4


# ---- with vLLM


def load(path, **options) -> TransformersPolicy:
    options = {"prompt": PromptTemplate(preamble=""), "dtype": "float32", **options}
    policy = TransformersPolicy(str(path), **options)
    policy.load()
    return policy.eval()


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> Path:
    return pad_model(Path(find_model("assets/tiny")), tmp_path_factory.mktemp("padded"))


@pytest.fixture(scope="module")
def samples():
    """Videos of different length and size, and an image."""
    image = make_sample(9, 1, (56, 84), "Which colour has it?")
    image = replace(image, question=replace(image.question, is_image=True))
    return [*random_samples(torch.Generator().manual_seed(0), 4, 28, (2, 4)), image]


@pytest.fixture(scope="module")
def prompts_of(samples):
    return lambda policy: policy.network().encode(samples)


@pytest.fixture(scope="module")
def policy(padded) -> TransformersPolicy:
    return load(padded)


@pytest.fixture(scope="module")
def engine(policy):
    with running(policy) as found:
        yield found


@contextmanager
def running(policy, **options):
    """An engine that has the policy's weights."""
    engine = VLLMEngine(**{**OPTIONS, **options})
    engine.check(policy, CPU, 1.0)
    engine.attach(policy, CPU, None, will_shard=False)
    engine.sync(policy)
    yield engine
    engine._llm.engine_core.shutdown()


@torch.no_grad()
def largest_gap(policy, results) -> float:
    """Between log-probs of sampling and of scoring, over all tokens."""
    gaps = []
    for result in results:
        assert result.error is None
        for sampling, completion in zip(result.request.sampling, result.completions, strict=True):
            scored = policy.logprobs(
                [result.request.prompt], [[completion]], sampling.temperature or 1.0
            )
            gaps.append((scored.logprobs[0] - completion.logprobs).abs().max())
    return float(torch.stack(gaps).max())


def check_same_greedy(got, wanted, num_greedy: int = NUM_GREEDY) -> None:
    for own, other in zip(got, wanted, strict=True):
        pairs = zip(own.completions[:num_greedy], other.completions[:num_greedy], strict=True)
        for completion, expected in pairs:
            assert tokens_of(completion) == tokens_of(expected)
            assert completion.text == expected.text
            assert completion.finished == expected.finished


@needs_vllm
def test_completions_are_those_of_the_native_engine(engine, policy, samples):
    requests = make_requests(engine.encode(samples), SAMPLING, 24)
    got = engine.generate(requests)
    check_same_greedy(got, make_engine(policy).generate(requests))
    assert largest_gap(policy, got) <= 1e-4
    ids = [token for result in got for c in result.completions for token in tokens_of(c)]
    assert not set(ids) & set(policy.network().suppressed_ids.tolist())
    drawn = {c.text for result in got for c in result.completions[NUM_GREEDY:]}
    assert len(drawn) > 2 * len(samples), "seeds draw different completions"


@needs_vllm
def test_a_completion_depends_on_its_seed_alone(engine, samples):
    prompts = engine.encode(samples)
    together = engine.generate(make_requests(prompts, [SamplingParams()] * 3, 16))
    request = together[2].request
    for place in range(3):
        seed = request.seeds[place]
        (alone,) = engine.generate([Request(request.prompt, (SamplingParams(),), (seed,), 16)])
        (own,) = alone.completions
        assert tokens_of(own) == tokens_of(together[2].completions[place])


@needs_vllm
def test_other_temperatures_have_no_logprobs(engine, samples):
    heard = []

    def hear(texts, means):
        heard.append(list(means))
        return False

    (prompt,) = engine.encode(samples[:1])
    sampling = (SamplingParams(0.7), SamplingParams(0.7), GREEDY)
    (result,) = engine.generate([Request(prompt, sampling, (0, 1, 2), 12, hear)])
    assert [c.logprobs is None for c in result.completions] == [True, True, False]
    assert [] in heard, "no mean stands for one that is not known"


@needs_vllm
def test_an_early_stop_cancels_the_others_and_nothing_else(engine, samples):
    prompts = engine.encode(samples)
    sampling = [GREEDY, SamplingParams(0.0, stop=("e",))]
    whole = engine.generate(make_requests(prompts, sampling, 48))
    stops = [
        prompt
        for prompt, result in zip(prompts, whole, strict=True)
        if result.completions[1].num_tokens < 24
    ]
    assert stops, "some prompts have a short completion"
    requests = [
        replace(r.request, should_stop=(lambda texts, means: texts[1] is not None))
        if r.request.prompt in stops
        else r.request
        for r in whole
    ]
    for got, full in zip(engine.generate(requests), whole, strict=True):
        long, short = got.completions
        assert tokens_of(short) == tokens_of(full.completions[1])
        if got.request.prompt in stops:
            assert long.cancelled
            assert long.num_tokens < full.completions[0].num_tokens
        else:
            assert tokens_of(long) == tokens_of(full.completions[0])
    assert not engine.num_pending
    assert not engine._rows


@needs_vllm
def test_a_prompt_that_does_not_fit_is_refused_alone(engine, samples):
    (prompt,) = engine.encode(samples[:1])
    with pytest.raises(InputError, match=r"more than vLLM's 4096; raise .*max_model_len"):
        engine.add(Request(prompt, (GREEDY,), (0,), 4096))
    assert engine.generate(make_requests([prompt], [GREEDY], 4))[0].error is None


@needs_vllm
def test_one_engine_answers_question_after_question(engine, policy, videos):
    def ask(**options):
        choices = ["red", "green", "blue"]
        found = vrts.ask(
            policy, videos["long"], "Which?", choices, (4, 8), 3, 16, GREEDY, accelerator="cpu",
            **options,
        )  # fmt: skip
        return [round.completions for round in found.rounds]

    wanted = ask()
    assert ask(engine=engine) == wanted
    assert ask(engine=engine) == wanted


@needs_vllm
def test_a_long_video_fits_where_the_limit_says_so(engine, policy):
    """It is one item, which is not to have more tokens than a batch: 2,048, were that not set."""
    (prompt,) = engine.encode([make_sample(0, 56, (28 * 5, 28 * 15), "Which?")])
    assert len(prompt.vision_places) > 2048
    assert largest_gap(policy, engine.generate(make_requests([prompt], SAMPLING, 8))) <= 1e-4


@needs_vllm
def test_weights_go_over_and_older_keys_are_forgotten(engine, policy, samples):
    prompts = engine.encode(samples)
    requests = make_requests(prompts, SAMPLING, 12)
    engine.generate(requests)
    before = [p.detach().clone() for p in policy.parameters()]
    try:
        with torch.no_grad():
            for p in policy.family.language(policy.base).parameters():
                p.mul_(1 + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        engine._is_compared = False
        with pytest.raises(InputError, match=r"log-probs of vLLM .* differ from the policy's by"):
            engine.encode(samples[:1])
        engine.sync(policy)
        engine.encode(samples[:1])
        got = engine.generate(requests)
        assert largest_gap(policy, got) <= 1e-4
        check_same_greedy(got, make_engine(policy).generate(requests))
    finally:
        with torch.no_grad():
            for p, old in zip(policy.parameters(), before, strict=True):
                p.copy_(old)
        engine.sync(policy)


def build_smolvlm(folder: Path) -> None:
    """With heads of a size that vLLM takes."""
    with pytest.MonkeyPatch.context() as patch:
        text = tiny._text
        patch.setattr(tiny, "_text", lambda tokenizer: text(tokenizer) | {"head_dim": 32})
        tiny.build_smolvlm(folder)


def build_qwen3_5(folder: Path) -> None:
    """With gated delta nets of a size that vLLM takes."""
    with pytest.MonkeyPatch.context() as patch:
        config = tiny.Qwen3_5Config
        sizes = {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
        patch.setattr(
            tiny,
            "Qwen3_5Config",
            lambda text_config, **k: config(text_config=text_config | sizes, **k),
        )
        tiny.build_qwen3_5(folder)


@needs_vllm
@pytest.mark.parametrize(
    ("build", "side", "dtype", "limit"),
    [
        (tiny.build_qwen3_vl, 32, "float32", 1e-4),
        (build_smolvlm, tiny.SQUARE, "float32", 1e-4),
        # all that vLLM computes gated delta nets in on a CPU
        (build_qwen3_5, 32, "bfloat16", 0.1),
    ],
    ids=["qwen3_vl", "smolvlm", "qwen3_5"],
)
def test_families(build, side, dtype, limit, tmp_path):
    build(tmp_path / "model")
    untie(tmp_path / "model")
    policy = load(tmp_path / "model", dtype=dtype)
    if side == tiny.SQUARE:
        own = [make_sample(i, n, (side, side), "Which colour?") for i, n in enumerate((4, 8, 2))]
        image = make_sample(9, 1, (side, side), "Which colour has it?")
    else:
        own = random_samples(torch.Generator().manual_seed(0), 3, side, (2, 4))
        image = make_sample(9, 1, (2 * side, side), "Which colour has it?")
    own.append(replace(image, question=replace(image.question, is_image=True)))
    with running(policy) as engine:
        requests = make_requests(engine.encode(own), SAMPLING, 16)
        got = engine.generate(requests)
        assert largest_gap(policy, got) <= limit
        if dtype == "float32":
            check_same_greedy(got, make_engine(policy).generate(requests))
        with torch.no_grad():
            for p in policy.family.language(policy.base).parameters():
                p.mul_(1.02)
        engine.sync(policy)
        assert largest_gap(policy, engine.generate(requests)) <= limit


@needs_vllm
def test_heads_that_the_build_does_not_take_are_told(model, annotations, tmp_path, capsys):
    args = predict_args(model, tmp_path, annotations, "--config=vllm")
    assert main(args) == 1
    assert "the model's heads have 24 dimensions" in capsys.readouterr().err


@needs_vllm
def test_a_tied_head_does_not_go_over_on_a_cpu(engine, policy, monkeypatch):
    monkeypatch.setattr(policy.base.config, "tie_word_embeddings", True)
    with pytest.raises(InputError, match="keeps the old head"):
        engine.sync(policy)


@needs_vllm
def test_options_that_vllm_refuses_are_told(policy):
    refused = pytest.raises(InputError, match=r"vLLM .* does not start: .*no_such_option")
    with refused, running(policy, engine_args={"no_such_option": 1}):
        pytest.fail("it starts")


# ---- whole runs


def vllm_args() -> list[str]:
    values = {**OPTIONS, "engine_args": json.dumps(OPTIONS["engine_args"])}
    return ["--config=vllm", *(f"--model.engine.init_args.{k}={v}" for k, v in values.items())]


def lines_of(root: Path) -> dict[str, dict]:
    lines = (root / "predictions.jsonl").read_text().splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


class KillEngine(Callback):
    """Kills vLLM once some questions are decided."""

    def on_predictions(self, trainer, pl_module, predictions):
        processes = pl_module.engine._llm.engine_core.resources.engine_manager.processes
        os.kill(processes[0].pid, signal.SIGKILL)


@needs_vllm
def test_votes_and_levels_are_those_of_the_native_engine(padded, shared, tmp_path, capsys):
    """On real clips, greedily; then vLLM's process is killed in the middle, and a run resumes."""

    def predict(root: Path, *more: str, callbacks: str = f"[{S2D}, {WRITER}]") -> int:
        return main(
            [
                *predict_args(padded, root, shared / "annotations" / "real_videos.jsonl"),
                f"--data.predict.init_args.video_root={shared / 'videos'}",
                f"--trainer.callbacks={callbacks}",
                "--model.max_new_tokens=24",
                *more,
            ]
        )

    native, vllm, killed = (tmp_path / name for name in ("native", "vllm", "killed"))
    assert predict(native) == 0
    assert predict(vllm, *vllm_args()) == 0
    wanted = lines_of(native)
    assert len({len(line["rounds"]) for line in wanted.values()}) > 1, "some need more frames"
    got = lines_of(vllm)
    assert got.keys() == wanted.keys()
    for id, line in wanted.items():
        assert got[id]["answer"] == line["answer"]
        for own, other in zip(got[id]["rounds"], line["rounds"], strict=True):
            assert own["num_frames"] == other["num_frames"]
            for m in range(5):  # what has ended when a round is decided is a matter of pace
                if not (own["cancelled"][m] or other["cancelled"][m]):
                    for key in ("completions", "answers", "num_tokens"):
                        assert own[key][m] == other[key][m]
    assert any(any(r["cancelled"]) for line in got.values() for r in line["rounds"])
    settings = json.loads((vllm / "settings.json").read_text())
    assert settings["engine"] == "VLLMEngine"
    assert settings["vllm"] == process.vllm_version()

    capsys.readouterr()
    killer = f"{{class_path: {__name__}.KillEngine}}"
    few = "--model.engine.init_args.max_num_seqs=2"
    assert predict(killed, *vllm_args(), few, callbacks=f"[{S2D}, {WRITER}, {killer}]") == 1
    assert "vLLM's process has ended" in capsys.readouterr().err
    decided = lines_of(killed)
    assert 0 < len(decided) < len(wanted)
    assert not any(line["error"] for line in decided.values())
    assert predict(killed, *vllm_args(), few) == 0
    after = lines_of(killed)
    assert {id: line["answer"] for id, line in after.items()} == {
        id: line["answer"] for id, line in wanted.items()
    }
    assert all(after[id] == line for id, line in decided.items())


class WatchGap(Callback):
    """Notes how far sampling and scoring are apart, and how far weights have moved."""

    seen: ClassVar[list[tuple[int, float, float]]] = []

    def on_fit_start(self, trainer, pl_module):
        self.start = [p.detach().clone() for p in pl_module.policy.parameters()]

    def on_train_batch_end(self, trainer, pl_module, *args):
        gap = float(trainer.callback_metrics["train/sampling/logprob_diff"])
        pairs = zip(pl_module.policy.parameters(), self.start, strict=True)
        moved = max(float((p - start).abs().max()) for p, start in pairs)
        self.seen.append((trainer.global_step, gap, moved))


@needs_vllm
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_training_samples_from_the_newest_weights(
    tuning, padded, annotations, tmp_path, monkeypatch
):
    """Large updates, after each of which the weights go over; also of a run that resumes."""
    monkeypatch.setattr(WatchGap, "seen", [])
    keep = "{class_path: StepCheckpoint, init_args: {every_n_steps: 1, keep: 1}}"
    args = [
        *fit_args(padded, tmp_path, *own_train(annotations)),
        "--config=lora" if tuning == "lora" else "--config=full",
        "--model.policy.init_args.dtype=float32",
        "--model.optimizer.init_args.lr=0.01",
        "--model.rewards=[{class_path: tests.callbacks.plugins.TextReward}]",
        "--model.num_generations=4",
        f"--trainer.callbacks=[{keep}, {{class_path: {__name__}.WatchGap}}]",
        *vllm_args(),
    ]
    assert main([*args, "--trainer.max_steps=3"]) == 0
    assert main([*args, "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    assert [step for step, _, _ in WatchGap.seen] == [1, 2, 3, 4]
    assert max(gap for _, gap, _ in WatchGap.seen) <= 1e-4
    assert all(moved > 5e-3 for _, _, moved in WatchGap.seen), "else older weights would do"
