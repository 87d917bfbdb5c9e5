"""Chunks of encoded rows come back as they were, whole or not at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsft.data import parts


def same(a, b):
  return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def example(n):
  return {
    "inputs": np.arange(n, dtype=np.int32),
    "weights": np.ones(n, np.float32),
    "label": np.int32(n),
    "labels": np.full((1, 3), n, np.float32),
  }


@given(st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=5), st.text())
def test_a_chunk_comes_back(rows, text):
  chunk = [(tuple(map(example, row)), {"note": text, "stop_ids": row}) for row in rows]
  found = list(parts.unpack(parts.pack(chunk)))
  assert [info for _, info in found] == [info for _, info in chunk]
  for (examples, _), (expected, _) in zip(found, chunk, strict=True):
    assert len(examples) == len(expected)
    for one, other in zip(examples, expected, strict=True):
      assert list(one) == list(other)
      assert all(same(one[key], np.asarray(other[key])) for key in other)


def test_kept_chunks_are_found_and_forgotten(tmp_path):
  kept, data = parts.Kept(tmp_path, "key"), parts.pack([((example(2),), {"note": None})])
  assert kept.read(0) is None
  kept.write(0, data)
  assert kept.read(0) == data and kept.read(1) is None
  assert parts.Kept(tmp_path, "other").read(0) is None
  (file,) = kept.directory.iterdir()
  file.write_bytes(data[:-30])  # a machine that went off while it was written
  assert kept.read(0) is None
  kept.remove()
  assert not list(tmp_path.iterdir())


def test_other_bytes_are_no_chunk():
  for data in (b"", b"PK", parts.pack([])[:20]):
    with pytest.raises(ValueError, match="not a whole chunk"):
      list(parts.unpack(data))
