"""The importance correction against TRL's own trainer, on the embedded model."""

import copy
import dataclasses
import math

import pytest
import torch

from tools.tiny.model import build_model_folder
from vrts.models.grpo.micro_batches import ImportanceCorrection, MicroBatch
from vrts.models.grpo.objectives import CISPO, DAPO, GRPO, GSPO, DrGRPO
from vrts.models.grpo.rollouts import Group
from vrts.types import Completion

pytestmark = pytest.mark.slow

G = 4
MAX_NEW_TOKENS = 9
SETTINGS = {
    "grpo": (GRPO, {"loss_type": "grpo"}),
    "dr_grpo": (DrGRPO, {"loss_type": "dr_grpo"}),
    "dapo": (DAPO, {"loss_type": "dapo"}),
    "gspo": (GSPO, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "cispo": (CISPO, {"loss_type": "cispo"}),
}
"""Objectives that TRL has too, and how."""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """TRL's, whose engine is replaced by random completions with log-probs that are off."""
    pytest.importorskip("trl", reason="TRL is missing: pip install '.[bench]'")
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    folder = tmp_path_factory.mktemp("trl")
    build_model_folder(folder / "model", seed=0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "model", dtype="float32")

    def generate(prompts):
        lengths = torch.randint(1, MAX_NEW_TOKENS, (len(prompts),)).tolist()
        ids = [torch.randint(20, 60, (n,)).tolist() for n in lengths]
        return [[5, 6, 7]] * len(prompts), ids, None, ["x"] * len(ids), drawn(lengths), {}, None, []

    def drawn(lengths):
        # random weights know nothing: all tokens are about equally likely
        level = -math.log(model.config.text_config.vocab_size)
        return [(level + 0.5 * torch.randn(n)).tolist() for n in lengths]

    found = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: torch.randn(len(completions)).tolist(),
        args=GRPOConfig(
            str(folder / "output"),
            per_device_train_batch_size=2 * G,
            num_generations=G,
            max_completion_length=MAX_NEW_TOKENS,
            use_bias_correction_kl=False,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "Which?"}]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    found.use_vllm, found._generate = True, generate
    found.current_gradient_accumulation_steps = 1
    found.model.train()
    return found


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_gradient_and_mean_weight_equal_trl_s(trainer, name, level):
    torch.manual_seed(3)
    cls, settings = SETTINGS[name]
    objective = cls(beta=0.1)
    trainer.beta = 0.0  # while it samples: it would score a reference
    trainer.vllm_importance_sampling_mode = f"{level}_truncate"
    trainer.vllm_importance_sampling_clip_max = 1.5
    trainer.loss_type = settings["loss_type"]
    trainer.importance_sampling_level = settings.get("importance_sampling_level", "token")
    trainer.epsilon_low, trainer.epsilon_high = objective.clip_low, objective.clip_high
    if cls is CISPO:  # TRL's is the limit itself
        trainer.epsilon_high += 1
    inputs = trainer._generate_and_score_completions([{"prompt": "Which?"}] * 2 * G)
    trainer.beta = objective.beta
    old = inputs["old_per_token_logps"]
    inputs["ref_per_token_logps"] = old + 0.5 * torch.randn(old.shape)

    # an update from there
    start = copy.deepcopy(trainer.model.state_dict())
    spread = 1e-5 if cls is GSPO else 1e-3
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += spread * torch.randn(parameter.shape)
    seen = []
    score = trainer._get_per_token_logps_and_entropies

    def scored(*args, **kwargs):
        found = score(*args, **kwargs)
        seen.append(found[0])
        return found

    trainer._get_per_token_logps_and_entropies = scored
    loss = trainer._compute_loss(trainer.model, inputs)
    trainer._get_per_token_logps_and_entropies = score
    (logprobs,) = seen
    (want,) = torch.autograd.grad(loss, logprobs)
    trainer.model.load_state_dict(start)

    lengths = inputs["completion_mask"].sum(1).tolist()
    sampled = inputs["sampling_per_token_logps"]
    rows = tuple(
        Completion("x", n, MAX_NEW_TOKENS, logprobs=own[:n])
        for n, own in zip(lengths, sampled, strict=True)
    )
    advantages = inputs["advantages"]
    groups = [
        Group(None, None, rows[i : i + G], {}, advantages[i : i + G], advantages[i : i + G])
        for i in (0, G)
    ]
    micro_batch = MicroBatch(groups, torch.device("cpu"), False, ImportanceCorrection(1.5, level))
    micro_batch.inputs(old, MAX_NEW_TOKENS)
    own = logprobs.detach().requires_grad_()
    c = dataclasses.replace(
        micro_batch.inputs(own, MAX_NEW_TOKENS), reference_logprobs=inputs["ref_per_token_logps"]
    )
    found = objective(c, objective.divisor(c.mask, MAX_NEW_TOKENS)).loss
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found, own)[0], want, rtol=1e-5, atol=1e-7)
    assert (want[c.mask] != 0).any()
    sums = micro_batch.sampling_sums
    assert 0 < sums["sampling/importance_ratio_capped"] < c.mask.sum()
    if level == "token":  # for sequences, TRL's mean is that of completions
        mean = trainer._metrics["train"]["sampling/importance_sampling_ratio/mean"][-1]
        assert sums["sampling/importance_ratio_mean"] / c.mask.sum() == pytest.approx(mean)
