import pathlib

import numpy as np
import pytest

from jaxsft import weights
from jaxsft.errors import JaxsftError
from jaxsft.weights import gguf_families, gguf_file, gguf_read
from tests.weights.tiny_gguf import HEAD_DIM, HEADS, VOCAB, WIDTH, Q, write


def hf(name, architecture="llama"):
  family = gguf_families.FAMILIES[architecture]
  return gguf_file._hf_name(pathlib.Path("x"), name, family)[1]


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
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
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
    (96, 128),
    "float32",
  )
  for name, value in values.items():
    np.testing.assert_array_equal(source.read(hf(name)), value)


def test_rotary_halves_are_put_back_in_order(tmp_path):
  """Row 1 of a head in Hugging Face's order is row 2 of the file, not row 1."""
  values = write(tmp_path / "a.gguf")
  source = weights.open_source(tmp_path / "a.gguf")
  file = gguf_read.read_gguf(tmp_path / "a.gguf")
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
  factors = gguf_families.llama3_factors(500000.0, HEAD_DIM, 32.0, 8192)
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
  ours = plain / gguf_families.llama3_factors(500000.0, 32, 8.0, 8192)
  np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5)


def test_yarn_is_mapped(tmp_path):
  keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
  keys = {f"~.rope.scaling.{key}": value for key, value in keys.items()}
  write(tmp_path / "a.gguf", keys=keys, architecture="qwen3")
  expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
  assert weights.open_source(tmp_path / "a.gguf").config["rope_scaling"] == expected


def test_linear_rope_is_mapped(tmp_path):
  keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
  write(tmp_path / "a.gguf", keys=keys)
  config = weights.open_source(tmp_path / "a.gguf").config
  assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"architecture": "gpt2"}, "general.architecture 'gpt2' .*expected one of llama, qwen2"),
    ({"keys": {"llama.attention.sliding_window": 64}}, "llama.attention.sliding_window"),
    ({"keys": {"llama.rope.scaling.type": "longrope"}}, "scaling.type 'longrope'"),
    ({"keys": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling.factor = None"),
    ({"keys": {"llama.rope.scaling.yarn_beta_fast": 8.0}}, "yarn_beta_fast .*only keys"),
    ({"keys": {"llama.attention.head_count_kv": [1, 3]}}, r"head_count_kv = \[1, 3\]"),
    ({"keys": {"llama.rope.dimension_count": 16}}, "dimension_count = 16 .*expected 64"),
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
      {"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((2, 96), np.float32)}},
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
