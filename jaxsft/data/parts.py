"""Chunks of encoded rows: made by several processes, kept on disk until a store is whole."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Chunk = Sequence[tuple[Sequence[dict[str, np.ndarray]], dict[str, Any]]]
"""For each row: its examples, and what else there is to say of it as JSON values."""


def pack(chunk: Chunk) -> bytes:
  """A chunk as an .npz archive; `unpack` gives it back."""
  columns: dict[str, list[np.ndarray]] = {}
  rows = []
  for examples, info in chunk:
    shapes = []
    for example in examples:
      arrays = {key: np.asarray(values) for key, values in example.items()}
      shapes.append({key: list(values.shape) for key, values in arrays.items()})
      for key, values in arrays.items():
        columns.setdefault(key, []).append(values.ravel())
    rows.append([shapes, info])
  flat = {f"column.{key}": np.concatenate(values) for key, values in columns.items()}
  stream = io.BytesIO()
  text = json.dumps(rows).encode()  # half characters stay as they are, as escapes
  np.savez(stream, rows=np.frombuffer(text, np.uint8), **flat)
  return stream.getvalue()


def unpack(data: bytes) -> Iterator[tuple[tuple[dict[str, np.ndarray], ...], dict[str, Any]]]:
  """The rows of a `pack`, in their order; raises ValueError for other bytes."""
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
      columns = {key: archive[key] for key in archive.files}
    rows = json.loads(columns.pop("rows").tobytes())
  except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
    raise ValueError(f"not a whole chunk: {error}") from error
  at = dict.fromkeys(columns, 0)
  for shapes, info in rows:
    examples = []
    for shape in shapes:
      example = {}
      for key, size in shape.items():
        name, count = f"column.{key}", int(np.prod(size))
        example[key] = columns[name][at[name] : at[name] + count].reshape(size)
        at[name] += count
      examples.append(example)
    yield tuple(examples), info


class Kept:
  """Finished chunks of one store, each in a file, for the run that goes on after a stop."""

  def __init__(self, directory: pathlib.Path, key: str):
    name = hashlib.sha256(key.encode()).hexdigest()
    self.directory = pathlib.Path(directory) / f".building-{name[:16]}-parts"

  def has(self, number: int) -> bool:
    """Whether a chunk is there, whole or not."""
    return self._file(number).exists()

  def read(self, number: int) -> bytes | None:
    """A chunk; None: it is not there, or not whole."""
    try:
      data = self._file(number).read_bytes()
      next(unpack(data), None)
    except (OSError, ValueError):
      return None
    return data

  def write(self, number: int, data: bytes) -> None:
    """Keeps a chunk, whole or not at all; a disk that is full or read-only keeps none."""
    with contextlib.suppress(OSError):
      self.directory.mkdir(parents=True, exist_ok=True)
      temporary = self.directory / f".{number}-{os.getpid()}-{secrets.token_hex(4)}"
      try:
        temporary.write_bytes(data)
        temporary.replace(self._file(number))
      finally:
        temporary.unlink(missing_ok=True)

  def remove(self) -> None:
    """Forgets all chunks: the store is whole."""
    shutil.rmtree(self.directory, ignore_errors=True)

  def _file(self, number: int) -> pathlib.Path:
    return self.directory / f"{number:06}.npz"


@contextlib.contextmanager
def processes() -> Iterator[Callable[[Callable, Iterable[tuple]], Iterator[Any]]]:
  """Yields run(function, arguments): the results of function(*a) in the order of `arguments`.

  As many processes work as there are cores for this one, and they end with the block; a few
  results at most wait to be taken. What a function raises is raised here.
  """
  import joblib  # late: only large data have a use for it
  from joblib.externals import loky

  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

  def run(function, arguments):
    if cores == 1:
      return (function(*one) for one in arguments)
    work = joblib.Parallel(
      n_jobs=cores, return_as="generator", pre_dispatch="2*n_jobs", batch_size=1
    )
    return work(joblib.delayed(function)(*one) for one in arguments)

  try:
    yield run
  finally:
    if cores > 1:
      loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)
