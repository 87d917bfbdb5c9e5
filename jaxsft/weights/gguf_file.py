"""GGUF in: metadata as a Hugging Face config, tensors dequantised under Hugging Face names.

Key names and the order of q and k rows are llama.cpp's (convert_hf_to_gguf.py).
"""

import functools
import pathlib
import re
from typing import Any, NamedTuple

import gguf
import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights.source import Index, Info, Source

ARCHITECTURES = ("llama",)

TOP = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}
BLOCK = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
# Every `llama.*` key that is understood; another one may change what the model computes.
KEYS = {
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
  "vocab_size",
  "attention.head_count",
  "attention.head_count_kv",
  "attention.layer_norm_rms_epsilon",
  "attention.key_length",
  "attention.value_length",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.scaling.type",
  "rope.scaling.factor",
  "rope.scaling.original_context_length",
  "rope.scaling.finetuned",
}


class Gguf(NamedTuple):
  """A parsed file: metadata as plain Python values, tensors as memory maps."""

  path: pathlib.Path
  metadata: dict[str, Any]
  tensors: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType, np.ndarray]]
  """Name in the file -> shape, quantisation, raw data."""


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


def open_gguf(path: pathlib.Path) -> Source:
  """Opens a GGUF file as if it were a Hugging Face directory of float32 tensors.

  Raises JaxsftError for an architecture, a metadata key, a tensor or a quantisation that
  is not understood, naming it and what is.
  """
  file = read_gguf(path)
  arch = file.metadata.get("general.architecture")
  if arch not in ARCHITECTURES:
    raise JaxsftError(
      f"found general.architecture {arch!r} in {path}; expected one of "
      f"{', '.join(ARCHITECTURES)}: use the model's safetensors instead"
    )
  config = _config(file)
  heads = {
    "attn_q": config["num_attention_heads"],
    "attn_k": config["num_key_value_heads"],
  }
  raw, tensors = {}, {}
  for name, (shape, quantisation, data) in file.tensors.items():
    if name == "rope_freqs.weight":
      continue  # in the config, as rope_scaling
    _check_quantisation(path, name, quantisation)
    stem, hf = _hf_name(path, name)
    raw[hf] = (data, quantisation, _rows(shape[0], heads.get(stem)))
    tensors[hf] = Info(shape, "float32")

  def read_slice(name: str, index: Index) -> np.ndarray:
    data, quantisation, rows = raw[name]
    if len(tensors[name].shape) == 1:  # a row of bytes, which a slice could cut
      values = gguf.dequantize(np.asarray(data), quantisation).reshape(-1)
      return (values if rows is None else values[rows])[index]
    first, rest = (index[0], index[1:]) if index else (slice(None), ())
    part = data[first] if rows is None else data[rows[first]]
    values = gguf.dequantize(np.asarray(part), quantisation)
    values = values.reshape(part.shape[:1] + tensors[name].shape[1:])
    return values[(slice(None), *rest)]

  return Source(path, config, dict(sorted(tensors.items())), read_slice)


def _hf_name(path: pathlib.Path, name: str) -> tuple[str, str]:
  """(its stem, the Hugging Face name) of a tensor's name in the file."""
  stem, _, kind = name.rpartition(".")
  if kind in ("weight", "bias"):
    if stem in TOP:
      return stem, f"{TOP[stem]}.{kind}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in BLOCK:
      return block[2], f"model.layers.{block[1]}.{BLOCK[block[2]]}.{kind}"
  raise JaxsftError(
    f"found the tensor {name!r} in {path}; expected only tensors of a dense Llama "
    f"({', '.join([*TOP, *BLOCK])}): this variant is not supported"
  )


def _rows(rows: int, heads: int | None) -> np.ndarray | None:
  """Row of the file for every row of the Hugging Face tensor; None where they agree.

  llama.cpp rotates neighbouring pairs of a head (2k, 2k+1), Hugging Face the two halves
  (k, k+H/2), so the conversion to GGUF reordered the rows of q and k inside each head.
  """
  if heads is None:
    return None
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


