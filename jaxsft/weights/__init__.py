"""Bytes in and out: safetensors and GGUF, streamed, sharded, checked."""

import pathlib

from jaxsft.errors import JaxsftError
from jaxsft.weights.params import (
  Report,
  export_tensors,
  load,
  loaded_leaves,
)
from jaxsft.weights.safetensors_files import open_directory, save_safetensors
from jaxsft.weights.source import Info, Source

__all__ = [
  "Info",
  "Report",
  "Source",
  "export_tensors",
  "load",
  "loaded_leaves",
  "open_source",
  "save_safetensors",
]


def open_source(path: pathlib.Path) -> Source:
  """Opens a Hugging Face directory or a .gguf file; reads names, shapes and config only.

  Raises JaxsftError where there is nothing, or nothing readable.
  """
  if path.is_dir():
    return open_directory(path)
  if not path.exists():
    raise JaxsftError(
      f"found nothing at {path}; expected a Hugging Face directory or a .gguf file: "
      "check model.path"
    )
  if path.suffix == ".gguf":
    from jaxsft.weights import gguf_file  # half a second, for those who need it

    return gguf_file.open_gguf(path)
  if path.suffix == ".safetensors":
    raise JaxsftError(
      f"found the file {path}; expected the directory that holds it, with config.json "
      f"and the tokenizer: set model.path to {path.parent}"
    )
  raise JaxsftError(
    f"found the file {path}; expected a Hugging Face directory or a .gguf file: check "
    "model.path"
  )
