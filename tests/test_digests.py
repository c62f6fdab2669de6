"""Digests of files by their content."""

import os
import random
import shutil

import pytest

from vrts.digests import BLOCK_BYTES, NUM_BLOCKS, folder_digests, sampled_digest


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_large", [False, True])
def test_it_is_that_of_the_content_whenever_it_was_written(tmp_path, seed, is_large):
    rng = random.Random(seed)
    size = NUM_BLOCKS * BLOCK_BYTES + (rng.randrange(1, 10**6) if is_large else -rng.randrange(9))
    path, copy = tmp_path / "one", tmp_path / "two"
    path.write_bytes(rng.randbytes(size))
    shutil.copy(path, copy)
    os.utime(copy, (1e9, 1e9))
    assert sampled_digest(copy) == sampled_digest(path)
    assert (sampled_digest(copy, True) == sampled_digest(path, True)) != is_large
    content = bytearray(path.read_bytes())
    for place in (0, size - 1):  # in the first and in the last block
        content[place] ^= 1
        copy.write_bytes(content)
        assert sampled_digest(copy) != sampled_digest(path)
        content[place] ^= 1
    copy.write_bytes(content + b"x")
    assert sampled_digest(copy) != sampled_digest(path)


def test_of_a_folder_files_that_are_asked_for(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "c.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d.safetensors").mkdir()
    found = folder_digests(tmp_path, "*.safetensors")
    assert list(found) == ["a.safetensors", "b.safetensors"]
    assert found["a.safetensors"] == sampled_digest(tmp_path / "a.safetensors")
    assert len(set(folder_digests(tmp_path).values())) == 3
