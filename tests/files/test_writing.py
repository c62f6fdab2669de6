"""Files that are replaced: whole, or the older one as it was."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest

from tests.crashes import copied_at_changes
from vrts.files.writing import PART, delete, make_folder, replace_folder, replacing, write_json
from vrts.types import InputError


@contextmanager
def room_for(num_bytes):
    """A limit on the size of files stands in for a disk that is nearly full."""
    had = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, had[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, had)


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path, "w", encoding="utf-8") as file:
        file.write("n")
        file.flush()
        assert path.read_text() == "old"
        file.write("ew é")
    assert path.read_text(encoding="utf-8") == "new é"
    write_json(path, {"a": [1, None]})
    assert path.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    assert [other.name for other in tmp_path.iterdir()] == ["a.json"]


def raise_behind(written, error):
    assert written
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
def test_an_error_leaves_the_older_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as file:
        raise_behind(file.write(b"half"), error)
    assert path.read_text() == "old"
    assert [other.name for other in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, durable):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    named = pytest.raises(OSError, match=rf"{path}{PART}")
    with room_for(1000), named as caught, replacing(path, durable=durable) as file:
        file.write(bytes(100_000))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert [other.name for other in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_in_the_way_stays(tmp_path):
    (tmp_path / f"a{PART}").mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "a"):
        pass
    assert (tmp_path / f"a{PART}").is_dir()


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """File, rename, then the folder that has the name: in this order."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    with replacing(tmp_path / "a") as file:
        file.write(bytes(12_345))
    assert done[:2] == [12_345, "rename"]
    assert len(done) == 3
    with replacing(tmp_path / "a", durable=False) as file:
        file.write(b"b")
    assert done[3:] == ["rename"]


def test_several_may_write_the_same_file(tmp_path):
    path = tmp_path / "a"
    with replacing(path, writer=".1") as one, replacing(path, writer=".2") as two:
        one.write(b"one")
        two.write(b"two")
    assert path.read_bytes() == b"one", "the outer one ends last"


def test_a_kill_while_a_folder_is_replaced_leaves_both_or_the_newer(tmp_path):
    folder = tmp_path / "run"
    for name in ("model", "fresh"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_text(name)
    with copied_at_changes(folder, tmp_path / "killed") as copies:
        replace_folder(folder / "model", folder / "fresh", folder / "old")
    found = [
        {path.parent.name: path.read_text() for path in copy.glob("*/weights")} for copy in copies
    ]
    assert found[:3] == [
        {"model": "model", "fresh": "fresh"},
        {"old": "model", "fresh": "fresh"},
        {"old": "model", "model": "fresh"},
    ]
    assert all(left == {"model": "fresh"} for left in found[3:])
    assert len(found) > 3


def test_a_folder_takes_the_place_of_whatever_is_there(tmp_path):
    for kind in ("nothing", "file", "link", "folder"):
        fresh, old, target = tmp_path / "fresh", tmp_path / "old", tmp_path / kind
        fresh.mkdir()
        (fresh / "a").write_text(kind)
        old.mkdir()
        (old / "left").write_text("by a kill")
        if kind == "file":
            target.write_text("")
        elif kind == "link":
            target.symlink_to("nowhere")
        elif kind == "folder":
            target.mkdir()
        replace_folder(target, fresh, old)
        assert (target / "a").read_text() == kind
        assert not fresh.exists()
        assert not old.exists()
    delete(tmp_path / "never there")


def test_a_folder_is_made_and_its_room_is_found_out(tmp_path):
    assert make_folder(tmp_path / "a/b", "--x").is_dir()
    assert not list((tmp_path / "a/b").iterdir())
    with room_for(10), pytest.raises(InputError, match=r"--x: cannot use .*File too large"):
        make_folder(tmp_path / "full", "--x")
    assert not list((tmp_path / "full").iterdir())
