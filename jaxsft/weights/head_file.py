"""head.safetensors: a task head for which transformers has no class, beside its base model."""

import pathlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import safetensors

from jaxsft.errors import JaxsftError
from jaxsft.weights.source import Index, Info, Source

FILE = "head.safetensors"
KIND = "jaxsft_head"
"""Key of config.json that says of what kind the head in FILE is."""


def save_head(directory: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
  """Writes the head's tensors beside the base model's."""
  import safetensors.numpy

  arrays = {name: np.asarray(array, order="C") for name, array in tensors}
  safetensors.numpy.save_file(arrays, directory / FILE, {"format": "np"})


def with_head(source: Source) -> Source:
  """The source with the tensors of its head.safetensors, where config.json speaks of one.

  Raises JaxsftError where the file is missing, unreadable, or repeats a tensor of the base.
  """
  if KIND not in source.config:
    return source
  path = source.path / FILE
  if not path.is_file():
    raise JaxsftError(
      f"found {KIND} = {source.config[KIND]!r} in {source.path}/config.json but no {FILE}; "
      f"expected the head there: copy the whole directory, or remove {KIND} to have the base"
    )
  try:
    head = safetensors.safe_open(path, framework="numpy")
  except (OSError, safetensors.SafetensorError) as error:
    raise JaxsftError(
      f"found {path} unreadable as safetensors ({error}); expected a complete file: copy it "
      "again"
    ) from error
  arrays = {name: head.get_tensor(name) for name in head.keys()}
  if twice := sorted(arrays.keys() & source.tensors.keys()):
    raise JaxsftError(
      f"found {', '.join(twice)} in {path} and in the base model beside it; expected each "
      "tensor once: remove one of the two"
    )

  def read_slice(name: str, index: Index) -> np.ndarray:
    return arrays[name][index] if name in arrays else source.read_slice(name, index)

  infos = {name: Info(array.shape, array.dtype.name) for name, array in arrays.items()}
  tensors = dict(sorted((source.tensors | infos).items()))
  return replace(source, tensors=tensors, read_slice=read_slice)
