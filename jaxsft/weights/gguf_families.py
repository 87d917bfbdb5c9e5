"""What an architecture of GGUF is called in Hugging Face: one entry of `FAMILIES` each.

Key names, and what the conversion does to values, are llama.cpp's (convert_hf_to_gguf.py);
what its loader derives where there is no key is derived here in the same way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gguf
import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.weights.gguf_read import Gguf, shortest

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
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
AROUND = {  # norms before and after each branch
  "post_attention_norm": "post_attention_layernorm",
  "ffn_norm": "pre_feedforward_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}
# Every key that is understood; another one may change what the model computes.
COMMON = {
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


class Family(NamedTuple):
  """How one general.architecture becomes a Hugging Face model."""

  model_type: str
  name: str
  """The class is f"{name}ForCausalLM"."""
  block: dict[str, str]
  """Stem of a layer's tensor -> module."""
  config: Callable[[Gguf, int], dict[str, Any]]
  """(file, head_dim) -> what config.json has beside `config_of`'s keys."""
  keys: tuple[str, ...] = ()
  """Metadata that `config` reads beside COMMON."""
  interleaved: bool = False
  """Whether the conversion reordered the rows of q and k: see gguf_file._rows."""
  norm_offset: float = 0.0
  """What the conversion added to the weights of all norms."""
  ignored: tuple[str, ...] = ()
  """Tensors that `config` reads."""


def config_of(file: Gguf, family: Family) -> dict[str, Any]:
  """The config.json of the model, from the metadata; every field is the file's own.

  Raises JaxsftError for keys that are not understood, missing or contradictory.
  """
  head_dim = _check(file, family)
  heads = file.number("attention.head_count")
  return {
    "architectures": [f"{family.name}ForCausalLM"],
    "model_type": family.model_type,
    "attention_dropout": 0.0,
    "hidden_size": file.number("embedding_length"),
    "intermediate_size": file.number("feed_forward_length"),
    "num_hidden_layers": file.number("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": file.number("attention.head_count_kv", heads),
    "vocab_size": file.tensors["token_embd.weight"][0][0],
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "max_position_embeddings": file.number("context_length"),
    "rms_norm_eps": file.real("attention.layer_norm_rms_epsilon"),
    "rope_theta": theta(file),
    "rope_scaling": rope_scaling(file, head_dim),
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "float32",
    **family.config(file, head_dim),
    **token_ids(file.metadata),
  }


def _check(file: Gguf, family: Family) -> int:
  """Raises JaxsftError for metadata that says something else; returns the head's size."""
  path, arch = file.path, file.arch
  known = {f"{arch}.{key}" for key in (*COMMON, *family.keys)}
  ours = [key for key, value in file.metadata.items() if key.startswith(f"{arch}.") and value]
  if unknown := sorted(set(ours) - known):
    raise JaxsftError(
      f"found the metadata {', '.join(unknown[:4])} in {path}; expected only keys that "
      "are understood, since another may change what the model computes: use the "
      "model's safetensors instead"
    )
  for name in ("token_embd.weight", "output_norm.weight"):
    if name not in file.tensors:
      raise JaxsftError(f"found no tensor {name!r} in {path}; expected a whole {family.name}")
  vocab = file.tensors["token_embd.weight"][0][0]
  derived = file.number("embedding_length") // file.number("attention.head_count")
  head_dim = file.number("attention.key_length", derived)
  for key, expected in (
    ("attention.value_length", head_dim),
    ("rope.dimension_count", head_dim),
    ("vocab_size", vocab),
  ):
    if (found := file.get(key, expected)) != expected:
      raise JaxsftError(
        f"found {arch}.{key} = {found} in {path}; expected {expected}, as the other "
        "metadata and the tensors say: this variant is not supported"
      )
  return head_dim


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


def theta(file: Gguf) -> float:
  # llama.cpp's own rule: converters leave the key out when config.json has no rope_theta.
  return shortest(file.number("rope.freq_base", 10000.0))


def rope_scaling(file: Gguf, head_dim: int) -> dict[str, Any] | None:
  """rope_scaling of config.json: linear, yarn, or Llama 3's, whose factors are a tensor."""
  kind = file.get("rope.scaling.type", "none")
  if "rope_freqs.weight" in file.tensors:
    if kind == "none":
      return _llama3_scaling(file, head_dim)
    kind = f"{kind} together with rope_freqs"
  if kind == "none":
    return None
  if kind not in ("linear", "yarn"):
    raise JaxsftError(
      f"found {file.arch}.rope.scaling.type {kind!r} in {file.path}; expected none, linear "
      "or yarn: use the model's safetensors instead"
    )
  scaling = {"rope_type": kind, "factor": file.real("rope.scaling.factor")}
  if kind == "yarn":
    original = file.number("rope.scaling.original_context_length")
    scaling["original_max_position_embeddings"] = original
  return scaling


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
  factor, original, base = shortest(found.max()), 8192, theta(file)
  expected = llama3_factors(base, head_dim, factor, original)
  if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
    raise JaxsftError(
      f"found rope_freqs.weight in {file.path} that are not Llama 3's factors for "
      f"theta {base}, factor {factor} and an original length of {original}; expected "
      "those: use the model's safetensors instead"
    )
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": original,
  }


