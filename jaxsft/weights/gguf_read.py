"""A GGUF file as plain Python: metadata and memory-mapped tensors, parsed once."""

import functools
import pathlib
from typing import Any, NamedTuple

import gguf
import numpy as np

from jaxsft.errors import JaxsftError


class Gguf(NamedTuple):
  """A parsed file: metadata as plain Python values, tensors as memory maps."""

  path: pathlib.Path
  metadata: dict[str, Any]
  tensors: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType, np.ndarray]]
  """Name in the file -> shape, quantisation, raw data."""

  @property
  def arch(self) -> Any:
    return self.metadata.get("general.architecture")

  def get(self, key: str, absent: Any = None) -> Any:
    """Metadata of the architecture: `get("block_count")` is that of "llama.block_count"."""
    return self.metadata.get(f"{self.arch}.{key}", absent)

  def number(self, key: str, absent: Any = None) -> Any:
    """Like `get`, for one number; without `absent` it must be there."""
    value = self.get(key, absent)
    if not isinstance(value, int | float):
      raise JaxsftError(
        f"found {self.arch}.{key} = {value} in {self.path}; expected one number there: the "
        "metadata is incomplete or of a variant that is not supported"
      )
    return value

  def real(self, key: str) -> float:
    """Like `number`, as it was meant: GGUF stores 1e-5 as the float32 9.99999974738e-06."""
    return shortest(self.number(key))


def shortest(value: float) -> float:
  """The shortest decimal number that is the same float32."""
  return float(str(np.float32(value)))


def read_gguf(path: pathlib.Path) -> Gguf:
  """Parses a GGUF file; weights and tokenizer share one parse, which takes seconds.

  Raises JaxsftError where it is not a GGUF file, is cut short, is one part of several,
  or was written for big-endian machines.
  """
  if not path.is_file():
    raise JaxsftError(f"found no file {path}; expected a GGUF file there")
  stat = path.stat()
  return _parse(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _parse(path: pathlib.Path, modified: int, size: int) -> Gguf:
  try:
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
      t.name: (tuple(int(n) for n in reversed(t.shape)), t.tensor_type, t.data)
      for t in reader.tensors
    }
  except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
    raise JaxsftError(
      f"found {path} unreadable as GGUF ({size} bytes; {error}); expected a complete "
      "GGUF file: it is truncated or damaged, copy or download it again"
    ) from error
  if reader.byte_order == "S":
    raise JaxsftError(
      f"found {path} written in the other byte order; expected a little-endian GGUF file"
    )
  if metadata.get("split.count", 1) > 1:
    raise JaxsftError(
      f"found {path} to be one of {metadata['split.count']} parts; expected one file: "
      "join them with llama-gguf-split --merge"
    )
  return Gguf(path, metadata, tensors)
