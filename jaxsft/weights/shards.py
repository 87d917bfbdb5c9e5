"""A directory's JSON files, and one checkpoint in many files with an index."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from jaxsft.errors import JaxsftError


def read_config(directory: pathlib.Path) -> dict[str, Any]:
  """The config.json of a Hugging Face directory."""
  path = directory / "config.json"
  if not path.is_file():
    hint = " (adapter_config.json is there: give the base model it was trained on)"
    raise JaxsftError(
      f"found no config.json in {directory}"
      + (hint if (directory / "adapter_config.json").is_file() else "")
      + "; expected a Hugging Face model directory: config.json, *.safetensors and "
      "tokenizer.json"
    )
  return read_json(path)


def open_indexed(index_file: pathlib.Path, open_file: Callable[[Any], Any]) -> dict[str, Any]:
  """File name -> handle, for every file that the index names.

  open_file: path -> a handle whose keys() are the names of its tensors. Raises JaxsftError
  where a file is missing or lies elsewhere, or where index and files disagree.
  """
  directory = index_file.parent
  weight_map = read_json(index_file).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise JaxsftError(
      f"found no weight_map in {index_file}; expected tensor names with the file "
      "that holds each: copy or download the index again"
    )
  files = sorted(set(map(str, weight_map.values())))
  for file in files:
    if pathlib.PurePath(file).name != file:
      raise JaxsftError(
        f"found the file {file!r} in {index_file}; expected names of files beside the "
        "index: copy or download the index again"
      )
  missing = [file for file in files if not (directory / file).is_file()]
  if missing:
    raise JaxsftError(
      f"found {len(files) - len(missing)} of {len(files)} weight files in {directory}; "
      f"missing {', '.join(missing[:3])}, which {index_file.name} names: copy or download "
      "them"
    )
  handles = {file: open_file(directory / file) for file in files}
  found = {name: file for file, handle in handles.items() for name in handle.keys()}
  differ = sorted(
    name for name in found | weight_map if found.get(name) != weight_map.get(name)
  )
  if differ:
    name = differ[0]
    raise JaxsftError(
      f"found {len(differ)} tensors whose file differs from {index_file}, such as "
      f"{name!r} (index: {weight_map.get(name)}, found in: {found.get(name)}); expected "
      "index and files of one save: copy or download them again"
    )
  return handles


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise JaxsftError(
      f"found {path} unreadable as JSON ({error}); expected an object: copy or download "
      "it again"
    ) from error
  if not isinstance(value, dict):
    raise JaxsftError(f"found a {type(value).__name__} in {path}; expected a JSON object")
  return value
