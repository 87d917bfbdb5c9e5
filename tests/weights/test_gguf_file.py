import os
import pathlib

import gguf
import numpy as np
import pytest

from jaxsft import weights
from jaxsft.errors import JaxsftError
from jaxsft.weights import gguf_file

Q = gguf.GGMLQuantizationType
WIDTH, HEADS, KV, HEAD_DIM, MLP, VOCAB = 64, 3, 1, 32, 96, 40
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


def write(path, *, types=None, drop=(), tensors=None, keys=None, architecture="llama"):
  """A tiny Llama as GGUF; returns its Hugging Face tensors before quantisation."""
  rng = np.random.default_rng(0)
  values = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
  for layer in range(2):
    for stem, shape in BLOCK_SHAPES.items():
      values[f"blk.{layer}.{stem}.weight"] = shape
  values = {k: rng.normal(size=s).astype(np.float32) for k, s in values.items()}
  values |= tensors or {}
  meta = {
    "block_count": 2,
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
  }
  meta = {f"llama.{key}": value for key, value in meta.items()}
  meta |= {
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 5,
  }
  meta |= keys or {}
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in meta.items():
    if value is None or key in drop:
      continue
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)
  for name, value in values.items():
    if name in drop:
      continue
    stem = name.split(".")[-2]
    stored = interleave(value, {"attn_q": HEADS, "attn_k": KV}.get(stem, 1))
    stored = stored if stem in ("attn_q", "attn_k") else value
    kind = (types or {}).get(name, Q.F32)
    if kind in (Q.F32, Q.I32):
      writer.add_tensor(name, stored if kind == Q.F32 else stored.astype(np.int32))
    else:
      writer.add_tensor(name, gguf.quantize(stored, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return values


def hf(name):
  return gguf_file._hf_name(pathlib.Path("x"), name)[1]


def test_config_and_names(tmp_path):
  values = write(tmp_path / "a.gguf")
  source = weights.open_source(tmp_path / "a.gguf")
  assert source.config == {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 40,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
    "pad_token_id": None,
  }
  assert len(source.tensors) == 20
  assert source.tensors["model.layers.1.mlp.down_proj.weight"] == (
    (64, 96),
    "float32",
  )
  for name, value in values.items():
    np.testing.assert_array_equal(source.read(hf(name)), value)


def test_rotary_halves_are_put_back_in_order(tmp_path):
  """Row 1 of a head in Hugging Face's order is row 2 of the file, not row 1."""
  values = write(tmp_path / "a.gguf")
  source = weights.open_source(tmp_path / "a.gguf")
  file = gguf_file.read_gguf(tmp_path / "a.gguf")
  raw = file.tensors["blk.0.attn_q.weight"][2]
  read = source.read("model.layers.0.self_attn.q_proj.weight")
  np.testing.assert_array_equal(read[1], raw[2])
  np.testing.assert_array_equal(read[HEAD_DIM // 2], raw[1])
  np.testing.assert_array_equal(read, values["blk.0.attn_q.weight"])
  with pytest.raises(AssertionError):
    np.testing.assert_array_equal(raw, values["blk.0.attn_q.weight"])


TOLERANCE = {
  Q.F16: 2e-3,
  Q.BF16: 2e-2,
  Q.Q8_0: 2e-2,
  Q.Q5_1: 2e-1,
  Q.Q5_0: 2e-1,
  Q.Q4_1: 4e-1,
  Q.Q4_0: 4e-1,
}


@pytest.mark.parametrize("kind", TOLERANCE, ids=lambda kind: kind.name)
def test_quantised_tensors_come_back_close_whole_and_by_slice(tmp_path, kind):
  stems = ("attn_q", "attn_k", "ffn_down")
  types = {f"blk.1.{stem}.weight": kind for stem in stems}
  types["token_embd.weight"] = kind
  types["output_norm.weight"] = kind
  values = write(tmp_path / "a.gguf", types=types)
  source = weights.open_source(tmp_path / "a.gguf")
  for name in types:
    read, value = source.read(hf(name)), values[name]
    assert read.dtype == np.float32
    assert read.shape == value.shape
    np.testing.assert_allclose(read, value, atol=TOLERANCE[kind])
    assert not np.array_equal(read, value)
    index = (slice(7, 30, None), slice(3, 41, None))[: value.ndim]
    np.testing.assert_array_equal(source.read(hf(name), index), read[index])
    np.testing.assert_array_equal(source.read(hf(name), index[:1]), read[7:30])


def test_a_head_of_its_own_and_biases(tmp_path):
  bias = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
  extra = {
    "output.weight": np.ones((VOCAB, WIDTH), np.float32),
    "blk.0.attn_q.bias": bias,
  }
  write(tmp_path / "a.gguf", tensors=extra)
  source = weights.open_source(tmp_path / "a.gguf")
  assert source.config["tie_word_embeddings"] is False
  assert source.config["attention_bias"] is True
  assert "lm_head.weight" in source.tensors
  read = source.read("model.layers.0.self_attn.q_proj.bias")
  np.testing.assert_array_equal(read, bias)
  part = source.read("model.layers.0.self_attn.q_proj.bias", (slice(3, 9),))
  np.testing.assert_array_equal(part, bias[3:9])


def test_llama3_rope_is_recovered_from_its_factors(tmp_path):
  factors = gguf_file.llama3_factors(500000.0, HEAD_DIM, 32.0, 8192)
  assert factors[0] == 1.0 and factors[-1] == 32.0
  assert ((factors > 1) & (factors < 32)).any()
  extra = {"rope_freqs.weight": factors.astype(np.float32)}
  write(tmp_path / "a.gguf", tensors=extra)
  source = weights.open_source(tmp_path / "a.gguf")
  assert source.config["rope_scaling"] == {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  assert "rope_freqs.weight" not in source.tensors
  extra["rope_freqs.weight"][5] *= 1.1
  write(tmp_path / "b.gguf", tensors=extra)
  with pytest.raises(JaxsftError, match="not Llama 3's factors"):
    weights.open_source(tmp_path / "b.gguf")


def test_llama3_factors_are_those_of_transformers(oracle):
  transformers = pytest.importorskip("transformers")
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  config = transformers.LlamaConfig(
    hidden_size=64,
    num_attention_heads=2,
    max_position_embeddings=131072,
    rope_parameters={
      "rope_type": "llama3",
      "rope_theta": 500000.0,
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    },
  )
  theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
  plain = 500000.0 ** -(np.arange(0, 32, 2) / 32)
  ours = plain / gguf_file.llama3_factors(500000.0, 32, 8.0, 8192)
  np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5)


def test_linear_rope_is_mapped(tmp_path):
  keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
  write(tmp_path / "a.gguf", keys=keys)
  config = weights.open_source(tmp_path / "a.gguf").config
  assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"architecture": "gemma3"}, "general.architecture 'gemma3' .*expected one of llama"),
    ({"keys": {"llama.attention.sliding_window": 64}}, "llama.attention.sliding_window"),
    ({"keys": {"llama.rope.scaling.type": "yarn"}}, "scaling.type 'yarn'"),
    ({"keys": {"llama.rope.dimension_count": 16}}, "dimension_count = 16 .*expected 32"),
    ({"keys": {"llama.vocab_size": 41}}, "llama.vocab_size = 41 .*expected 40"),
    ({"keys": {"llama.attention.value_length": 8}}, "value_length = 8"),
    ({"keys": {"split.count": 3}}, "one of 3 parts"),
    ({"drop": ("llama.block_count",)}, "llama.block_count = None"),
    (
      {"drop": ("llama.attention.layer_norm_rms_epsilon",)},
      "layer_norm_rms_epsilon = None",
    ),
    ({"drop": ("token_embd.weight",)}, "no tensor 'token_embd.weight'"),
    (
      {"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((2, 64), np.float32)}},
      "'blk.0.ffn_gate_inp.weight' .*dense Llama",
    ),
    ({"types": {"blk.0.ffn_up.weight": Q.I32}}, "'blk.0.ffn_up.weight' stored as I32"),
  ],
)
def test_what_is_not_understood_is_refused(tmp_path, changes, sentence):
  write(tmp_path / "a.gguf", **changes)
  with pytest.raises(JaxsftError, match=sentence):
    weights.open_source(tmp_path / "a.gguf")


@pytest.mark.parametrize("keep", [0, 3, 200, 2000, -100])
def test_a_file_cut_short_is_explained(tmp_path, keep):
  path = tmp_path / "a.gguf"
  write(path)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(JaxsftError, match=r"unreadable as GGUF.*truncated or damaged"):
    weights.open_source(path)


def test_a_file_of_another_format_is_explained(tmp_path):
  (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(500))
  with pytest.raises(JaxsftError, match="unreadable as GGUF"):
    weights.open_source(tmp_path / "a.gguf")


def test_a_rewritten_file_is_parsed_again(tmp_path):
  write(tmp_path / "a.gguf")
  assert weights.open_source(tmp_path / "a.gguf").config["rope_scaling"] is None
  keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
  write(tmp_path / "a.gguf", keys=keys)
  assert weights.open_source(tmp_path / "a.gguf").config["rope_scaling"] is not None


@pytest.mark.full
def test_the_real_smollm2_equals_its_reference():
  root = os.environ.get("JAXSFT_CHECKPOINTS")
  if root is None:
    pytest.skip("set JAXSFT_CHECKPOINTS to a directory with the checkpoints")
  files = list(pathlib.Path(root).rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
  if not files:
    pytest.skip("no SmolLM2-135M-Instruct.Q4_1.gguf under JAXSFT_CHECKPOINTS")
  source = weights.open_source(files[0])
  reference = weights.open_source(pathlib.Path(root) / "fp32/smollm2-135m-instruct")
  assert source.config == reference.config
  assert source.tensors == reference.tensors
  for name in reference.tensors:
    np.testing.assert_array_equal(source.read(name), reference.read(name))