def _config(file: Gguf) -> dict[str, Any]:
  """The config.json of a Llama, from the metadata; every field is the file's own."""
  path, meta = file.path, file.metadata
  get = functools.partial(_key, file)
  unknown = sorted(
    key
    for key, value in meta.items()
    if key.startswith("llama.") and key.removeprefix("llama.") not in KEYS and value
  )
  if unknown:
    raise JaxsftError(
      f"found the metadata {', '.join(unknown[:4])} in {path}; expected only keys that "
      "are understood, since another may change what the model computes: use the "
      "model's safetensors instead"
    )
  for name in ("token_embd.weight", "output_norm.weight"):
    if name not in file.tensors:
      raise JaxsftError(f"found no tensor {name!r} in {path}; expected a whole Llama")
  vocab = file.tensors["token_embd.weight"][0][0]
  width, heads = get("embedding_length"), get("attention.head_count")
  head_dim = meta.get("llama.attention.key_length", width // heads)
  for key, expected in (
    ("attention.value_length", head_dim),
    ("rope.dimension_count", head_dim),
    ("vocab_size", vocab),
  ):
    if (found := meta.get(f"llama.{key}", expected)) != expected:
      raise JaxsftError(
        f"found llama.{key} = {found} in {path}; expected {expected}, as the other "
        "metadata and the tensors say: this variant is not supported"
      )
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    "attention_dropout": 0.0,
    "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    "hidden_act": "silu",
    "hidden_size": width,
    "intermediate_size": get("feed_forward_length"),
    "num_hidden_layers": get("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
    "head_dim": head_dim,
    "vocab_size": vocab,
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "max_position_embeddings": get("context_length"),
    "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
    "rope_theta": _theta(meta),
    "rope_scaling": _rope_scaling(file, head_dim),
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "float32",
  } | token_ids(meta)


def token_ids(meta: dict[str, Any]) -> dict[str, Any]:
  """bos, eos and pad ids as in config.json; a separate end of turn joins the eos ids."""
  get = lambda kind: meta.get(f"tokenizer.ggml.{kind}_token_id")
  stops = [get(kind) for kind in ("eos", "eot") if get(kind) is not None]
  stops = list(dict.fromkeys(stops))
  return {
    "bos_token_id": get("bos"),
    "eos_token_id": stops if len(stops) > 1 else stops[0] if stops else None,
    "pad_token_id": get("padding"),
  }


def _key(file: Gguf, key: str) -> Any:
  value = file.metadata.get(f"llama.{key}")
  if value is None or isinstance(value, list):
    raise JaxsftError(
      f"found llama.{key} = {value} in {file.path}; expected one number there: the "
      "metadata is incomplete or of a variant that is not supported"
    )
  return value


def _shortest(value: float) -> float:
  """The number that was meant: GGUF stores 1e-5 as the float32 9.999999747378752e-06."""
  return float(str(np.float32(value)))


def _theta(meta: dict[str, Any]) -> float:
  # llama.cpp's own rule: converters leave the key out when config.json has no rope_theta.
  return _shortest(meta.get("llama.rope.freq_base", 10000.0))


def _rope_scaling(file: Gguf, head_dim: int) -> dict[str, Any] | None:
  """rope_scaling of config.json: none, linear, or Llama 3's, whose factors are a tensor."""
  meta = file.metadata
  kind = meta.get("llama.rope.scaling.type", "none")
  if "rope_freqs.weight" in file.tensors:
    if kind == "none":
      return _llama3_scaling(file, head_dim)
    kind = f"{kind} together with rope_freqs"
  if kind == "none":
    return None
  if kind == "linear":
    factor = _shortest(_key(file, "rope.scaling.factor"))
    return {"rope_type": "linear", "factor": factor}
  raise JaxsftError(
    f"found llama.rope.scaling.type {kind!r} in {file.path}; expected none or linear: "
    "use the model's safetensors instead"
  )


def llama3_factors(theta: float, head_dim: int, factor: float, original: int) -> np.ndarray:
  """Divisors [H/2] of the rope frequencies (Llama 3.1: low 1, high 4), float64.

  llama.cpp writes exactly these as rope_freqs.weight; the published models differ in
  `factor` alone (8, and 32 for Llama 3.2).
  """
  low, high = 1.0, 4.0
  wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  smooth = (original / wavelength - low) / (high - low)
  between = 1 / ((1 - smooth) / factor + smooth)
  return np.where(
    wavelength < original / high,
    1.0,
    np.where(wavelength > original / low, factor, between),
  )


def _llama3_scaling(file: Gguf, head_dim: int) -> dict[str, Any]:
  """Llama 3's parameters, recovered from the factors and checked against them."""
  _, quantisation, data = file.tensors["rope_freqs.weight"]
  found = gguf.dequantize(np.asarray(data), quantisation).reshape(-1)
  factor, original, theta = _shortest(found.max()), 8192, _theta(file.metadata)
  expected = llama3_factors(theta, head_dim, factor, original)
  if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
    raise JaxsftError(
      f"found rope_freqs.weight in {file.path} that are not Llama 3's factors for "
      f"theta {theta}, factor {factor} and an original length of {original}; expected "
      "those: use the model's safetensors instead"
    )
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": original,
  }
