"""Safetensors in and out: directories of one or many files, read by slice, written checked."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the name "bfloat16", which safetensors needs
import numpy as np
import safetensors
import safetensors.numpy

from jaxsft.errors import JaxsftError, is_full
from jaxsft.weights import shards
from jaxsft.weights.source import Index, Info, Source

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

# The names that safetensors has for the types that NumPy (with ml_dtypes) can hold.
DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}


def holds(directory: pathlib.Path) -> bool:
  """Whether a directory has weights that this module reads."""
  return any((directory / name).is_file() for name in (SINGLE, INDEX))


def open_directory(directory: pathlib.Path) -> Source:
  """Opens a Hugging Face directory; reads config.json and the files' headers only.

  Raises JaxsftError for a missing or broken config.json, no weights in safetensors, a
  missing, truncated or corrupt file, and an index that disagrees with its files.
  """
  config = shards.read_config(directory)
  if (directory / SINGLE).is_file():
    handles = {SINGLE: _open(directory / SINGLE)}
  elif (directory / INDEX).is_file():
    handles = shards.open_indexed(directory / INDEX, _open)
  else:
    raise JaxsftError(_no_weights(directory))
  where = {name: file for file, handle in handles.items() for name in handle.keys()}
  tensors = {}
  for name in sorted(where):
    header = handles[where[name]].get_slice(name)
    dtype = header.get_dtype()
    tensors[name] = Info(tuple(header.get_shape()), DTYPES.get(dtype, dtype.lower()))

  def read_slice(name: str, index: Index) -> np.ndarray:
    if not index or tensors[name].shape == ():
      return handles[where[name]].get_tensor(name)
    sizes = zip(index, tensors[name].shape, strict=False)
    inside = tuple(slice(*part.indices(size)) for part, size in sizes)
    return handles[where[name]].get_slice(name)[inside]

  return Source(directory, config, tensors, read_slice)


def save_safetensors(
  directory: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  metadata: dict[str, str] | None = None,
  *,
  shard_bytes: int = SHARD_BYTES,
) -> list[str]:
  """Writes tensors as model.safetensors, or as numbered files with an index.

  Takes tensors one by one and holds at most one file of them in memory. Whatever the
  layout of an array in memory (transposed, strided, big-endian), its values are written
  in C order; every file is read back and compared with the arrays before it gets its
  name, so nothing half-written is ever left under a name that a loader looks for.
  Returns the names of the written files. Raises JaxsftError on a full disk, a name that
  comes twice and a file that reads back differently.
  """
  metadata = {"format": "pt"} | (metadata or {})
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".writing-", dir=directory) as temporary:
    work = pathlib.Path(temporary)
    parts: list[list[str]] = []
    total = 0
    for batch in _batches(tensors, shard_bytes):
      total += sum(array.nbytes for array in batch.values())
      _write(work / f"part{len(parts)}", batch, metadata, directory)
      parts.append(list(batch))
    if not parts:
      raise JaxsftError(f"found no tensors to write to {directory}; expected some")
    files = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    if len(parts) == 1:
      files = [SINGLE]
    else:
      weight_map = {n: f for f, part in zip(files, parts, strict=True) for n in part}
      index = {"metadata": {"total_size": total}, "weight_map": weight_map}
      (work / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    # An older save of another number of files would be found before this one.
    for old in [*directory.glob("model*.safetensors"), directory / INDEX]:
      old.unlink(missing_ok=True)
    for number, file in enumerate(files):
      os.replace(work / f"part{number}", directory / file)
    if len(files) > 1:
      os.replace(work / INDEX, directory / INDEX)
      files = [*files, INDEX]
  return files


def read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of one file, in their own types."""
  handle = _open(path)
  return {name: handle.get_tensor(name) for name in sorted(handle.keys())}


