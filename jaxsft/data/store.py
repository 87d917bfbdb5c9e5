"""Encoded examples on disk: tokenised once, mapped into memory, found by what shaped them.

A store is a directory named by the sha256 of its key, which lies beside the data in clear:

  key.json       everything that shaped the examples, as canonical JSON
  index.json     columns and their types, numbers of examples and tokens, fingerprint, counts
  ids.jsonl      one JSON string an example
  offsets.npy    [N + 1] int64: example i holds tokens offsets[i] … offsets[i + 1]
  token.KEY.npy  [tokens] int32 or float32, for every token-aligned key
  source_offsets.npy, source.KEY.npy   the same for the other stream of tokens, where examples
                 have a source: keys that begin with "source"
  value.KEY.npy  [N] or [N, C], for every key with one value, or C of them, an example
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from jaxsft.errors import JaxsftError, is_full

VERSION = 3
"""Of this builder; part of every key, so that a change here makes old stores unreachable."""
HEADER = 128
"""Bytes of an .npy header, left free at the start because the length is known at the end."""
STALE = 24 * 3600
"""Seconds without a write after which the remains of a killed build are removed."""

ASIDE = ("row", "word", "start_char", "end_char")
"""Columns that stay on the host: they lead from an example back to its row."""
OFFSETS = {"token": "offsets", "source": "source_offsets"}
KINDS = (*OFFSETS, "value")
SOURCE = "source"
"""How the names of columns begin that are aligned with the tokens of the source."""

Example = dict[str, np.ndarray | np.generic]


@dataclass(frozen=True, eq=False)
class Store:
  """Examples by index; the arrays are read-only views of the files."""

  directory: pathlib.Path | None
  """None for a store that is not on disk."""
  ids: list[str]
  lengths: np.ndarray
  """[N] int32, tokens of each example; [N,2] those of its source and its target."""
  offsets: np.ndarray
  """[N + 1] int64."""
  tokens: dict[str, np.ndarray]
  """Token-aligned keys, the examples one after another; those of the target alone."""
  values: dict[str, np.ndarray]
  """[N] or [N, C] each: keys with one value, or C of them, an example."""
  fingerprint: str
  """sha256 over ids, offsets and every column."""
  counts: dict
  """What the encoder counted while it ran (drops, cuts), kept for later runs."""
  source_offsets: np.ndarray | None = None
  """[N + 1] int64; None: examples have no source."""
  sources: dict[str, np.ndarray] = field(default_factory=dict)
  """Keys aligned with the tokens of the source."""

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def keys(self) -> tuple[str, ...]:
    return (*self.sources, *self.tokens, *self.values)

  @property
  def streams(self) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(offsets, columns) of each stream of tokens, "source" before "target"."""
    source = (
      {} if self.source_offsets is None else {SOURCE: (self.source_offsets, self.sources)}
    )
    return source | {"target": (self.offsets, self.tokens)}

  def example(self, i: int) -> Example:
    found = {}
    for offsets, columns in self.streams.values():
      found |= {k: v[offsets[i] : offsets[i + 1]] for k, v in columns.items()}
    return found | {k: v[i] for k, v in self.values.items()}


