"""The policy and the engine that repeat what was recorded."""

import json
import re

import pytest
import torch

from vrts.files.predictions import prediction_to_json
from vrts.models.engines.engine import Request
from vrts.models.prediction.replay import ReplayPolicy
from vrts.types import Clip, InputError, Prediction, Question, Round, Sample, SamplingParams


def write(folder, *lines, **settings):
    """A recorded run at 4, 8 and 16 frames."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"levels": [4, 8, 16]} | settings))
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def line(id, *rounds, error=None):
    """Rounds are pairs of a number of frames and a letter for each completion."""
    asked = Question(id, "Which?", "gone.mp4", options=("red", "green", "blue"))
    seen = tuple(
        Round(
            num_frames=T,
            completions=tuple(f"<answer>{a}</answer>" for a in letters),
            answers=tuple(None if a == "-" else a for a in letters),
            agreement=0.0,
            num_tokens=(1,) * len(letters),
            mean_logprobs=(0.0,) * len(letters),
            cancelled=(False,) * len(letters),
        )
        for T, letters in rounds
    )
    return prediction_to_json(Prediction(asked, seen, error=error))


def found(path, id, num_frames):
    """Frames that the recorded run saw and whether the video has no more, or why not."""
    result = load(path).find(id, num_frames)
    return result if isinstance(result, str) else (result.num_frames, result.is_last)


def test_a_round_is_found_by_its_frames(tmp_path):
    path = write(tmp_path, line("q", (4, "AAB"), (8, "ABC"), (16, "ABB")))
    assert [found(path, "q", T) for T in (4, 8, 16)] == [(4, False), (8, False), (16, False)]
    assert "the question is recorded at [4, 8, 16] frames and not at 32; predict" in found(
        path, "q", 32
    )
    assert "the question is not recorded" in found(path, "other", 4)


def test_a_video_that_had_fewer_frames_than_asked_for_has_no_more(tmp_path):
    path = write(tmp_path, line("q", (4, "AAB"), (6, "ABC")), line("image", (1, "ABC")))
    assert found(path, "q", 4) == (4, False)
    assert found(path, "q", 6) == found(path, "q", 8) == found(path, "q", 128) == (6, True)
    assert "not at 2" in found(path, "q", 2)
    assert found(path, "image", 4) == found(path, "image", 16) == (1, True)


@pytest.mark.parametrize("letters", ["AAA", "AAB", "---"])
@pytest.mark.parametrize("is_last", [True, False])
def test_what_was_recorded_of_a_video_s_end_counts_and_no_guess(tmp_path, letters, is_last):
    recorded = line("q", (4, letters))
    recorded["rounds"][0]["is_last"] = is_last
    path = write(tmp_path, recorded)
    assert found(path, "q", 4) == (4, is_last)
    assert found(path, "q", 16) == (4, True) if is_last else "not at 16" in found(path, "q", 16)


def test_a_failure_is_found_where_it_happened(tmp_path):
    path = write(
        tmp_path, line("gone", error="no such file"), line("later", (4, "AB"), error="damaged")
    )
    assert found(path, "gone", 4) == found(path, "gone", 16) == "no such file"
    assert found(path, "later", 4) == (4, False)
    assert found(path, "later", 8) == "damaged"
    assert "not at 16" in found(path, "later", 16)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"settings\.json: cannot read the levels of the recorded"):
        load(tmp_path / "predictions.jsonl")
    path = write(tmp_path)
    path.unlink()
    policy = ReplayPolicy(str(path))
    for call in (policy.load, policy.fingerprint):
        with pytest.raises(InputError, match=r"model\.policy\.path: cannot read .*predictions"):
            call()


@pytest.mark.parametrize("text", ["{", "[]", '{"levels": 3}', '{"levels": []}', "{}"])
def test_settings_of_something_else_are_named(tmp_path, text):
    path = write(tmp_path, line("q", (4, "AB")))
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"settings\.json: cannot read"):
        load(path)


@pytest.mark.parametrize("bad", ["{", "[]", "{}", '{"id": "a", "rounds": [{}], "error": null}'])
def test_a_bad_line_is_named(tmp_path, bad):
    path = write(tmp_path, line("q", (4, "AB")))
    with path.open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(InputError, match=rf"{path}:2: not a line that vrts predict wrote"):
        load(path)


def question(id):
    return Question(id, "Which?", "none.mp4", options=("red", "green", "blue"))


def load(path):
    policy = ReplayPolicy(str(path))
    assert not policy.loaded
    policy.load()
    assert policy.loaded
    return policy


def replay(policy, samples, G, should_stop=None):
    """Results of the samples, in their order."""
    engine = policy.default_engine()
    return engine.generate([
        Request(prompt, (SamplingParams(),) * G, tuple(range(G)), 8, should_stop)
        for prompt in engine.encode(samples)
    ])  # fmt: skip


def texts(result):
    return "".join(c.text.removeprefix("<answer>").removesuffix("</answer>")
                   for c in result.completions)  # fmt: skip


def test_completions_come_again_question_by_question(tmp_path):
    path = write(tmp_path, line("a", (4, "AAB"), (8, "ABC")), line("b", (4, "CBA")))
    policy = load(path)
    samples = [policy.sample(question("a"), 8), policy.sample(question("b"), 4)]
    assert list(map(texts, replay(policy, samples, 3))) == ["ABC", "CBA"]
    assert list(map(texts, replay(policy, samples, 2))) == ["AB", "CB"], "the first ones"


def test_an_engine_has_room_for_so_many_texts(tmp_path):
    policy = load(write(tmp_path, line("a", (4, "AAB"))))
    engine = policy.default_engine()
    (prompt,) = engine.encode([policy.sample(question("a"), 4)])
    request = Request(prompt, (SamplingParams(),), (0,), 8)
    while engine.has_room():
        engine.add(request)
    assert engine.num_pending == 64
    engine.cancel()
    assert (engine.num_pending, engine.step()) == (0, [])


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
    (result,) = replay(policy, [policy.sample(question("a"), 4)], 3)
    assert [c.num_tokens for c in result.completions] == [3, 700, 1]
    assert [c.mean_logprob for c in result.completions] == [-0.1234, -2.7, -31.5]


def test_what_is_not_recorded_fails_by_name(tmp_path):
    policy = load(write(tmp_path, line("a", (4, "AAA")), line("gone", error="no such file")))
    assert policy.sample(question("gone"), 4).error == "no such file"
    assert (
        "the question is recorded at [4] frames and not at 8"
        in policy.sample(question("a"), 8).error
    )
    clip = Clip(torch.zeros(8, 3, 28, 28, dtype=torch.uint8), tuple(range(8)), 1.0, 8)
    decoded = Sample(question("a"), clip)
    assert "not at 8" in policy.refuses(decoded, 8)
    with pytest.raises(InputError, match="not at 8"):
        policy.default_engine().encode([decoded])
    assert policy.refuses(policy.sample(question("a"), 4), 8) is None


def test_more_samples_than_recorded_are_an_error_of_their_question(tmp_path):
    policy = load(write(tmp_path, line("a", (4, "AAA")), line("b", (4, "CABAC"))))
    samples = [policy.sample(question(id), 4) for id in "ab"]
    first, second = replay(policy, samples, 5)
    assert "the round at 4 frames has 3 completions, and 5 are" in first.error
    assert first.completions == ()
    assert (second.error, texts(second)) == (None, "CABAC")


def cancelled(tmp_path):
    recorded = line("a", (4, "AB-A"))
    recorded["rounds"][0]["cancelled"] = [False, False, True, False]
    with pytest.warns(match=r"1 of 2 questions have completions .* will fail.*record\.yaml"):
        return load(write(tmp_path, recorded, line("b", (4, "AAA"))))


def test_cancelled_completions_are_needed_unless_the_replay_stops_early_too(tmp_path):
    policy = cancelled(tmp_path)
    sample = policy.sample(question("a"), 4)
    asked = []

    def stop(known, mean_logprobs):
        asked.append(list(known))
        return True

    (result,) = replay(policy, [sample], 4, stop)
    assert [c.cancelled for c in result.completions] == [False, False, True, False]
    assert [c.finished for c in result.completions] == [True, True, False, True]
    assert result.error is None
    assert asked == [["<answer>A</answer>", "<answer>B</answer>", None, "<answer>A</answer>"]]
    for refusing in (None, lambda *_: False):
        (result,) = replay(policy, [sample], 4, refusing)
        assert re.search(r"the round at 4 frames lacks 1 of 4 .*record.yaml", result.error)
    assert texts(replay(policy, [sample], 2)[0]) == "AB"


def test_it_cannot_be_trained_or_saved(tmp_path):
    policy = cancelled(tmp_path)
    for call in (
        lambda: policy.logprobs(None, None, 1.0),
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


def test_completions_without_log_probs_are_replayed_without(tmp_path):
    recorded = line("q", (4, "AAB"))
    recorded["rounds"][0]["mean_logprobs"] = []
    policy = load(write(tmp_path, recorded))
    (result,) = replay(policy, [policy.sample(question("q"), 4)], 3)
    assert texts(result) == "AAB"
    assert all(completion.logprobs is None for completion in result.completions)
