"""The texts of benchmark files, in whatever form their rows are."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from jaxsft.data import fetch
from jaxsft.data import read as reading
from jaxsft.errors import JaxsftError


def read(paths: Sequence[str]) -> dict[str, list[str]]:
  """{file's name: all texts of its rows}; raises JaxsftError for a file without any."""
  found: dict[str, list[str]] = {}
  for path in paths:
    resolved = fetch.resolve(path, None, key="clean.benchmarks")
    rows = reading.read_rows(
      resolved,
      format="auto",
      encoding="utf-8",
      header=None,
      quoting=True,
      columns=None,
      id=None,
    )
    texts = [text for row in rows for text in _texts(list(row.fields.values()))]
    if not texts:
      raise JaxsftError(f"config.clean.benchmarks: {path} holds no text, expected at least one")
    name = os.path.basename(str(path))
    found[name if name not in found else str(path)] = texts
  return found


def _texts(value: Any) -> Iterator[str]:
  if isinstance(value, str) and value.strip():
    yield value
  elif isinstance(value, dict):
    yield from _texts(list(value.values()))
  elif isinstance(value, list | tuple):
    for part in value:
      yield from _texts(part)