class _Column:
  """One growing .npy file of an array [n] or [n, width], hashed as it grows."""

  def __init__(self, path: pathlib.Path, dtype: np.dtype, width: int | None = None):
    self.path, self.dtype, self.width, self.size = path, dtype, width, 0
    self.hash = hashlib.sha256()
    self.file = path.open("wb", buffering=1 << 20)
    self.file.write(bytes(HEADER))

  def append(self, values: np.ndarray):
    data = values.tobytes()
    self.file.write(data)
    self.hash.update(data)
    self.size += values.size

  def close(self):
    header = io.BytesIO()
    shape = (self.size,) if self.width is None else (self.size // self.width, self.width)
    descr = np.lib.format.dtype_to_descr(self.dtype)
    np.lib.format.write_array_header_1_0(
      header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    assert header.tell() == HEADER, header.tell()
    self.file.seek(0)
    self.file.write(header.getvalue())
    _sync(self.file)


def canonical(key: dict) -> str:
  """The key as text: the same for equal keys, whatever their order."""
  return json.dumps({**key, "builder": VERSION}, sort_keys=True, allow_nan=False)


def build(
  examples: Iterable[tuple[str, Example]],
  key: dict,
  directory: pathlib.Path,
  counts: dict | None = None,
) -> Store:
  """The store of `key` under `directory`; `examples` are consumed only if it is not there.

  `key` names everything that shapes the examples (bytes of the data, tokenizer, template,
  settings). 1-D arrays of an example are token-aligned and share one length T >= 1, those
  that begin with "source" another S >= 1; 0-d arrays, and those of one row [1, C], are values
  of the example. `counts` is read after the last example, so that an encoder can fill it while
  it runs; it is kept with the store and found in `Store.counts`.
  """
  text, directory = canonical(key), pathlib.Path(directory)
  name = hashlib.sha256(text.encode()).hexdigest()
  final = directory / name
  if final.exists():
    return open_store(final, key)
  temporary = directory / f".building-{name[:16]}-{os.getpid()}-{secrets.token_hex(4)}"
  try:
    with _writing(directory):
      directory.mkdir(parents=True, exist_ok=True)
      _remove_stale(directory)
      temporary.mkdir()
    _write(temporary, examples, text, {} if counts is None else counts)
    with _writing(directory):
      _publish(temporary, final)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return open_store(final, key)


def in_memory(examples: Iterable[tuple[str, Example]], counts: dict | None = None) -> Store:
  """A store of few examples that nobody will ask for again, such as rows to predict."""
  ids, lengths, columns, types = [], {}, {}, {}
  for id, example in examples:
    arrays, own = _normalise(id, example)
    found = _types(arrays)
    types = types or found
    _check_alike(id, found, types)
    for key, values in arrays.items():
      columns.setdefault(key, []).append(values)
    ids.append(id)
    for name, length in own.items():
      lengths.setdefault(name, []).append(length)
  if not ids:
    raise JaxsftError("found no example, expected at least one")
  join = lambda k, v: np.concatenate(v) if types[k][1] else np.array(v)
  joined = {k: join(k, v) for k, v in columns.items()}
  total = hashlib.sha256(json.dumps([ids, lengths]).encode())
  for key, column in sorted(joined.items()):
    total.update(f"{key} {column.dtype.str} ".encode() + column.tobytes())
  kinds = {key: _kind(key, values[0]) for key, values in columns.items()}
  offsets = {name: _offsets(values) for name, values in lengths.items()}
  return _store(None, ids, offsets, joined, kinds, total.hexdigest(), counts or {})


def open_store(path: pathlib.Path, key: dict | None = None) -> Store:
  """A finished store, mapped; one that holds another key or lacks data is an error."""
  path = pathlib.Path(path)
  try:
    stored = (path / "key.json").read_text("utf-8")
    index = json.loads((path / "index.json").read_text("utf-8"))
    lines = (path / "ids.jsonl").read_text("utf-8").rstrip("\n")
    ids = json.loads("[" + lines.replace("\n", ",") + "]")
    kinds = {k: kind for kind in KINDS for k in index[f"{kind}s"]}
    columns = {k: _map(path / f"{kind}.{k}.npy") for k, kind in kinds.items()}
    offsets = {"offsets": np.load(path / "offsets.npy")}
    if index["sources"]:
      offsets["source_offsets"] = np.load(path / "source_offsets.npy")
    whole = all(len(ids) == index["examples"] == len(v) - 1 for v in offsets.values())
    ends = {kind: offsets[name][-1] for kind, name in OFFSETS.items() if name in offsets}
    ends["value"] = len(ids)
    if not whole or any(len(v) != ends[kinds[k]] for k, v in columns.items()):
      raise ValueError("its files do not belong together")
  except (OSError, ValueError, KeyError, EOFError) as error:
    raise JaxsftError(
      f"the token store {path} is damaged ({error}); delete this directory and run again"
    ) from error
  if key is not None and stored != canonical(key):
    raise JaxsftError(
      f"the token store {path} was built from other settings than its name says: found "
      f"{stored}, expected {canonical(key)}; delete this directory and run again"
    )
  return _store(path, ids, offsets, columns, kinds, index["fingerprint"], index["counts"])


def _store(path, ids, offsets, columns, kinds, fingerprint, counts) -> Store:
  of = lambda kind: {k: v for k, v in columns.items() if kinds[k] == kind}
  target, source = offsets["offsets"], offsets.get("source_offsets")
  lengths = np.diff(target).astype(np.int32)
  if source is not None:
    lengths = np.stack([np.diff(source).astype(np.int32), lengths], 1)
  values = (ids, lengths, target, of("token"), of("value"), fingerprint, counts)
  return Store(path, *values, source, of("source"))


def supervised(store: Store) -> np.ndarray:
  """[N] int64: supervised tokens of each example; 1 or 0 where examples carry a label."""
  if "weights" in store.tokens:
    return np.add.reduceat(store.tokens["weights"] > 0, store.offsets[:-1], dtype=int)
  weight = store.values.get("label_weight")
  if weight is None:
    return np.full(len(store), int("label" in store.values))
  return (np.asarray(weight) > 0).astype(int)


def _write(directory, examples, key_text, counts):
  columns, types, lengths = {}, {}, {}
  ids_hash = hashlib.sha256()
  with contextlib.ExitStack() as stack:
    with _writing(directory.parent):
      ids = (directory / "ids.jsonl").open("wb", buffering=1 << 20)
    stack.callback(_close, ids)
    for id, example in examples:
      arrays, own = _normalise(id, example)
      with _writing(directory.parent):
        if not lengths:
          types = _types(arrays)
          for key, (dtype, _, width) in types.items():
            file = directory / f"{_kind(key, arrays[key])}.{key}.npy"
            columns[key] = _Column(file, dtype, width)
            stack.callback(_close, columns[key].file)
        _check_alike(id, _types(arrays), types)
        for key, values in arrays.items():
          columns[key].append(values)
        line = json.dumps(id).encode() + b"\n"
        ids.write(line)
      ids_hash.update(line)
      for name, length in own.items():
        lengths.setdefault(name, array("q")).append(length)
    if not lengths:
      raise JaxsftError(
        f"found no example to store, expected at least one (counted: {counts or 'nothing'})"
        "; see data.keep, data.split and data.max_length"
      )
    with _writing(directory.parent):
      _sync(ids)
      for name, values in lengths.items():
        columns[name] = _Column(directory / f"{name}.npy", np.dtype(np.int64))
        stack.callback(_close, columns[name].file)
        columns[name].append(_offsets(values))
      for column in columns.values():
        column.close()
      examples = len(lengths["offsets"])
      _write_index(directory, key_text, columns, ids_hash, examples, counts)


def _write_index(directory, key_text, columns, ids_hash, examples, counts):
  total = hashlib.sha256(ids_hash.digest())
  keys = {kind: {} for kind in KINDS}
  for column in sorted(columns.values(), key=lambda c: c.path.name):
    total.update(f"{column.path.name} {column.dtype.str} ".encode() + column.hash.digest())
    kind, _, rest = column.path.name.partition(".")
    if kind in keys:
      keys[kind][rest.removesuffix(".npy")] = column.dtype.name
  index = {
    "examples": examples,
    **{f"{kind}s": keys[kind] for kind in KINDS},
    "fingerprint": total.hexdigest(),
    "counts": counts,
  }
  for name, text in (
    ("index.json", json.dumps(index, indent=1)),
    ("key.json", key_text),
  ):
    with (directory / name).open("wb") as file:
      file.write(text.encode())
      _sync(file)


def _normalise(id, example):
  """Arrays as int32 or float32, and {name of the offsets: length} of each stream."""
  arrays, lengths = {}, {}
  for key, values in example.items():
    values = np.asarray(values)
    if values.dtype.kind in "biu" and values.dtype != np.int32:
      wide, values = values, values.astype(np.int32)
      if not np.array_equal(wide, values):
        raise JaxsftError(f"{key} of example {id} holds integers beyond 32 bits")
    elif values.dtype.kind == "f":
      values = values.astype(np.float32, copy=False)
    row = values.ndim == 2 and len(values) == 1
    if values.dtype not in (np.int32, np.float32) or not (values.ndim < 2 or row):
      raise JaxsftError(
        f"{key} of example {id} is {values.dtype}{list(values.shape)}, expected integers "
        "or floats in a flat array, one value, or one row of values"
      )
    arrays[key] = values
    if values.ndim == 1:
      lengths.setdefault(OFFSETS[_kind(key, values)], {})[key] = len(values)
  for own in (lengths.get("offsets", {}), *lengths.values()):
    if len(set(own.values())) != 1 or 0 in own.values():
      raise JaxsftError(
        f"example {id} has token arrays of lengths {own}, expected one length >= 1"
      )
  return arrays, {name: next(iter(own.values())) for name, own in lengths.items()}


def _kind(key, values):
  """Of a column, by one example's array: "source", "token" or "value"."""
  if values.ndim != 1:
    return "value"
  return "source" if key.startswith(SOURCE) else "token"


def _offsets(lengths):
  return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])


