"""Rows in little memory: packed one after another, and on disk where they are many.

Each stage that reads, changes or leaves out rows hands on a `Spool`, which is read like a
list: the rows of a file of gigabytes never lie in memory as objects.
"""

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack

from jaxsft.data import fetch
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, is_full

MEMORY = 1 << 25
"""Bytes of packed rows that stay in memory."""
BLOCK = 256
"""Rows that are read at once."""
UNSAID = "surrogatepass"
"""Half characters of the text stay what they are."""


class Spool(Sequence[Row]):
  """Rows that are packed as they come, and unpacked as they are asked for.

  Up to MEMORY bytes lie in memory, more in a file without a name below the cache directory,
  which ends with the spool. A row with a value that MessagePack does not give back as it was
  (a tuple, an array, a date) stays an object; what is changed in another that was asked for
  changes no row here. Raises JaxsftError where the disk is full.
  """

  def __init__(self, rows: Iterable[Row] = ()):
    self._data = _Bytes()
    self._ends = array("q", [0])
    self._objects: dict[int, Row] = {}
    for row in rows:
      self.add(row)

  def add(self, row: Row) -> None:
    """Puts one more row behind all others."""
    try:
      self._data.append(msgpack.packb(list(row), strict_types=True, unicode_errors=UNSAID))
    except (TypeError, ValueError, OverflowError):  # OverflowError: of 65 bits and more
      self._objects[len(self)] = row
    self._ends.append(self._data.size)

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __iter__(self) -> Iterator[Row]:
    for start in range(0, len(self), BLOCK):
      yield from self._block(start, min(len(self), start + BLOCK))

  def __getitem__(self, at: Any) -> Any:
    if isinstance(at, slice):
      first, last, step = at.indices(len(self))
      if step == 1:
        return self._block(first, max(first, last))
      return [self[i] for i in range(first, last, step)]
    number = range(len(self))[at]
    return self._block(number, number + 1)[0]

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Sequence):
      return NotImplemented
    return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

  __hash__ = None

  def __repr__(self) -> str:
    return f"Spool of {len(self):,} rows"

  def _block(self, first: int, last: int) -> list[Row]:
    """The rows first … last - 1."""
    data, start = self._data.read(self._ends[first], self._ends[last]), self._ends[first]
    found = []
    for i in range(first, last):
      row = self._objects.get(i)
      if row is None:
        packed = data[self._ends[i] - start : self._ends[i + 1] - start]
        row = Row(*msgpack.unpackb(packed, strict_map_key=False, unicode_errors=UNSAID))
      found.append(row)
    return found


class _Bytes:
  """Bytes that grow, and are read by their place; large ones lie in a file."""

  def __init__(self):
    self.size, self._memory, self._file, self._written = 0, bytearray(), None, 0

  def append(self, data: bytes) -> None:
    self._memory += data
    self.size += len(data)
    if len(self._memory) > MEMORY:
      self._write()

  def read(self, start: int, end: int) -> bytes:
    """The bytes start … end - 1."""
    if start >= self._written:
      return bytes(self._memory[start - self._written : end - self._written])
    inside = min(end, self._written)
    data = b""
    while len(data) < inside - start:
      more = os.pread(self._file.fileno(), inside - start - len(data), start + len(data))
      if not more:
        raise JaxsftError(f"{inside - start - len(data)} bytes of the kept rows cannot be read")
      data += more
    return data + bytes(self._memory[: end - self._written]) if end > inside else data

  def _write(self) -> None:
    directory = fetch.cache_directory()
    try:
      if self._file is None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)
        weakref.finalize(self, self._file.close)
      left = memoryview(self._memory)
      while left:
        left = left[self._file.write(left) :]
    except OSError as error:
      why = "the disk is full" if is_full(error) else error.strerror
      raise JaxsftError(
        f"cannot keep rows in a file under {directory}: {why}; free some space there or set "
        "JAXSFT_CACHE to another directory"
      ) from error
    self._written, self._memory = self.size, bytearray()
