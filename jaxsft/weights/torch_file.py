"""pytorch_model.bin in: tensors and nothing else, without torch and without running anything.

The file is a zip of raw storages and a pickle that says which tensor is which part of them.
The pickle may use the names and the operations that a state_dict needs; every other one is
refused before it is looked up. Storages are memory-mapped, and a slice of a tensor is copied
when it is read.
"""

import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  gives NumPy the name "bfloat16"
import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights import shards
from jaxsft.weights.source import Index, Info, Source

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch before 1.6
STORAGES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
}
ADVICE = (
  "expected names with tensors and nothing else, since pickles can run code: save the "
  "model's state_dict as safetensors (in PyTorch: model.save_pretrained(directory))"
)
OPERATIONS = set(
  "PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE "
  "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE EMPTY_TUPLE TUPLE "
  "TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINGET "
  "LONG_BINGET BINPUT LONG_BINPUT MEMOIZE".split()
)


class _Storage(NamedTuple):
  """Where the raw values lie in the file."""

  dtype: str
  offset: int
  size: int
  """Values, not bytes."""


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  """Values before the first one."""
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  """In values."""


class _Mapping(dict):
  """Stands for OrderedDict; what torch hangs onto it (_metadata) is dropped."""

  def __setstate__(self, state: Any) -> None:
    pass


class _Function:
  """A function that a pickle may call; as a plain one, a pickle could set its attributes."""

  __slots__ = ("function",)

  def __init__(self, function: Callable[..., Any]) -> None:
    self.function = function

  def __call__(self, *args: Any) -> Any:
    return self.function(*args)

  def __setstate__(self, state: Any) -> None:
    raise _Refused("a change of a function")


class _Refused(Exception):
  """What the pickle holds that is no tensor; becomes a JaxsftError with the file's name."""


def holds(directory: pathlib.Path) -> bool:
  """Whether a directory has weights that this module reads."""
  return any((directory / name).is_file() for name in (SINGLE, INDEX))


def open_directory(directory: pathlib.Path) -> Source:
  """Opens a directory with pytorch_model.bin, or with its index and files.

  Raises JaxsftError for a file that holds anything but tensors, is damaged, compressed or
  older than torch 1.6, and for an index that disagrees with its files.
  """
  config = shards.read_config(directory)
  if (directory / SINGLE).is_file():
    files = {SINGLE: _open(directory / SINGLE)}
  else:
    files = shards.open_indexed(directory / INDEX, _open)
  tensors = {
    name: (file, tensor) for file, held in files.items() for name, tensor in held.items()
  }
  maps = {file: np.memmap(directory / file, np.uint8, "r") for file in files}

  def read_slice(name: str, index: Index) -> np.ndarray:
    file, tensor = tensors[name]
    return np.array(_mapped(maps[file], tensor)[index], order="C")

  infos = {name: Info(t.shape, t.storage.dtype) for name, (_, t) in sorted(tensors.items())}
  return Source(directory, config, infos, read_slice)


def _mapped(data: np.ndarray, tensor: _Tensor) -> np.ndarray:
  """A view of the file's bytes; NumPy checks once more that it stays inside the storage."""
  storage, dtype = tensor.storage, np.dtype(tensor.storage.dtype)
  size = dtype.itemsize
  return np.ndarray(
    tensor.shape,
    dtype,
    data[storage.offset : storage.offset + storage.size * size],
    tensor.offset * size,
    tuple(stride * size for stride in tensor.strides),
  )


def _open(path: pathlib.Path) -> dict[str, _Tensor]:
  """Name -> tensor of one file; reads the zip's directory and the pickle only."""
  with open(path, "rb") as file:
    start = file.read(len(LEGACY))
  if start == LEGACY:
    raise JaxsftError(
      f"found {path} in the format of torch before 1.6, a bare pickle; expected the zip "
      "format: convert it (in PyTorch: torch.save(torch.load(path, weights_only=True), "
      "path), or model.save_pretrained(directory) for safetensors)"
    )
  try:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
      pickled, storages = _members(archive, file)
      _check_operations(pickled)
      found = _Unpickler(io.BytesIO(pickled), storages).load()
  except _Refused as error:
    raise JaxsftError(f"found {error} in {path}; {ADVICE}") from error
  except Exception as error:  # a hostile or damaged file may make zipfile and pickle raise any
    raise JaxsftError(
      f"found {path} unreadable as a file of torch.save ({path.stat().st_size} bytes; "
      f"{type(error).__name__}: {error}); expected a complete zip of tensors: it is "
      "truncated or damaged, copy or download it again"
    ) from error
  if not isinstance(found, dict) or not found:
    raise JaxsftError(f"found a {type(found).__name__} in {path}; {ADVICE}")
  for name, tensor in found.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      what = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
      kind = type(tensor).__name__.strip("_").lower()
      raise JaxsftError(f"found {what} to name a {kind} in {path}; {ADVICE}")
  return found


