"""Tiny models written as GGUF, as llama.cpp's converter writes them."""

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType
WIDTH, HEADS, KV, HEAD_DIM, MLP, VOCAB = 96, 3, 1, 64, 128, 40
BLOCK_SHAPES = {
  "attn_norm": (WIDTH,),
  "attn_q": (HEADS * HEAD_DIM, WIDTH),
  "attn_k": (KV * HEAD_DIM, WIDTH),
  "attn_v": (KV * HEAD_DIM, WIDTH),
  "attn_output": (WIDTH, HEADS * HEAD_DIM),
  "ffn_norm": (WIDTH,),
  "ffn_gate": (MLP, WIDTH),
  "ffn_up": (MLP, WIDTH),
  "ffn_down": (WIDTH, MLP),
}
HEAD_NORMS = {"attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)}
AROUND = {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}
BIASES = {f"attn_{x}.bias": (n * HEAD_DIM,) for x, n in {"q": HEADS, "k": KV, "v": KV}.items()}
WINDOW = {"attention.sliding_window": 16}
BESIDE = {  # architecture -> what its layers and metadata have beside Llama's
  "llama": ({}, {}),
  "qwen2": (BIASES, {}),
  "qwen3": (HEAD_NORMS, {}),
  "gemma": ({}, {}),
  "gemma2": (
    AROUND,
    WINDOW | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
  ),
  "gemma3": (HEAD_NORMS | AROUND, WINDOW),
}


def interleave(weight, heads):
  """What llama.cpp's converter does to q and k (LlamaModel.permute), by its definition:
  row 2k+j of a head is row k + j H/2 of the Hugging Face tensor."""
  size = weight.shape[0] // heads
  rows = [
    head * size + k + half * size // 2
    for head in range(heads)
    for k in range(size // 2)
    for half in range(2)
  ]
  return weight[rows]


def as_stored(name, value, architecture):
  """What the conversion makes of a Hugging Face tensor."""
  stem = name.split(".")[-2]
  if architecture == "llama" and stem in ("attn_q", "attn_k"):
    return interleave(value, {"attn_q": HEADS, "attn_k": KV}[stem])
  if architecture.startswith("gemma") and stem.endswith("norm"):
    return value + np.float32(1)
  return value


def write(
  path, *, types=None, drop=(), tensors=None, keys=None, architecture="llama", layers=2
):
  """A tiny model as GGUF; returns its Hugging Face tensors, by their names in the file.

  keys: metadata, with "~." for the architecture.
  """
  rng = np.random.default_rng(0)
  more_tensors, more_keys = BESIDE.get(architecture, ({}, {}))
  values = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
  for layer in range(layers):
    for stem, shape in (BLOCK_SHAPES | more_tensors).items():
      values[f"blk.{layer}.{stem}{'' if '.' in stem else '.weight'}"] = shape
  values = {k: rng.normal(size=s).astype(np.float32) for k, s in values.items()}
  values |= tensors or {}
  meta = {
    "block_count": layers,
    "context_length": 128,
    "embedding_length": WIDTH,
    "feed_forward_length": MLP,
    "vocab_size": VOCAB,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
    "rope.dimension_count": HEAD_DIM,
    **more_keys,
  }
  meta = {f"~.{key}": value for key, value in meta.items()}
  meta |= {
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 5,
  }
  meta = {k.replace("~", architecture): v for k, v in (meta | (keys or {})).items()}
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in meta.items():
    if value is None or key in drop:
      continue
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)
  for name, value in values.items():
    if name in drop:
      continue
    stored, kind = as_stored(name, value, architecture), (types or {}).get(name, Q.F32)
    if kind in (Q.F32, Q.I32):
      writer.add_tensor(name, stored if kind == Q.F32 else stored.astype(np.int32))
    elif isinstance(kind, tuple):  # raw bytes of a kind that the package cannot write
      writer.add_tensor(name, kind[1], raw_dtype=kind[0])
    else:
      writer.add_tensor(name, gguf.quantize(stored, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return values
