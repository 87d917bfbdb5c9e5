"""Bytes in and out: safetensors, GGUF and torch files, streamed, sharded, checked."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxsft.errors import JaxsftError
from jaxsft.weights import head_file, safetensors_files, torch_file
from jaxsft.weights.params import (
  Report,
  export_tensors,
  leaves,
  load,
)
from jaxsft.weights.safetensors_files import open_directory, save_safetensors
from jaxsft.weights.source import Info, Source

__all__ = [
  "Info",
  "Report",
  "Source",
  "export_tensors",
  "identity",
  "leaves",
  "load",
  "open_source",
  "save_safetensors",
]


def open_source(path: pathlib.Path, allow_pytorch_bin: bool = False) -> Source:
  """Opens a Hugging Face directory or a .gguf file; reads names, shapes and config only.

  allow_pytorch_bin: whether pytorch_model.bin is read where there are no safetensors.
  Raises JaxsftError where there is nothing, or nothing readable.
  """
  if path.is_dir():
    if allow_pytorch_bin and torch_file.holds(path) and not safetensors_files.holds(path):
      return torch_file.open_directory(path)
    return head_file.with_head(open_directory(path))
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


def identity(path: pathlib.Path, config: Mapping[str, Any]) -> str:
  """Hash that tells weights from others: sizes, heads, tails of files, the config."""
  files = [path]
  if path.is_dir():
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
  digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
  for file in files:
    size = file.stat().st_size
    with file.open("rb") as stream:
      digest.update(f"{file.name} {size} ".encode() + stream.read(1 << 20))
      stream.seek(max(0, size - (1 << 20)))
      digest.update(stream.read())
  return digest.hexdigest()
