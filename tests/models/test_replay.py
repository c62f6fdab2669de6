"""The policy that says again what was recorded."""

import re

import pytest
import torch

from tests.models.test_recording import line, write
from vrts.models.answering import RoundPlan, ask
from vrts.models.replay import ReplayPolicy
from vrts.types import Clip, InputError, Question, Sample, Sampling
from vrts.voting import decide, fail


def question(id):
    return Question(id, "Which?", "none.mp4", options=("red", "green", "blue"))


def load(path):
    policy = ReplayPolicy(str(path))
    assert not policy.loaded
    policy.load()
    assert policy.loaded
    return policy


def plan(num_samples):
    return RoundPlan((Sampling(),) * num_samples)


def roll_out(policy, samples, num_samples, stop_early=None):
    prompts = policy.encode(samples, 8)
    G = num_samples
    return policy.rollout(prompts, [Sampling()] * G, list(range(len(samples) * G)), 8, stop_early)


def test_completions_come_again_question_by_question(tmp_path):
    path = write(tmp_path, line("a", (4, "AAB"), (8, "ABC")), line("b", (4, "CBA")))
    policy = load(path)
    samples = [policy.sample(question("a"), 8), policy.sample(question("b"), 4)]
    texts = roll_out(policy, samples, 3).texts
    assert texts == tuple(f"<answer>{letter}</answer>" for letter in "ABCCBA")
    texts = roll_out(policy, samples, 2).texts
    assert texts == tuple(f"<answer>{letter}</answer>" for letter in "ABCB"), "the first ones"


def test_a_clip_has_frames_and_times_and_no_pixels(tmp_path):
    recorded = line("a", (4, "AAB"), (6, "ABC"))
    recorded["rounds"][0]["times_s"] = [0.0, 0.4171, 3600.1234, 86399.9999]
    policy = load(write(tmp_path, recorded))
    clip = policy.sample(question("a"), 4).clip
    assert clip.num_frames == 4
    assert clip.num_source_frames > 4
    assert clip.frames.shape == (4, 3, 0, 0)
    assert clip.times_s == (0.0, 0.4171, 3600.1234, 86399.9999)
    clip = policy.sample(question("a"), 16).clip
    assert clip.num_frames == clip.num_source_frames == 6


def test_numbers_of_tokens_and_mean_log_probs_come_again(tmp_path):
    recorded = line("a", (4, "AAB"))
    recorded["rounds"][0] |= {"num_tokens": [3, 700, 1], "mean_logprobs": [-0.1234, -2.7, -31.5]}
    policy = load(write(tmp_path, recorded))
    rollout = roll_out(policy, [policy.sample(question("a"), 4)], 3)
    assert rollout.lengths.tolist() == [3, 700, 1]
    means = rollout.logprobs.sum(-1) / rollout.lengths
    assert [round(mean, 4) for mean in means.tolist()] == [-0.1234, -2.7, -31.5]
    assert (rollout.logprobs[~rollout.completion_mask] == 0).all()


def test_what_is_not_recorded_fails_by_name(tmp_path):
    policy = load(write(tmp_path, line("a", (4, "AAA")), line("gone", error="no such file")))
    assert policy.sample(question("gone"), 4).error == "no such file"
    assert (
        "question a is recorded at [4] frames and not at 8" in policy.sample(question("a"), 8).error
    )
    clip = Clip(torch.zeros(8, 3, 28, 28, dtype=torch.uint8), tuple(range(8)), 1.0, 8)
    decoded = Sample(question("a"), clip)
    assert "not at 8" in policy.refuses(decoded, 8)
    with pytest.raises(InputError, match="not at 8"):
        policy.encode([decoded], 8)
    assert policy.refuses(policy.sample(question("a"), 4), 8) is None


def test_more_samples_than_recorded_are_an_error_of_their_question(tmp_path):
    policy = load(write(tmp_path, line("a", (4, "AAA")), line("b", (4, "CABAC"))))
    samples = [policy.sample(question(id), 4) for id in "ab"]
    rollout = roll_out(policy, samples, 5)
    error, none = rollout.errors
    assert "question a at 4 frames has 3 completions, and 5 are" in error
    assert none is None
    assert len(rollout.texts) == len(rollout.lengths) == 10
    assert rollout.texts[5:] == tuple(f"<answer>{letter}</answer>" for letter in "CABAC")
    first, second = ask(policy, samples, policy.encode(samples, 8), plan(5), 0, 8)
    assert (first.error, first.answers) == (error, ())
    assert (second.error, second.answers) == (None, tuple("CABAC"))
    assert decide(question("a"), [second, first]) == fail(question("a"), error, [second])


def abandoned(tmp_path):
    recorded = line("a", (4, "AB-A"))
    recorded["rounds"][0]["abandoned"] = [False, False, True, False]
    return load(write(tmp_path, recorded))


def test_what_an_early_stop_gave_up_is_needed_unless_a_stop_says_otherwise(tmp_path):
    policy = abandoned(tmp_path)
    sample = policy.sample(question("a"), 4)
    asked = []

    def stop(index, texts, mean_logprobs):
        asked.append((index, list(texts)))
        return True

    rollout = roll_out(policy, [sample], 4, stop)
    assert rollout.abandoned.tolist() == [False, False, True, False]
    assert rollout.finished.tolist() == [True, True, False, True]
    assert rollout.errors == (None,)
    told = ["<answer>A</answer>", "<answer>B</answer>", None, "<answer>A</answer>"]
    assert asked == [(0, told)]
    for refusing in (None, lambda *_: False):
        (error,) = roll_out(policy, [sample], 4, refusing).errors
        assert re.search(r"question a at 4 frames has 1 .*early_stop: false", error)
    assert roll_out(policy, [sample], 2).texts == ("<answer>A</answer>", "<answer>B</answer>")


def test_it_cannot_be_trained_or_saved(tmp_path):
    policy = abandoned(tmp_path)
    for call in (
        lambda: policy.score(None, None, 1.0),
        policy.adapter_disabled,
        policy.train,
        lambda: policy.save_pretrained(tmp_path),
    ):
        with pytest.raises(InputError, match="holds recorded completions and no weights"):
            call()


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    one = write(tmp_path / "one", line("a", (4, "AAA")))
    same = write(tmp_path / "same", line("a", (4, "AAA")))
    other = write(tmp_path / "other", line("a", (4, "AAB")))
    first, again, different = (ReplayPolicy(str(p)).fingerprint() for p in (one, same, other))
    assert first == again
    assert first != different