def _types(arrays):
  """Key -> (type, dimensions, values of a row or None)."""
  return {k: (v.dtype, v.ndim, v.shape[1] if v.ndim == 2 else None) for k, v in arrays.items()}


def _check_alike(id, found, expected):
  """Arrays as `_types` says."""
  if found != expected:
    raise JaxsftError(
      f"example {id} has arrays (type, dimensions, width) {found}, the ones before it "
      f"{expected}; all examples of a store are alike"
    )


def _map(path):
  return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _sync(file):
  file.flush()
  os.fsync(file.fileno())


def _close(file):
  """After success everything was synced; after an error this must not hide it."""
  with contextlib.suppress(OSError):
    file.close()


def _publish(temporary, final):
  try:
    os.rename(temporary, final)
  except OSError:
    # Someone else finished the same store first; theirs holds the same examples.
    if not (final / "key.json").exists():
      raise


def _remove_stale(directory):
  """Removes what killed builds left; a build that still writes is younger than STALE."""
  for left in directory.glob(".building-*"):
    with contextlib.suppress(OSError):
      newest = max(p.stat().st_mtime for p in (left, *left.iterdir()))
      if time.time() - newest > STALE:
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _writing(directory) -> Iterator[None]:
  """Turns an error of the file system into a sentence."""
  try:
    yield
  except OSError as error:
    what = "the disk is full" if is_full(error) else str(error)
    raise JaxsftError(
      f"cannot write the token store under {directory}: {what}; nothing half-written was "
      "kept; free some space there or set JAXSFT_CACHE to another directory"
    ) from error
