"""Rows of annotation files: JSON, JSON Lines, CSV and parquet."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrts.data.readers.records import check_file, iterate_json, read_text
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
