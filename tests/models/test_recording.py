"""Looking up recorded rounds: what is there, what a video cannot have, what is missing."""

import json

import pytest

from vrts.models.recording import Recording
from vrts.types import InputError


def write(folder, *lines, **settings):
    """A recorded run at 4, 8 and 16 frames."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"levels": [4, 8, 16]} | settings))
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def line(id, *rounds, error=None):
    """Rounds are pairs of a number of frames and a letter for each completion."""
    return {
        "id": id,
        "error": error,
        "rounds": [
            {
                "num_frames": T,
                "completions": [f"<answer>{a}</answer>" for a in letters],
                "answers": [None if a == "-" else a for a in letters],
            }
            for T, letters in rounds
        ],
    }


def found(path, id, num_frames):
    """Frames that the recorded run saw and whether the video has no more, or why not."""
    recording = Recording(path)
    recording.read()
    result = recording.find(id, num_frames)
    return result if isinstance(result, str) else (result.num_frames, result.is_last)


def test_a_round_is_found_by_its_frames(tmp_path):
    path = write(tmp_path, line("q", (4, "AAB"), (8, "ABC"), (16, "ABB")))
    assert [found(path, "q", T) for T in (4, 8, 16)] == [(4, False), (8, False), (16, False)]
    assert "q is recorded at [4, 8, 16] frames and not at 32; predict" in found(path, "q", 32)
    assert "question other is not recorded" in found(path, "other", 4)


def test_a_video_that_had_fewer_frames_than_asked_for_has_no_more(tmp_path):
    path = write(tmp_path, line("q", (4, "AAB"), (6, "ABC")), line("image", (1, "ABC")))
    assert found(path, "q", 4) == (4, False)
    assert found(path, "q", 6) == found(path, "q", 8) == found(path, "q", 128) == (6, True)
    assert "not at 2" in found(path, "q", 2)
    assert found(path, "image", 4) == found(path, "image", 16) == (1, True)


def test_a_question_that_went_no_further_without_agreement_had_no_more_frames(tmp_path):
    """A video of exactly 8 frames is seen whole at that level."""
    path = write(tmp_path, line("q", (4, "AAB"), (8, "AAB")), line("silent", (4, "---")))
    assert found(path, "q", 8) == found(path, "q", 16) == (8, True)
    assert found(path, "silent", 16) == (4, True)


@pytest.mark.parametrize("letters", ["AAA", "AAB", "---"])
@pytest.mark.parametrize("is_last", [True, False])
def test_what_was_recorded_of_a_video_s_end_counts_and_no_guess(tmp_path, letters, is_last):
    recorded = line("q", (4, letters))
    recorded["rounds"][0]["is_last"] = is_last
    path = write(tmp_path, recorded)
    assert found(path, "q", 4) == (4, is_last)
    assert found(path, "q", 16) == (4, True) if is_last else "not at 16" in found(path, "q", 16)


@pytest.mark.parametrize(
    ("letters", "consensus", "agreed"),
    [("AAA", None, True), ("AAB", None, False), ("AAB", 2, True), ("A-B", 2, False),
     ("AA-", 2, True), ("A--", 2, False)],
)  # fmt: skip
def test_agreement_is_that_of_the_recorded_run(tmp_path, letters, consensus, agreed):
    path = write(tmp_path, line("q", (4, letters)), consensus=consensus)
    assert found(path, "q", 4) == (4, not agreed)
    assert isinstance(found(path, "q", 8), str) == agreed


def test_a_failure_is_found_where_it_happened(tmp_path):
    path = write(
        tmp_path, line("gone", error="no such file"), line("later", (4, "AB"), error="damaged")
    )
    assert found(path, "gone", 4) == found(path, "gone", 16) == "no such file"
    assert found(path, "later", 4) == (4, False)
    assert found(path, "later", 8) == "damaged"
    assert "not at 16" in found(path, "later", 16)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"settings\.json: cannot read what the recorded run"):
        Recording(tmp_path / "predictions.jsonl").read()
    path = write(tmp_path)
    path.unlink()
    for call in (Recording(path).read, Recording(path).checksum):
        with pytest.raises(InputError, match=r"model\.policy\.path: cannot read .*predictions"):
            call()


@pytest.mark.parametrize("text", ["{", "[]", '{"levels": 3}', '{"levels": []}', "{}"])
def test_settings_of_something_else_are_named(tmp_path, text):
    path = write(tmp_path, line("q", (4, "AB")))
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"settings\.json: cannot read"):
        Recording(path).read()


@pytest.mark.parametrize("bad", ["{", "[]", "{}", '{"id": "a", "rounds": [{}], "error": null}'])
def test_a_bad_line_is_named(tmp_path, bad):
    path = write(tmp_path, line("q", (4, "AB")))
    with path.open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(InputError, match=rf"{path}:2: not a line of vrts predict"):
        Recording(path).read()
