"""Any JSON value in any field of every format: a sound question, or a fault by file and line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.readers import (
    test_cgbench,
    test_longvideobench,
    test_mmvu,
    test_videoholmes,
    test_videomme,
    test_videommmu,
)
from tests.data.readers.test_video_rts import R1, RTS
from vrts.answers import is_correct
from vrts.data.readers.cgbench import CGBenchReader
from vrts.data.readers.longvideobench import LongVideoBenchReader
from vrts.data.readers.mmvu import MMVUReader
from vrts.data.readers.plain import PlainReader
from vrts.data.readers.recorded import RecordedReader
from vrts.data.readers.video_rts import VideoR1Reader, VideoRTSReader
from vrts.data.readers.videoholmes import VideoHolmesReader
from vrts.data.readers.videomme import VideoMMEReader
from vrts.data.readers.videommmu import VideoMMMUReader
from vrts.prompts import PromptTemplate
from vrts.types import InputError, ProblemType, letters

WINDOW = {"start_s": 1, "end_s": 4.5, "fps": 3}
PLAIN = {"id": "1", "video": "abc.mp4", "question": "Which?", "answer": "B", "category": "c"}
RECORDED = {
    "id": "1", "gold": "A", "answer": None, "correct": False, "num_frames": 4,
    "rounds": [{
        "num_frames": 4, "times_s": [0.5], "completions": ["a", "b"], "answers": ["A", None],
        "agreement": 0.5, "num_tokens": [1, 2], "mean_logprobs": [-1.0, -2],
        "cancelled": [False, True], "is_last": True,
    }],
    "status": "ok", "error": None, "question": "Which?", "options": ["x", "y"],
    "problem_type": "multiple choice", "video": "abc.mp4", "breakdown": {"kind": "odd"},
}  # fmt: skip
NUMBER = {"problem_type": "numerical", "options": None, "solution": "<answer>5</answer>"}
KINDS = {
    "VideoR1": (VideoR1Reader, R1 | WINDOW, "problem_id"),
    "VideoR1, a number": (VideoR1Reader, R1 | NUMBER, "problem_id"),
    "VideoRTS": (VideoRTSReader, RTS, "qid"),
    "recorded": (lambda path, folder: RecordedReader(path), RECORDED, "id"),
    "plain, columns": (PlainReader, PLAIN | {"A": "x", "B": "y"}, "id"),
    "plain, a list": (PlainReader, PLAIN | WINDOW | {"options": ["x", "y"], "type": None}, "id"),
    "MMVU": (MMVUReader, test_mmvu.CHOICE, "id"),
    "MMVU, open": (MMVUReader, test_mmvu.OPEN, "id"),
    "VideoMMMU": (VideoMMMUReader, test_videommmu.ROW, "id"),
    "Video-Holmes": (VideoHolmesReader, test_videoholmes.ROW, "Question ID"),
    "Video-MME": (VideoMMEReader, test_videomme.ROW, "question_id"),
    "LongVideoBench": (LongVideoBenchReader, test_longvideobench.ROW, "id"),
    "LongVideoBench, parquet": (
        LongVideoBenchReader, test_longvideobench.as_parquet(test_longvideobench.ROW), "id",
    ),
    "CG-Bench": (CGBenchReader, test_cgbench.ROW, "qid"),
}  # fmt: skip
OTHER = {"VideoMMMU": "validation_Art_Theory_4"}
"""Ids of the sound row, where not any will do."""

ODD = st.sampled_from(
    [True, False, 0, 1, -1, 27, 10**400, float("nan"), float("inf"), 1e308, None, "", " ", "A", "b",
     "Z", "C.", "A. x", "1e999", "-3", "x" * 5000, "\x00", "\ud800", "/", "..", "<answer></answer>"]
)  # fmt: skip
VALUES = st.recursive(
    ODD | st.text(max_size=9) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


def changed(draw, row):
    """A row of which one or two fields hold something else, more or less, or are missing."""
    row = dict(row)
    for key in draw(st.lists(st.sampled_from(list(row)), min_size=1, max_size=2, unique=True)):
        if draw(st.integers(0, 9)) == 0:
            del row[key]
        elif isinstance(row[key], list) and draw(st.booleans()):
            place = draw(st.integers(0, len(row[key])))
            row[key] = [*row[key][:place], draw(VALUES), *row[key][place + draw(st.booleans()) :]]
        else:
            row[key] = draw(VALUES)
    return row


def check(question):
    """It can be asked, answered and recorded."""
    assert all(text.strip() for text in (question.id, question.text, question.video))
    if question.problem_type is ProblemType.MULTIPLE_CHOICE:
        assert 2 <= len(question.options) <= 26
        assert all(option.strip() for option in question.options)
        assert question.gold is None or question.gold in letters(question.options)
    else:
        assert question.options == ()
        assert question.gold is None or question.gold.strip()
    breakdown = question.metadata.get("breakdown", {})
    assert all(isinstance(category, str) for category in breakdown.values())
    assert question.start_s >= 0
    assert question.end_s is None or question.start_s < question.end_s
    json.dumps(question.metadata, ensure_ascii=False).encode()
    PromptTemplate().render(question).encode()
    assert is_correct(None, question) in (False, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of the valid rows, in a folder whose name has VideoMMMU's track."""
    folder = tmp_path_factory.mktemp("adaptation")
    for name in ("abc", "clip", "BV1", "Art/validation_Art_Theory_3", "Art/0"):
        path = folder / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for row in (test_mmvu.CHOICE, test_mmvu.OPEN):
        path = folder / "videos" / "/".join(row["video"].split("/")[-2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_row_is_a_sound_question_or_named(folder, kind, data):
    reader, row, id = KINDS[kind]
    sound, odd = row | {id: OTHER.get(kind, "other")}, changed(data.draw, row)
    path = folder / "rows.json"
    rows = {"Adaptation": {"0": sound, "1": odd}} if kind == "VideoMMMU" else [sound, odd]
    path.write_text(json.dumps(rows, indent=1))
    place = f"{path}: {'Adaptation 1' if kind == 'VideoMMMU' else 'item 2'}: "
    if kind == "recorded":
        path.write_text(f"{json.dumps(sound)}\n{json.dumps(odd)}\n")
        place = f"{path}:2: "
    try:
        questions = reader(str(path), str(folder / "videos")).read()
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{path}: 1 bad row; "), message
        assert f"\n  {place}" in message, message
    else:
        for question in questions:
            check(question)