def _llama(file: Gguf, head_dim: int) -> dict[str, Any]:
  return {
    "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    "hidden_act": "silu",
    "head_dim": head_dim,
  }


def _qwen2(file: Gguf, head_dim: int) -> dict[str, Any]:
  heads, width = file.number("attention.head_count"), file.number("embedding_length")
  return {
    "hidden_act": "silu",
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": file.number("block_count"),
    **({} if head_dim * heads == width else {"head_dim": head_dim}),
  }


def _qwen3(file: Gguf, head_dim: int) -> dict[str, Any]:
  bias = "blk.0.attn_q.bias" in file.tensors
  return {**_qwen2(file, head_dim), "head_dim": head_dim, "attention_bias": bias}


def _gemma(file: Gguf, head_dim: int) -> dict[str, Any]:
  return {
    "attention_bias": False,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": head_dim,
  }


def _query_scale(file: Gguf, head_dim: int, largest: int) -> int:
  """query_pre_attn_scalar: the width of a head of the residual stream in the 27B models,
  which llama.cpp knows by their number of layers, and else the head's size."""
  if file.number("block_count") == largest:
    return file.number("embedding_length") // file.number("attention.head_count")
  return head_dim


def _layer_types(file: Gguf, period: int) -> list[str]:
  """Every `period`-th layer attends to all; newer files say the period, or every layer."""
  layers = file.number("block_count")
  pattern = file.get("attention.sliding_window_pattern", period)
  if not isinstance(pattern, list):
    pattern = [bool((i + 1) % pattern) for i in range(layers)]
  if len(pattern) != layers:
    raise JaxsftError(
      f"found {file.arch}.attention.sliding_window_pattern of {len(pattern)} layers in "
      f"{file.path}; expected {layers}: the metadata is of a variant that is not supported"
    )
  return ["sliding_attention" if window else "full_attention" for window in pattern]


def _gemma2(file: Gguf, head_dim: int) -> dict[str, Any]:
  return {
    **_gemma(file, head_dim),
    "query_pre_attn_scalar": _query_scale(file, head_dim, 46),
    "sliding_window": file.number("attention.sliding_window"),
    "layer_types": _layer_types(file, 2),
    "attn_logit_softcapping": file.real("attn_logit_softcapping"),
    "final_logit_softcapping": file.real("final_logit_softcapping"),
  }


def _gemma3(file: Gguf, head_dim: int) -> dict[str, Any]:
  config = _gemma(file, head_dim)
  del config["hidden_act"]
  softcap = file.get("final_logit_softcapping")
  return {
    **config,
    "query_pre_attn_scalar": _query_scale(file, head_dim, 62),
    "sliding_window": file.number("attention.sliding_window"),
    "layer_types": _layer_types(file, 6),
    # llama.cpp's own rule where the key is absent, which is in newer files only
    "rope_local_base_freq": shortest(file.number("rope.freq_base_swa", 10000.0)),
    "attn_logit_softcapping": None,
    "final_logit_softcapping": shortest(softcap) if softcap else None,
    "use_bidirectional_attention": False,
  }


WINDOW = ("attention.sliding_window", "attention.sliding_window_pattern")
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")

FAMILIES = {
  "llama": Family(
    *("llama", "Llama", BLOCK, _llama), interleaved=True, ignored=("rope_freqs.weight",)
  ),
  "qwen2": Family("qwen2", "Qwen2", BLOCK, _qwen2),
  "qwen3": Family("qwen3", "Qwen3", BLOCK | HEAD_NORMS, _qwen3),
  "gemma": Family("gemma", "Gemma", BLOCK, _gemma, norm_offset=1.0),
  "gemma2": Family(
    *("gemma2", "Gemma2", BLOCK | AROUND, _gemma2, (*WINDOW, *SOFTCAPS)), norm_offset=1.0
  ),
  "gemma3": Family(
    "gemma3_text",
    "Gemma3",
    BLOCK | HEAD_NORMS | AROUND,
    _gemma3,
    (*WINDOW, "final_logit_softcapping", "rope.freq_base_swa"),
    norm_offset=1.0,
  ),
}