def write_file(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes one file in C order, reads it back and compares."""
  tensors = {name: in_file_order(array) for name, array in tensors.items()}
  _write(path, tensors, {"format": "pt"}, path.parent)


def _batches(
  tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
  """Groups of tensors of at most `shard_bytes`, in order; a larger one stands alone."""
  batch: dict[str, np.ndarray] = {}
  size, seen = 0, set()
  for name, array in tensors:
    if name in seen:
      raise JaxsftError(
        f"found the tensor {name!r} twice among those to write; expected every name once"
      )
    seen.add(name)
    array = in_file_order(array)
    if batch and size + array.nbytes > shard_bytes:
      yield batch
      batch, size = {}, 0
    batch[name] = array
    size += array.nbytes
  if batch:
    yield batch


def in_file_order(array: Any) -> np.ndarray:
  """`array` as NumPy in C order and native bytes: safetensors writes raw memory."""
  array = np.asarray(array)
  if not array.dtype.isnative:
    array = array.astype(array.dtype.newbyteorder("="))
  # Not np.ascontiguousarray, which turns a scalar into a vector of one.
  return np.asarray(array, order="C")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two arrays agree in type, shape and every bit (NaN included)."""
  if a.dtype != b.dtype or a.shape != b.shape:
    return False
  bits = lambda x: np.asarray(x, order="C").reshape(-1).view(np.uint8)
  return np.array_equal(bits(a), bits(b))


def _write(
  path: pathlib.Path,
  tensors: dict[str, np.ndarray],
  metadata: dict[str, str],
  directory: pathlib.Path,
) -> None:
  """Writes one file, flushes it to the disk, reads it back and compares."""
  size = sum(array.nbytes for array in tensors.values())
  free = shutil.disk_usage(directory).free
  if size > free:
    raise JaxsftError(_full(directory, size, free))
  try:
    path.touch()
    mode = path.stat().st_mode  # as any new file here; safetensors makes files for one user
    safetensors.numpy.save_file(tensors, path, metadata)
    path.chmod(mode)
    with open(path, "rb+") as file:
      os.fsync(file.fileno())
  except (OSError, safetensors.SafetensorError) as error:
    if is_full(error) or "os error 28" in str(error):
      raise JaxsftError(_full(directory, size, free)) from error
    raise JaxsftError(
      f"writing {size} bytes of weights to {directory} failed ({error}); expected a "
      "disk that takes them: check its space and permissions"
    ) from error
  written = _open(path)
  for name, array in tensors.items():
    if not same_bits(written.get_tensor(name), array):
      raise JaxsftError(
        f"the tensor {name!r} read back from {directory} differs from what was written; "
        "expected the same bits: the disk may be faulty, nothing was kept"
      )


def _open(path: pathlib.Path) -> Any:
  try:
    return safetensors.safe_open(path, framework="numpy")
  except FileNotFoundError as error:
    raise JaxsftError(f"found no file {path}; expected weights there") from error
  except (OSError, safetensors.SafetensorError) as error:
    size = path.stat().st_size if path.exists() else 0
    raise JaxsftError(
      f"found {path} unreadable as safetensors ({size} bytes; {error}); expected a "
      "complete file: it is truncated or damaged, copy or download it again"
    ) from error


def _no_weights(directory: pathlib.Path) -> str:
  """The sentence for a directory without safetensors, by what lies there instead."""
  expected = f"expected {SINGLE} (or {INDEX} with its files)"
  if pickles := sorted(directory.glob("pytorch_model*.bin")):
    return (
      f"found {pickles[0].name} in {directory} but no safetensors; {expected}: pickles "
      "can run code and are not opened, so convert it to safetensors (in PyTorch: "
      "model.save_pretrained(directory)), or set model.allow_pytorch_bin=True, which "
      "reads tensors out of it and runs nothing"
    )
  if ggufs := sorted(directory.glob("*.gguf")):
    return (
      f"found {ggufs[0].name} in {directory} but no safetensors; {expected}: to use the "
      f"GGUF file give its own path, {ggufs[0]}"
    )
  if shards := sorted(directory.glob("*.safetensors")):
    return (
      f"found {shards[0].name} in {directory} but neither {SINGLE} nor {INDEX}; "
      f"{expected}: the index may have been left out when the files were copied"
    )
  others = sorted(path.name for path in directory.iterdir())
  return f"found no weights in {directory} (it holds {others[:6]}); {expected}"


def _full(directory: pathlib.Path, size: int, free: int) -> str:
  return (
    f"found {free / 1e6:.1f} MB free on the disk of {directory}; expected room for "
    f"{size / 1e6:.1f} MB of weights: free some space or write elsewhere; nothing was "
    "left half-written"
  )
