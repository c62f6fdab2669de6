"""Reduced precision changes neither what is trained nor what must stay exact."""

import pytest
import torch

from tests.callbacks.runs import (
    History,
    make_data,
    make_module,
    make_policy,
    make_trainer,
    questions,
    scripted,
)
from tests.data.plugins import FakeDecoder
from tests.models.engines.running import mask_of, sample, sampled_logprobs
from tests.models.steps import KINDS, MAX_NEW_TOKENS, G, Snapshots, fit
from vrts.models.families.positions import VideoGrid, video_positions
from vrts.models.grpo.advantages import BatchScaled
from vrts.models.grpo.objectives import CISPO, DAPO, GRPO, GSPO, RLOO, DrGRPO
from vrts.models.grpo.reference import FrozenCopy
from vrts.models.grpo.temporal import TemporalReward
from vrts.types import SamplingParams


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_reduced_precision_starts_on_the_reference(tmp_path, varied_model, videos, kind, precision):
    """Policy and reference compute alike, so that the KL of the first step is zero."""
    options, reference = KINDS[kind]
    dtype = "float32" if precision == "bf16-mixed" else "bfloat16"
    _, trainer = fit(
        tmp_path, make_policy(varied_model, dtype=dtype, **options), questions(videos["long"], 2),
        objective=GRPO(beta=0.1), reference=reference(), trainer={"precision": precision},
    )  # fmt: skip
    assert trainer.callback_metrics["train/kl"] == pytest.approx(0, abs=1e-6)
    assert trainer.callback_metrics["train/entropy"] > 1
    assert 1e-4 < trainer.callback_metrics["train/sampling/logprob_diff"] < 0.1


def test_bf16_true_converts_weights_but_no_rotary_frequencies(tmp_path, varied_model, videos):
    """The reference's weights too; frequencies of 8 bits would misplace distant tokens."""
    policy = make_policy(varied_model)
    _, trainer = fit(
        tmp_path, policy, questions(videos["long"], 2), objective=GRPO(beta=0.1),
        reference=FrozenCopy(), trainer={"precision": "bf16-true"},
    )  # fmt: skip
    assert trainer.callback_metrics["train/kl"] == pytest.approx(0, abs=1e-6)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    untouched = make_policy(varied_model)
    untouched.load()
    frequencies = {n: b for n, b in policy.named_buffers() if "inv_freq" in n}
    assert len(frequencies) >= 2
    for name, buffer in untouched.named_buffers():
        if "inv_freq" in name:
            assert torch.equal(frequencies[name], buffer), name


@pytest.mark.parametrize(
    "objective",
    [
        GRPO(beta=0.5), DrGRPO(beta=0.5), DAPO(beta=0.5), RLOO(beta=0.5),
        CISPO(beta=0.5, advantages=BatchScaled()),
    ],
)  # fmt: skip
def test_bf16_true_trains_as_bfloat16_weights_do(tmp_path, varied_model, videos, objective):
    """It makes bfloat16 torch's default dtype, which nothing may take unasked."""
    results = []
    for precision in ("32-true", "bf16-true"):
        snapshots, history = Snapshots(), History()
        module, trainer = fit(
            tmp_path, make_policy(varied_model, dtype="bfloat16"), questions(videos["long"], 3),
            [snapshots, history], objective=objective, reference=FrozenCopy(), lr=0.2,
            temperature=0.9, updates_per_rollout=2, data={"batch_size": 3},
            num_groups=2, temporal=TemporalReward(alpha=0.3, mu=0),
            trainer={"precision": precision},
        )  # fmt: skip
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith(("_s", "tokens_per_s"))
        }
        results.append((history.losses, snapshots, metrics, module.last_rollout))
    (losses, first, metrics, rollout), (again, second, same, repeated) = results
    for group, other in zip(rollout, repeated, strict=True):
        assert [c.text for c in group.completions] == [c.text for c in other.completions]
        assert torch.equal(group.advantages, other.advantages)
    assert losses == again
    assert metrics == same
    for gradients, others in zip(first.gradients, second.gradients, strict=True):
        assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_positions_are_float32_whatever_the_default(bfloat16_by_default):
    """The golden case of 4.49: 18.75 s a temporal patch, 2 tokens a second, after 15 tokens."""
    grid = VideoGrid(16, 22, 42, seconds_per_grid=18.75, tokens_per_second=2)
    temporal = video_positions(grid, 2)[0].unique() + 15
    assert temporal.tolist() == [15 + int(37.5 * i) for i in range(16)]


def test_sampling_and_scoring_agree_whatever_the_default(load_policy, samples, bfloat16_by_default):
    policy = load_policy().eval()
    prompts, completions = sample(
        policy, samples, [SamplingParams(temperature=0.7)] * G, MAX_NEW_TOKENS
    )
    scores = policy.logprobs(prompts, completions, 0.7).logprobs
    sampled = sampled_logprobs(completions)
    assert (scores[mask_of(completions)] - sampled).abs().max() < 1e-4
    assert sampled.dtype == scores.dtype == torch.float32


@pytest.mark.parametrize("objective", [GRPO(), DrGRPO(), DAPO(), GSPO(), CISPO(), RLOO()])
def test_token_weights_are_float32_whatever_the_default(objective, bfloat16_by_default):
    mask = torch.arange(11) < torch.tensor([3, 7, 11])[:, None]
    weights, divisor = objective.token_weights(mask, 347)
    assert weights.dtype == divisor.dtype == torch.float32
    want = {
        GRPO: (1 / 7, 3), GSPO: (1 / 7, 3), DrGRPO: (1, 3 * 347), DAPO: (1, 21), CISPO: (1, 21),
        RLOO: (1, 3),
    }[type(objective)]  # fmt: skip
    assert (float(weights[1, 0]), float(divisor)) == pytest.approx(want, rel=1e-6)


def test_accuracy_is_exact_in_bf16_true(tmp_path, videos):
    """Also beyond 256, where 8 bits stop counting."""
    train = questions(videos["long"], 700)
    data = make_data(test=train, eval_batch_size=100, num_frames=2, decoder=FakeDecoder())
    trainer = make_trainer(tmp_path, precision="bf16-true")
    (result,) = trainer.test(make_module(scripted()), datamodule=data, verbose=False)
    assert result == {
        "test/accuracy": pytest.approx(234 / 700, rel=1e-6),
        "test/mean_frames": 2,
        "test/agreement": 1,
        "test/num_failed": 0,
    }
