"""The folder of a prediction run: what it holds, who may write there, and what is refused."""

import errno
import json
import resource

import pytest

from tests.callbacks.plugins import OPTIONS, ask
from tests.callbacks.prediction.test_writer import SCRIPT, nine, seven
from tests.callbacks.runs import (
    by_id,
    make_policy,
    predict,
    questions,
    scripted,
)
from tests.own_plugins import SteepVote
from tests.permissions import permissions_count
from vrts.prompts import PromptTemplate
from vrts.types import InputError, SamplingParams


@pytest.fixture(scope="module")
def full(tmp_path_factory, videos):
    """What an uninterrupted run writes: lines and metrics."""
    return predict(tmp_path_factory.mktemp("full"), scripted(SCRIPT), seven(videos))


def test_a_question_with_a_half_written_line_is_predicted_again(tmp_path, videos, full):
    predict(tmp_path, scripted(SCRIPT), seven(videos))
    path = tmp_path / "predictions.jsonl"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:5]) + text[5][: len(text[5]) // 2])
    policy = scripted(SCRIPT)
    assert predict(tmp_path, policy, seven(videos)) == full
    assert policy.asked == [("q5", 4), ("q6", 4)]


@pytest.mark.parametrize("num_bytes", [0, 700, 3000, 5500])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, videos, full, num_bytes):
    """A limit on the size of files stands in for it: lines end where the room does."""
    predict(tmp_path, scripted(SCRIPT), seven(videos)[:0])
    path, had = tmp_path / "predictions.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, had[1]))
    try:
        with pytest.raises(OSError, match=r"predictions\.jsonl") as caught:
            predict(tmp_path, scripted(SCRIPT), seven(videos))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, had)
    assert caught.value.errno == errno.EFBIG
    assert path.stat().st_size == num_bytes
    done = path.read_bytes().count(b"\n")
    policy = scripted(SCRIPT)
    assert predict(tmp_path, policy, seven(videos)) == full
    assert {id for id, _ in policy.asked} == ({f"q{i}" for i in range(done, 7)} - {"q3"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [4, 8]}, r"levels \[4, 8, 16\] -> \[4, 8\]"),
        ({"levels": None}, r"levels \[4, 8, 16\] -> \[4\]; num_samples 3 -> 1"),
        ({"num_samples": 5}, "num_samples 3 -> 5"),
        ({"seed": 7}, "seed 0 -> 7"),
        ({"max_new_tokens": 9}, "max_new_tokens 8 -> 9"),
        ({"eval_sampling": SamplingParams(temperature=0.5)}, "temperature 1.0 -> 0.5"),
        ({"eval_sampling": SamplingParams(top_p=0.5)}, "top_p 1.0 -> 0.5"),
        ({"eval_sampling": SamplingParams(top_k=50)}, "top_k 0 -> 50"),
        ({"trainer": {"precision": "bf16-true"}}, "precision '32-true' -> 'bf16-true'"),
        ({"s2d": {"vote": SteepVote(2.0)}}, "vote .*'steepness': 1.0.* -> .*'steepness': 2.0"),
        ({"data": {"resolution": None}}, "resolution .*3136.* -> .*100352"),
    ],
)
def test_other_settings_are_refused(tmp_path, videos, change, message):
    vote = SteepVote(1.0) if "s2d" in change else None
    predict(tmp_path, scripted(SCRIPT), seven(videos), s2d={"vote": vote})
    before = (tmp_path / "predictions.jsonl").read_bytes()
    policy = scripted()
    with pytest.raises(InputError, match=f"other settings .*{message}.*output_dir"):
        predict(tmp_path, policy, seven(videos), **change)
    assert policy.asked == []
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_sampling_that_is_overridden_does_not_count(tmp_path, videos):
    """Settings record how completions are drawn, whoever says so."""
    asked = questions(videos["long"], 2)
    own = [SamplingParams(0.5), SamplingParams(0.9, stop=("x",)), SamplingParams(0.7)]
    draw = {"num_samples": None, "s2d": {"sampling": own}}
    predict(tmp_path / "own", scripted(), asked[:1], **draw)
    lines, _ = predict(
        tmp_path / "own", scripted(), asked, eval_sampling=SamplingParams(0.1), **draw
    )
    assert len(lines) == 2
    other = {"num_samples": None, "s2d": {"sampling": [own[0], own[2], own[1]]}}
    with pytest.raises(InputError, match=r"other settings \(sampling \[.*\] -> \["):
        predict(tmp_path / "own", scripted(), asked, **other)
    alike = SamplingParams(0.4, top_k=9)
    predict(tmp_path / "alike", scripted(), asked[:1], eval_sampling=alike)
    same = {"num_samples": None, "s2d": {"sampling": [alike] * 3}}
    assert len(predict(tmp_path / "alike", scripted(), asked, **same)[0]) == 2


