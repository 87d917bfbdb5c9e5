"""GGUF in: tensors dequantised under Hugging Face names, the config from the metadata."""

import pathlib
import re

import gguf
import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights.gguf_families import FAMILIES, TOP, Family, config_of
from jaxsft.weights.gguf_read import Gguf, read_gguf
from jaxsft.weights.source import Index, Info, Source


def open_gguf(path: pathlib.Path) -> Source:
  """Opens a GGUF file as if it were a Hugging Face directory of float32 tensors.

  Raises JaxsftError for an architecture, a metadata key, a tensor or a quantisation that
  is not understood, naming it and what is.
  """
  file = read_gguf(path)
  if file.arch not in FAMILIES:
    raise JaxsftError(
      f"found general.architecture {file.arch!r} in {path}; expected one of "
      f"{', '.join(FAMILIES)}: use the model's safetensors instead"
    )
  family = FAMILIES[file.arch]
  config = config_of(file, family)
  heads = {
    "attn_q": config["num_attention_heads"],
    "attn_k": config["num_key_value_heads"],
  }
  stored, tensors = {}, {}
  for name, (shape, quantisation, _) in file.tensors.items():
    if name in family.ignored:
      continue
    _check_quantisation(path, name, quantisation)
    stem, hf = _hf_name(path, name, family)
    rows = _rows(shape[0], heads[stem]) if family.interleaved and stem in heads else None
    stored[hf] = (name, rows, family.norm_offset if stem.endswith("norm") else 0.0)
    tensors[hf] = Info(shape, "float32")

  def read_slice(name: str, index: Index) -> np.ndarray:
    place, rows, offset = stored[name]
    values = _read(file, place, rows, index)
    return values - np.float32(offset) if offset else values

  return Source(path, config, dict(sorted(tensors.items())), read_slice)


def _read(file: Gguf, name: str, rows: np.ndarray | None, index: Index) -> np.ndarray:
  """A slice of a tensor of the file; only the blocks that it touches are dequantised."""
  shape, quantisation, data = file.tensors[name]
  if len(shape) == 1:
    values = gguf.dequantize(np.asarray(data), quantisation).reshape(-1)
    return (values if rows is None else values[rows])[index]
  first, *middle, last = (*index, *[slice(None)] * (len(shape) - len(index)))
  # A block of `size` columns is `width` of what the file's rows are made of.
  size, width = gguf.GGML_QUANT_SIZES[quantisation]
  width //= data.itemsize
  columns = range(shape[-1])[last]
  start, stop = columns.start // size, -(-columns.stop // size)
  part = data[first] if rows is None else data[rows[first]]
  values = gguf.dequantize(
    np.ascontiguousarray(part[..., start * width : stop * width]), quantisation
  )
  values = values.reshape(*part.shape[:-1], -1)
  inside = slice(columns.start - start * size, columns.stop - start * size)
  return values[(slice(None), *middle, inside)]


def _hf_name(path: pathlib.Path, name: str, family: Family) -> tuple[str, str]:
  """(its stem, the Hugging Face name) of a tensor's name in the file."""
  stem, _, kind = name.rpartition(".")
  if kind in ("weight", "bias"):
    if stem in TOP:
      return stem, f"{TOP[stem]}.{kind}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in family.block:
      return block[2], f"model.layers.{block[1]}.{family.block[block[2]]}.{kind}"
  raise JaxsftError(
    f"found the tensor {name!r} in {path}; expected only tensors of a dense {family.name} "
    f"({', '.join([*TOP, *family.block])}): this variant is not supported"
  )


def _rows(rows: int, heads: int) -> np.ndarray:
  """Row of the file for every row of the Hugging Face tensor.

  llama.cpp rotates neighbouring pairs of a head (2k, 2k+1), Hugging Face the two halves
  (k, k+H/2), so the conversion to GGUF reordered the rows of q and k inside each head.
  """
  return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _check_quantisation(
  path: pathlib.Path, name: str, quantisation: gguf.GGMLQuantizationType
) -> None:
  _, size = gguf.GGML_QUANT_SIZES[quantisation]
  try:
    gguf.dequantize(np.zeros((1, size), np.uint8), quantisation)
  except NotImplementedError as error:
    raise JaxsftError(
      f"found the tensor {name!r} stored as {quantisation.name} in {path}; expected a "
      "type that the gguf package can dequantise, such as F16, BF16, Q8_0 or Q4_K"
    ) from error
