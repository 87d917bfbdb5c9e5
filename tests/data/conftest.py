"""Files that a test writes and then reads, by relative names."""

import gzip
import os

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def write(name, content):
    content = content.encode() if isinstance(content, str) else content
    if name.endswith(".gz"):
      content = gzip.compress(content)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as file:
      file.write(content)
    return name

  return write
