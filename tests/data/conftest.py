"""Files that a test writes and then reads, by relative names."""

import bz2
import gzip
import lzma
import os

import pyarrow
import pytest


def zstd(content):
  sink = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
    stream.write(content)
  return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.fixture
def write(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def write(name, content):
    content = content.encode() if isinstance(content, str) else content
    content = COMPRESS.get(os.path.splitext(name)[1], bytes)(content)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as file:
      file.write(content)
    return name

  return write
