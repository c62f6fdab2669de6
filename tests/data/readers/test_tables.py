import builtins

import pyarrow as pa
import pytest
from pyarrow import parquet

from vrts.data.readers.tables import iterate_csv, iterate_rows
from vrts.types import InputError


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a,b\n1,2,3\n", 2, "3 cells under 2 columns"),
        ("a,b,a\n1,2,3\n", 1, "column 'a' appears twice"),
        ('a,b\n1,2\n"1,2\n', 3, "not valid CSV"),
        ('a,b\n1,"2"x\n', 2, "not valid CSV"),
    ],
)
def test_damaged_csv(text, line, message):
    *_, (source, error) = iterate_csv("t.csv", text)
    assert isinstance(error, InputError)
    assert source == f"t.csv:{line}"
    assert message in str(error)


def test_csv_rows_have_the_line_where_they_begin():
    text = 'a,b\n\n"1\n2",x\n , \n3\n4,,\n'
    assert list(iterate_csv("t.csv", text)) == [
        ("t.csv:3", {"a": "1\n2", "b": "x"}),
        ("t.csv:6", {"a": "3"}),
        ("t.csv:7", {"a": "4"}),
    ]


def test_parquet_without_its_bytes(tmp_path):
    rows = [
        {"n": 1, "texts": ["a"], "image": {"bytes": b"\x00", "path": "x"}, "raw": b"\x00"},
        {"n": None, "texts": None, "image": None, "raw": None},
    ]
    path = str(tmp_path / "t.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert list(iterate_rows(path)) == [
        (f"{path}:1", {"n": 1, "texts": ["a"]}),
        (f"{path}:2", {"n": None, "texts": None}),
    ]


def test_damaged_and_missing_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(InputError, match=r"t\.parquet: no such file"):
        iterate_rows(str(path))
    for content in (b"", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n" * 5):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"t\.parquet: is not a readable parquet file"):
            iterate_rows(str(path))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.touch()
    found = builtins.__import__

    def lacking(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(InputError, match=r"needs pyarrow; install it with .*vrts\[benchmarks\]"):
        iterate_rows(str(path))
