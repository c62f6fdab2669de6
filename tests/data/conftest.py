import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet


@pytest.fixture
def touch(tmp_path):
    """Make files, empty since readers do not look into videos, and return their folder."""

    def make(*names: str) -> str:
        for name in names:
            (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "videos" / name).touch()
        return str(tmp_path / "videos")

    return make


@pytest.fixture
def write(tmp_path):
    """Write rows in the format of the name's suffix and return the path."""

    def make(rows, name: str = "rows.json") -> str:
        path = Path(tmp_path / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            keys = dict.fromkeys(key for row in rows for key in row)
            rows = [{key: row.get(key) for key in keys} for row in rows]
            parquet.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        elif isinstance(rows, str):
            path.write_text(rows, encoding="utf-8")
        else:
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        return str(path)

    return make
