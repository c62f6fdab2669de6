"""A folder gets its name when it is complete, and replaces nothing but an earlier export."""

import json

import pytest

from tests.crashes import copied_at_changes
from vrts.callbacks.export.folder import complete_folder, prepare_target, write_manifest
from vrts.types import InputError


def listed(folder):
    """Names of what is there."""
    return [path.name for path in folder.iterdir()]


def write(folder, text, *names):
    with complete_folder(folder) as part:
        for name in names or ("weights",):
            (part / name).write_text(text)
        write_manifest(part, {"steps": 2})


def test_it_gets_its_name_when_it_is_complete(tmp_path):
    folder = tmp_path / "new/model"
    prepare_target(folder, "output_dir")
    with complete_folder(folder) as part:
        (part / "weights").write_text("1")
        assert not folder.exists()
        write_manifest(part, {"steps": 2})
    assert {path.name for path in folder.iterdir()} == {"weights", "vrts.json"}
    manifest = json.loads((folder / "vrts.json").read_text())
    assert manifest == {"steps": 2, "files": ["vrts.json", "weights"]}
    assert listed(folder.parent) == ["model"]


def test_an_earlier_export_is_replaced_completely(tmp_path):
    folder = tmp_path / "model"
    write(folder, "1", "weights", "adapter")
    with complete_folder(folder) as part:
        (part / "weights").write_text("2")
        assert (folder / "weights").read_text() == "1"
        write_manifest(part, {})
    assert {path.name for path in folder.iterdir()} == {"weights", "vrts.json"}
    assert (folder / "weights").read_text() == "2"
    assert listed(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_earlier_one(tmp_path, error):
    folder = tmp_path / "model"
    write(folder, "1")

    def interrupted():
        with complete_folder(folder) as part:
            (part / "weights").write_text("2")
            raise error

    with pytest.raises(error):
        interrupted()
    assert (folder / "weights").read_text() == "1"
    assert listed(tmp_path) == ["model"]


def test_an_export_that_is_killed_leaves_the_earlier_one_or_the_new_one(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write(run / "model", "1")
    with copied_at_changes(run, tmp_path / "killed") as copies:
        write(run / "model", "2")
    left = []
    for copy in copies:
        prepare_target(copy / "model", "output_dir")
        left.append((copy / "model/weights").read_text())
        write(copy / "model", "3")
        assert (copy / "model/weights").read_text() == "3"
        assert listed(copy) == ["model"]
    assert len(left) > 5
    assert left == sorted(left)
    assert set(left) == {"1", "2"}


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    prepare_target(tmp_path / "model", "output_dir")
    write(tmp_path / "model", "1")
    assert (tmp_path / "model/weights").read_text() == "1"


def test_a_link_stays_one(tmp_path):
    write(tmp_path / "real", "1")
    (tmp_path / "model").symlink_to(tmp_path / "real")
    prepare_target(tmp_path / "model", "output_dir")
    write(tmp_path / "model", "2")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "real/weights").read_text() == "2"


def other_files(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("")


def an_extra_file(folder):
    write(folder, "1")
    (folder / "notes.txt").write_text("")


def damaged(folder):
    write(folder, "1")
    (folder / "vrts.json").write_text("[")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (other_files, r"holds something else than an earlier export: it has no vrts\.json"),
        (an_extra_file, r"holds notes\.txt, which no export wrote"),
        (damaged, r"holds something else"),
        (lambda folder: folder.write_text(""), "is a file"),
    ],
)
def test_anything_else_is_refused_and_kept(tmp_path, make, reason):
    folder = tmp_path / "model"
    make(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=f"^output_dir: .*model {reason}.*; give another folder"):
        prepare_target(folder, "output_dir")
    with pytest.raises(InputError, match=reason):
        write(folder, "2")
    assert sorted(folder.rglob("*")) == before
    assert listed(tmp_path) == ["model"]


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: path.name == "model")
    with pytest.raises(InputError, match="is a mount point"):
        prepare_target(tmp_path / "model", "output_dir")


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_dir: cannot use"):
        prepare_target(tmp_path / "file/model", "output_dir")
