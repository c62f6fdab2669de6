"""Rows of annotation files: JSON, JSON Lines, CSV and parquet."""

import csv
import io
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrts.types import InputError

DELIMITERS = ",;\t"


def iterate_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(file:line, row)`` of a file, by its suffix: .parquet, .csv, .tsv or else JSON.

    An `InputError` takes the place of a bad row.

    Raises:
        InputError: the file is missing, empty or not readable, or pyarrow is not installed.
    """
    ending = Path(path).suffix.lower()
    if ending == ".parquet":
        return iterate_parquet(path)
    text = read_text(path)
    return iterate_csv(path, text) if ending in {".csv", ".tsv"} else iterate_json(path, text)


def check_file(path: str) -> None:
    """Raise `InputError` if there is no such annotation file."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; give the path of an annotation file")
    if not os.path.isfile(path):
        raise InputError(f"{path}: is not a file; give the path of an annotation file")


def read_text(path: str) -> str:
    """Return the text of a file.

    Raises:
        InputError: it does not exist, is a folder, not readable, not UTF-8, or empty.
    """
    check_file(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise InputError(f"{path}: is empty; it should have one row per question")
    return text


def iterate_json(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield each item of a JSON array, or each line of JSON Lines, with its position.

    The position is ``file: item 3`` (counted from 1) or ``file:line``. A single object contains the
    rows: in its one list of objects (``{"annotations": [...]}``), as its values (``{id: {...}}``,
    the key as their ``id``), or it is a row itself. An `InputError` takes the place of what is not
    valid JSON.
    """
    if not text.lstrip().startswith("[") and not _is_one_object(text):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", parse_json(line)
        return
    found = parse_json(text)
    rows = _rows_of(found) if isinstance(found, dict) else found
    if isinstance(rows, InputError):
        yield path, rows
    elif rows == [found]:
        yield f"{path}:1", found
    else:
        yield from ((f"{path}: item {number}", row) for number, row in enumerate(rows, start=1))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, with an `InputError` in place of invalid parts.

    An object with a duplicate key is invalid, and so are objects around it: `json` would silently
    take the last value.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        return InputError(f"not valid JSON ({error})")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any] | InputError:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        return InputError(f"field {twice!r} appears twice")
    for child in value.values():
        for item in child if isinstance(child, list) else [child]:
            if isinstance(item, InputError):
                return item
    return value


def _is_one_object(text: str) -> bool:
    """Whether a text is one JSON object, perhaps a damaged one, rather than JSON Lines."""
    lines = [line for line in text.splitlines() if line.strip()][:2]
    if not lines[0].lstrip().startswith("{"):
        return False
    try:
        json.loads(lines[0])
    except (ValueError, RecursionError):
        return len(lines) > 1 and not lines[1].startswith("{")
    return len(lines) == 1


def _rows_of(value: dict[str, Any]) -> list[Any] | InputError:
    """The rows in one JSON object; see `iterate_json`."""
    lists = [
        item for item in value.values()
        if isinstance(item, list) and item and all(isinstance(row, dict) for row in item)
    ]  # fmt: skip
    if any(isinstance(value.get(key), str) for key in ("question", "problem", "Question")):
        return [value]
    if len(lists) == 1:
        return lists[0]
    if value and all(isinstance(item, dict) for item in value.values()):
        return [{"id": key} | row for key, row in value.items()]
    keys = textwrap.shorten(", ".join(value), 200)
    return InputError(
        f"the file is one JSON object with the keys {keys}, in which there are no rows; expected "
        "an array of rows, a row a line, or one list of rows"
    )


def iterate_csv(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(file:line, row)`` of a table with a header line, without empty cells.

    The delimiter is the most frequent of comma, semicolon and tab in the header. The line is the
    first one of the row.
    """
    delimiter = max(DELIMITERS, key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            source, line = f"{path}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                twice = sorted({name for name in columns if name and columns.count(name) > 1})
                if twice:
                    yield source, InputError(f"column {twice[0]!r} appears twice")
                    return
            elif any(cell.strip() for cell in cells[len(columns) :]):
                yield source, InputError(f"{len(cells)} cells under {len(columns)} columns")
            else:
                pairs = zip(columns, cells, strict=False)
                yield source, {name: cell for name, cell in pairs if name and cell.strip()}
    except csv.Error as error:
        yield f"{path}:{line}", InputError(f"not valid CSV ({error})")


def iterate_parquet(path: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(file:row number, row)`` of a parquet file, counted from 1.

    Columns of bytes, such as images, are left out.

    Raises:
        InputError: the file is missing or damaged, or pyarrow is not installed.
    """
    check_file(path)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path}: reading parquet needs pyarrow; install it with pip install 'vrts[benchmarks]'"
        ) from error

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return True
        return any(holds_bytes(kind.field(i).type) for i in range(kind.num_fields))

    try:
        with parquet.ParquetFile(path) as file:
            columns = [field.name for field in file.schema_arrow if not holds_bytes(field.type)]
            rows = file.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a readable parquet file ({error})") from error
    return ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
