"""What a checkpoint on disk looks like to the rest of the library, whatever its format."""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxsft.errors import JaxsftError

Index = tuple[slice, ...]
"""One slice for each leading axis; () is the whole tensor."""


class Info(NamedTuple):
  """What is known of a tensor before its values are read."""

  shape: tuple[int, ...]
  dtype: str
  """NumPy's name ("float32", "bfloat16", …) of what `Source.read` returns."""


@dataclass(frozen=True)
class Source:
  """An opened checkpoint: names first, values on demand, one slice at a time."""

  path: pathlib.Path
  config: dict[str, Any]
  """config.json, or the same keys synthesised from the metadata of a GGUF file."""
  tensors: dict[str, Info]
  """Hugging Face name -> shape and dtype."""
  read_slice: Callable[[str, Index], np.ndarray]
  """Reads a slice of a named tensor; use `read`."""

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """The values of `name` at `index`, without reading the rest of the tensor.

    Raises JaxsftError where the file has no such tensor.
    """
    if name not in self.tensors:
      raise JaxsftError(
        f"found no tensor {name!r} in {self.path}, which holds {len(self.tensors)} "
        "others; expected it there: check that the checkpoint is complete"
      )
    return self.read_slice(name, index)
