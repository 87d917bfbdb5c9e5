"""Rows of answers into a JSONL or CSV file: whole or not at all, and going on after a stop."""

import contextlib
import csv
import json
import os
import pathlib

from jaxsft import log
from jaxsft.errors import JaxsftError, UsageError

SUFFIXES = (".jsonl", ".csv", ".tsv")


def check(out, sources):
  """Raises UsageError for an `out` without one of SUFFIXES, or that is one of the sources."""
  out = pathlib.Path(out)
  if out.suffix not in SUFFIXES:
    raise UsageError(f"--out={out}: expected a file that ends with {', '.join(SUFFIXES)}")
  if out.resolve() in {pathlib.Path(file).resolve() for file in sources}:
    raise UsageError(
      f"--out={out}: is the file that --data reads, which the answers would replace; choose "
      "another name"
    )


class RowFile:
  """Rows on their way to `out`; until `close` they lie in a part file beside it.

  identity: text that names everything the rows depend on. A part file of the same identity
  is gone on with: `done` says how many rows it has. JSONL holds rows as they are (numbers
  that are not finite as null); CSV and TSV a column for every key that a row has, with lists
  and dicts as JSON.
  """

  def __init__(self, out, identity):
    self.out = pathlib.Path(out)
    self._part = self.out.with_name(f".{self.out.name}.{identity[:16]}.part")
    self.done = 0
    with self._sentences():
      self._file = self._part.open("a+b")
      self._file.seek(0)
      whole = 0
      for line in self._file:
        if not line.endswith(b"\n"):  # a stop in the middle of a row
          break
        whole, self.done = whole + len(line), self.done + 1
      self._file.truncate(whole)
      self._file.seek(whole)

  def write(self, rows):
    """Adds rows (dicts); after this call they survive a stop."""
    with self._sentences():
      for row in rows:
        line = json.dumps(log.plain(row), ensure_ascii=False, allow_nan=False)
        self._file.write((line + "\n").encode())
      self._file.flush()
      os.fsync(self._file.fileno())
      self.done += len(rows)

  def close(self):
    """The rows become `out`, and part files of earlier attempts go."""
    with self._sentences():
      self._file.close()
      if self.out.suffix == ".jsonl":
        os.replace(self._part, self.out)
      else:
        self._as_table()
      for left in self.out.parent.glob(f".{self.out.name}.*.part"):
        left.unlink(missing_ok=True)

  def leave(self):
    """Closes the part file as it is, to be gone on with."""
    with contextlib.suppress(OSError):
      self._file.close()
    if not self.done:
      with contextlib.suppress(OSError):
        self._part.unlink(missing_ok=True)

  def _as_table(self):
    temporary = self._part.with_suffix(".table.part")
    with (
      self._part.open(encoding="utf-8") as part,
      temporary.open("w", encoding="utf-8", newline="") as file,
    ):
      names = list(dict.fromkeys(name for line in part for name in json.loads(line)))
      table = csv.writer(file, delimiter="\t" if self.out.suffix == ".tsv" else ",")
      table.writerow(names)
      part.seek(0)
      for row in map(json.loads, part):
        table.writerow([_cell(row.get(name, "")) for name in names])
    os.replace(temporary, self.out)

  @contextlib.contextmanager
  def _sentences(self):
    try:
      yield
    except OSError as error:
      raise JaxsftError(
        f"{self.out}: cannot be written: {error.strerror}; make room or choose another --out"
      ) from None


def _cell(value):
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