def test_another_model_is_refused(tmp_path, videos, model_folder):
    predict(tmp_path, scripted(), questions(videos["long"], 1))
    policy = make_policy(model_folder)
    with pytest.raises(InputError, match="policy 'ScriptedPolicy' -> 'TransformersPolicy'"):
        predict(tmp_path, policy, questions(videos["long"], 1))
    assert not policy.loaded, "refused before anything is loaded"


def test_another_dtype_is_refused(tmp_path, videos, model_folder):
    asked = questions(videos["long"], 1)
    predict(tmp_path, make_policy(model_folder), asked)
    with pytest.raises(InputError, match="dtype 'float32' -> 'bfloat16'"):
        predict(tmp_path, make_policy(model_folder, dtype="bfloat16"), asked)


def test_another_prompt_is_refused(tmp_path, videos, model_folder):
    asked = questions(videos["long"], 1)
    predict(tmp_path, make_policy(model_folder), asked)
    with pytest.raises(InputError, match=r"prompt .*Which do you see\?"):
        predict(
            tmp_path,
            make_policy(model_folder, prompt=PromptTemplate(multiple_choice="Which do you see?")),
            asked,
        )


def test_other_questions_are_refused(tmp_path, videos):
    predict(tmp_path, scripted(), questions(videos["long"], 2))
    with pytest.raises(InputError, match=r"predictions\.jsonl: holds 2 questions .* 'q0' first"):
        predict(tmp_path, scripted(), questions(videos["long"], 3, prefix="other"))


def test_a_foreign_line_is_named(tmp_path, videos):
    predict(tmp_path, scripted(), questions(videos["long"], 1))
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write("notes of mine\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl:2: not a line"):
        predict(tmp_path, scripted(), questions(videos["long"], 1))


def test_a_folder_where_metrics_go_is_found_before_the_first_question(tmp_path, videos):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(InputError, match=rf"cannot use {tmp_path} \(metrics.json is a folder"):
        predict(tmp_path, scripted(), questions(videos["long"], 1))
    assert not (tmp_path / "predictions.jsonl").exists()


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_damaged_settings_are_named(tmp_path, videos, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=f"output_dir: cannot use {tmp_path} .*settings"):
        predict(tmp_path, scripted(), questions(videos["long"], 1))


def unusable(folder, kind):
    """An output folder that cannot be written to; the tests may run as root."""
    if kind == "a file":
        (folder / "out").write_text("")
        return folder / "out"
    if kind == "below a file":
        (folder / "file").write_text("")
        return folder / "file" / "out"
    if kind == "no place for files":
        return "/proc/vrts"
    (folder / "out" / "predictions.jsonl").mkdir(parents=True)
    return folder / "out"


@pytest.mark.parametrize("kind", ["a file", "below a file", "no place for files", "taken"])
def test_an_unusable_folder_is_named_before_anything_is_loaded(tmp_path, videos, kind):
    folder = unusable(tmp_path, kind)
    policy = scripted()
    with pytest.raises(InputError, match=f"PredictionWriter.output_dir: cannot use {folder}"):
        predict(folder, policy, questions(videos["long"], 1))
    assert policy.asked == []


def test_a_folder_without_permission_is_named_before_anything_is_loaded(tmp_path, videos):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o500)
    policy = scripted()
    with (
        permissions_count(),
        pytest.raises(InputError, match=rf"cannot use {folder} \(.*Permission denied"),
    ):
        predict(folder, policy, questions(videos["long"], 1))
    assert policy.asked == []


def test_files_of_other_processes_are_merged(tmp_path, videos, full):
    lines, _ = full
    predict(tmp_path, scripted(SCRIPT), seven(videos)[:2])
    other = [{**lines[1], "answer": "C"}, lines[4]]
    for rank, part in ((1, other), (2, [lines[6], lines[5]])):
        text = "".join(json.dumps(line) + "\n" for line in part)
        (tmp_path / f"predictions.rank{rank}.jsonl").write_text(text + '{"id": "q2", "ro')
    policy = scripted(SCRIPT)
    found, metrics = predict(tmp_path, policy, seven(videos))
    assert policy.asked == [("q2", 4), ("q2", 8), ("q2", 16)]
    assert by_id(found) == by_id(lines), "what was written first stays"
    assert [line["id"] for line in found] == [line["id"] for line in lines]
    assert metrics == full[1]
    assert not list(tmp_path.glob("*rank*"))


def test_every_kind_of_text_survives(tmp_path, videos):
    name = 'a\n"b"\u2028视频\u0085'
    lines, _ = predict(tmp_path, scripted(), [ask(name, videos["long"])])
    assert lines[0]["id"] == name
    policy = scripted()
    assert predict(tmp_path, policy, [ask(name, videos["long"])])[0] == lines
    assert policy.asked == []
    assert OPTIONS


def test_metrics_do_not_depend_on_the_order_of_the_lines(tmp_path, videos):
    asked = nine(videos)
    full = predict(tmp_path, scripted(SCRIPT), asked)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    (tmp_path / "metrics.json").unlink()
    assert predict(tmp_path, scripted(SCRIPT), asked)[1] == full[1]
    assert full[1]["failed"] == ["q3", "q8"]