def _members(archive: zipfile.ZipFile, file: Any) -> tuple[bytes, dict[str, tuple[int, int]]]:
  """(the pickle, storage key -> first byte and size), of members that are stored plainly."""
  members = archive.infolist()
  names = [member.filename for member in members]
  if len(set(names)) < len(names):
    raise _Refused("two members of one name")
  pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise _Refused(f"{len(pickles)} members data.pkl")
  root, storages = pickles[0].removesuffix("data.pkl"), {}
  for member in members:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
      raise _Refused(f"the member {member.filename!r}, which is compressed or encrypted,")
    if member.filename.startswith(f"{root}data/"):
      key = member.filename.removeprefix(f"{root}data/")
      storages[key] = (_start(file, member), member.file_size)
  if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
    raise _Refused("values in another byte order than little-endian")
  return archive.read(pickles[0]), storages


def _start(file: Any, member: zipfile.ZipInfo) -> int:
  """The first byte of a member, behind its own header, which must be in the file whole."""
  file.seek(member.header_offset)
  header = file.read(30)
  if len(header) < 30 or header[:4] != b"PK\x03\x04":
    raise _Refused(f"no header of the member {member.filename!r}")
  name, extra = struct.unpack("<HH", header[26:])
  start = member.header_offset + 30 + name + extra
  if start + member.file_size > file.seek(0, io.SEEK_END):
    raise _Refused(f"the member {member.filename!r} to end behind the end of the file,")
  return start


def _check_operations(pickled: bytes) -> None:
  """Raises _Refused for operations that no state_dict needs and that can do harm: some run
  what is not looked up by name, some fill the memory with a few bytes."""
  for operation, argument, _ in pickletools.genops(pickled):
    if operation.name == "GLOBAL":
      _allowed(*argument.split(" ", 1))
    if operation.name not in OPERATIONS:
      raise _Refused(f"the pickle operation {operation.name}")
    if operation.name.endswith("BINPUT") and argument > len(pickled):
      raise _Refused(f"the pickle operation {operation.name} {argument}")


def _allowed(module: str, name: str) -> Any:
  if module == "torch" and name in STORAGES:
    return STORAGES[name]
  if (module, name) in NAMES:
    return NAMES[module, name]
  raise _Refused(f"the global {module}.{name}")


class _Unpickler(pickle.Unpickler):
  """Knows the names that a state_dict of tensors needs, and refuses every other one."""

  def __init__(self, stream: Any, storages: dict[str, tuple[int, int]]) -> None:
    super().__init__(stream)
    self.storages = storages

  def find_class(self, module: str, name: str) -> Any:
    return _allowed(module, name)

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, size = pid  # reprs of what is unchecked could be endless
    types = [type(value) for value in (kind, dtype, key, size)]
    if types != [str, str, str, int] or kind != "storage":
      raise _Refused(f"a storage of {types}")
    if dtype not in STORAGES.values():
      raise _Refused(f"the storage {key!r} of type {dtype!r}")
    if key not in self.storages:
      raise _Refused(f"no member for the storage {key!r}")
    start, length = self.storages[key]
    if size < 0 or size * np.dtype(dtype).itemsize != length:
      raise _Refused(f"the storage {key!r} of {size} {dtype} in {length} bytes")
    return _Storage(dtype, start, size)


def _tensor(
  storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, more: Any = None
) -> _Tensor:
  """torch._utils._rebuild_tensor_v2: its sizes must stay inside the storage."""
  if not isinstance(storage, _Storage) or {type(shape), type(strides)} != {tuple}:
    raise _Refused("a tensor without storage, shape or strides")
  numbers = [offset, *shape, *strides]
  if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
    raise _Refused("a tensor whose sizes are no natural numbers")
  if more:
    raise _Refused("a tensor that is negated or conjugated when it is read")
  if not math.prod(shape):
    return _Tensor(storage, 0, shape, strides)
  last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if offset + last >= storage.size:
    raise _Refused(
      f"a tensor {list(shape)} with strides {list(strides)} at {offset}, outside of its "
      f"storage of {storage.size} values,"
    )
  return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, grad: Any, hooks: Any) -> Any:
  """torch._utils._rebuild_parameter."""
  return tensor


NAMES = {
  ("collections", "OrderedDict"): _Mapping,
  ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
  ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
}
