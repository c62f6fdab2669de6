import pytest
from jsonargparse import ArgumentParser

import vrts.cli.command  # noqa: F401 makes the short names known
from vrts.data.readers.base import Reader


@pytest.mark.parametrize(
    "name", "CGBench LongVideoBench MMVU Plain VideoHolmes VideoMME VideoMMMU".split()
)
def test_short_names(name):
    parser = ArgumentParser()
    parser.add_argument("--reader", type=Reader)
    words = [f"--reader={name}Reader", "--reader.path=rows.json", "--reader.limit=3"]
    reader = parser.instantiate_classes(parser.parse_args(words)).reader
    assert type(reader).__name__ == f"{name}Reader"
    assert (reader.path, reader.video_root, reader.limit) == ("rows.json", None, 3)


def test_several_files_of_videommmu():
    parser = ArgumentParser()
    parser.add_argument("--reader", type=Reader)
    words = ["--reader=VideoMMMUReader", "--reader.path=[a.json, b.json]"]
    reader = parser.instantiate_classes(parser.parse_args(words)).reader
    assert reader.paths == ["a.json", "b.json"]
