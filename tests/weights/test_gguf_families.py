"""Every architecture beside definitions, beside transformers, and beside real files."""

import json
import os
import pathlib
import warnings

import gguf
import jax
import numpy as np
import pytest

from jaxsft import families, models, weights
from jaxsft.errors import JaxsftError
from jaxsft.weights import gguf_families, gguf_file
from tests.weights.tiny_gguf import BESIDE, Q, write

COMMON = {
  "attention_dropout": 0.0,
  "hidden_size": 96,
  "intermediate_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "num_key_value_heads": 1,
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
  "head_dim": 64,
}
QWEN = {"hidden_act": "silu", "sliding_window": None, "use_sliding_window": False}
GEMMA = {
  "attention_bias": False,
  "hidden_act": "gelu_pytorch_tanh",
  "hidden_activation": "gelu_pytorch_tanh",
}
CONFIGS = {
  "qwen2": QWEN | {"model_type": "qwen2", "max_window_layers": 2},
  "qwen3": QWEN | {"model_type": "qwen3", "max_window_layers": 2, "attention_bias": False},
  "gemma": GEMMA | {"model_type": "gemma"},
  "gemma2": GEMMA
  | {
    "model_type": "gemma2",
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
  },
  "gemma3": {k: v for k, v in GEMMA.items() if k != "hidden_act"}
  | {
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention"],
    "rope_local_base_freq": 10000.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
  },
}
CLASSES = {
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma": "GemmaForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3": "Gemma3ForCausalLM",
}
LAYER = {  # name in the file -> in transformers, where they are not Llama's
  "ffn_norm": {
    "gemma2": "pre_feedforward_layernorm",
    "gemma3": "pre_feedforward_layernorm",
    "qwen3": "post_attention_layernorm",
  },
  "post_attention_norm": {"gemma2": "post_attention_layernorm"},
  "post_ffw_norm": {"gemma3": "post_feedforward_layernorm"},
  "attn_q_norm": {"qwen3": "self_attn.q_norm", "gemma3": "self_attn.q_norm"},
  "attn_k_norm": {"qwen3": "self_attn.k_norm"},
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_config_names_and_values(tmp_path, architecture):
  values = write(tmp_path / "a.gguf", architecture=architecture)
  source = weights.open_source(tmp_path / "a.gguf")
  classes = {"architectures": [CLASSES[architecture]]}
  assert source.config == COMMON | classes | CONFIGS[architecture]
  assert len(source.tensors) == len(values)
  family = gguf_families.FAMILIES[architecture]
  for name, value in values.items():
    hf = gguf_file._hf_name(pathlib.Path("x"), name, family)[1]
    np.testing.assert_allclose(source.read(hf), value, atol=3e-7, err_msg=name)
    part = (slice(3, 30), slice(5, 40))[: value.ndim]
    np.testing.assert_array_equal(source.read(hf, part), source.read(hf)[part])
  for stem, known in LAYER.items():
    if architecture in known:
      hf = f"model.layers.1.{known[architecture]}.weight"
      value = values[f"blk.1.{stem}.weight"]
      np.testing.assert_allclose(source.read(hf), value, atol=3e-7)


KEYS = (  # query_pre_attn_scalar and head_dim are fixed numbers there
  "layer_types",
  "sliding_window",
  "rope_parameters",
  "hidden_activation",
  "num_key_value_heads",
  "tie_word_embeddings",
)


@pytest.mark.parametrize("architecture", BESIDE)
def test_transformers_reads_the_same(tmp_path, architecture, oracle):
  """Its own reader of GGUF, whose tensors become those of its own model class."""
  transformers = pytest.importorskip("transformers")
  from transformers import modeling_gguf_pytorch_utils as theirs

  if architecture == "gemma":
    pytest.skip("transformers reads no GGUF of the first Gemma")
  write(tmp_path / "a.gguf", architecture=architecture, layers=7)
  source = weights.open_source(tmp_path / "a.gguf")
  name = source.config["architectures"][0]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    kind = getattr(transformers, name).config_class
    config = kind(**source.config)
    model = getattr(transformers, name)(config)
    found = theirs.load_gguf_checkpoint(
      str(tmp_path / "a.gguf"), return_tensors=True, model_to_load=model
    )
    read = kind(**found["config"])
  for key in KEYS:
    assert getattr(config, key, None) == getattr(read, key, None), key
  tensors = {f"model.{k.removeprefix('model.')}": v for k, v in found["tensors"].items()}
  assert tensors.keys() == source.tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(source.read(name), value.numpy(), err_msg=name)


@pytest.mark.parametrize("architecture", BESIDE)
def test_a_family_takes_the_config_and_every_tensor(tmp_path, architecture):
  write(tmp_path / "a.gguf", architecture=architecture, layers=7)
  source = weights.open_source(tmp_path / "a.gguf")
  family = families.FAMILIES[source.config["model_type"]]
  arch = family.architecture(source.config)
  head = families.head_of(family, arch, "lm")
  shapes = jax.eval_shape(models.Network(arch, head).init, jax.random.key(0))
  params, report = weights.load(
    source, family.names(arch, head), shapes, base_prefix=family.BASE_PREFIX
  )
  assert report == weights.Report(len(source.tensors), (), ())
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


@pytest.mark.parametrize(
  ("architecture", "layers", "keys", "expected"),
  [
    ("gemma3", 7, {}, "sssssfs"),
    ("gemma3", 7, {"~.attention.sliding_window_pattern": 3}, "ssfssfs"),
    ("gemma3", 4, {"~.attention.sliding_window_pattern": [True, False, False, True]}, "sffs"),
    ("gemma2", 5, {}, "sfsfs"),
  ],
)
def test_layers_with_and_without_a_window(tmp_path, architecture, layers, keys, expected):
  write(tmp_path / "a.gguf", architecture=architecture, layers=layers, keys=keys)
  config = weights.open_source(tmp_path / "a.gguf").config
  assert [kind[0] for kind in config["layer_types"]] == list(expected)


@pytest.mark.parametrize(
  ("architecture", "layers", "expected"),
  [("gemma2", 46, 32), ("gemma2", 42, 64), ("gemma3", 62, 32), ("gemma3", 48, 64)],
)
def test_the_largest_gemmas_scale_by_the_width_of_the_stream(
  tmp_path, architecture, layers, expected
):
  write(tmp_path / "a.gguf", architecture=architecture, layers=layers)
  config = weights.open_source(tmp_path / "a.gguf").config
  assert config["query_pre_attn_scalar"] == expected  # 96 wide, 3 heads of 64


def test_newer_keys_of_gemma3(tmp_path):
  keys = {"~.rope.freq_base_swa": 20000.0, "~.final_logit_softcapping": 30.0}
  keys |= {"~.rope.scaling.type": "linear", "~.rope.scaling.factor": 8.0}
  write(tmp_path / "a.gguf", architecture="gemma3", keys=keys)
  config = weights.open_source(tmp_path / "a.gguf").config
  assert config["rope_local_base_freq"] == 20000.0
  assert config["final_logit_softcapping"] == 30.0
  assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_a_head_that_is_not_the_width_over_the_heads(tmp_path):
  """Qwen2 names head_dim only where it has to: transformers derives it otherwise."""
  keys = {f"~.attention.{side}_length": 32 for side in ("key", "value")}
  keys["~.rope.dimension_count"] = 32
  write(tmp_path / "a.gguf", architecture="qwen2", keys=keys)
  assert "head_dim" not in weights.open_source(tmp_path / "a.gguf").config
  drop = ("qwen2.attention.key_length", "qwen2.attention.value_length")
  write(tmp_path / "b.gguf", architecture="qwen2", keys=keys, drop=drop)
  assert "head_dim" not in weights.open_source(tmp_path / "b.gguf").config


FACTORS = gguf_families.llama3_factors(500000.0, 64, 8.0, 8192).astype(np.float32)


@pytest.mark.parametrize(
  ("architecture", "changes", "sentence"),
  [
    ("gemma2", {"drop": ("gemma2.attention.sliding_window",)}, "sliding_window = None"),
    ("gemma2", {"drop": ("gemma2.attn_logit_softcapping",)}, "attn_logit_softcapping = None"),
    ("gemma3", {"drop": ("gemma3.attention.sliding_window",)}, "sliding_window = None"),
    ("gemma3", {"keys": {"~.attn_logit_softcapping": 50.0}}, "only keys that are understood"),
    (
      "gemma3",
      {"keys": {"~.attention.sliding_window_pattern": [True]}},
      "of 1 layers .*expected 2",
    ),
    ("qwen2", {"keys": {"~.attention.sliding_window": 64}}, "only keys that are understood"),
    (
      "qwen2",
      {"tensors": {"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}},
      "a dense Qwen2",
    ),
    ("qwen3", {"tensors": {"rope_freqs.weight": FACTORS}}, "'rope_freqs.weight' .*Qwen3"),
  ],
)
def test_what_is_not_understood_is_refused(tmp_path, architecture, changes, sentence):
  write(tmp_path / "a.gguf", architecture=architecture, **changes)
  with pytest.raises(JaxsftError, match=sentence):
    weights.open_source(tmp_path / "a.gguf")


def readable(kind):
  try:
    gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
  except NotImplementedError:
    return False
  return True


KINDS = [kind for kind in Q if readable(kind)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_read_by_blocks(tmp_path, kind):
  """Slices of rows and columns, at and off the edges of blocks, beside the whole."""
  size, width = gguf.GGML_QUANT_SIZES[kind]
  rng = np.random.default_rng(0)
  raw = rng.integers(0, 60, (6, 512 // size * width), np.uint8)  # no scale is infinite
  raw = raw.view({Q.F32: np.float32, Q.F16: np.float16}.get(kind, np.uint8))
  values = gguf.dequantize(raw, kind).reshape(6, 512)
  path, name = tmp_path / "a.gguf", "model.layers.0.self_attn.q_proj.weight"
  write(path, architecture="qwen2", types={"blk.0.attn_q.weight": (kind, raw)})
  source = weights.open_source(path)
  assert source.tensors[name] == ((6, 512), "float32")
  np.testing.assert_array_equal(source.read(name), values)
  for rows in (slice(None), slice(1, 4), slice(5, 6)):
    for columns in (slice(0, 256), slice(256, 512), slice(3, 5), slice(31, 289)):
      part = source.read(name, (rows, columns))
      np.testing.assert_array_equal(part, values[rows, columns])


REAL = {  # file below JAXSFT_CHECKPOINTS -> directory made from it, stored type
  "SmolLM2-135M-Instruct.Q4_1.gguf": "fp32/smollm2-135m-instruct",
  "gemma3-270m.Q4_K_M.gguf": "gemma3-270m",
  "qwen2.5-coder-1.5b-instruct.Q4_K_M.gguf": "qwen2.5-coder-1.5b-instruct",
}


@pytest.mark.full
@pytest.mark.parametrize("file", REAL)
def test_real_files_equal_their_directories(file):
  root = pathlib.Path(os.environ.get("JAXSFT_CHECKPOINTS", "/nowhere"))
  found, reference = [*root.glob(f"*/{file}"), *root.rglob(file)], root / REAL[file]
  if not found or not reference.is_dir():
    pytest.skip(f"needs JAXSFT_CHECKPOINTS with {file} and {REAL[file]}")
  source, expected = weights.open_source(found[0]), weights.open_source(reference)
  config = json.loads((reference / "config.json").read_text())
  config.pop("_sliding_window_pattern", None)  # says what layer_types says
  assert source.config == config | {"torch_dtype": "float32"}
  assert source.tensors.keys() == expected.tensors.keys()
  for name, info in expected.tensors.items():
    for start in range(0, info.shape[0], 20_000):
      rows = (slice(start, start + 20_000),)
      stored = expected.read(name, rows)
      read = source.read(name, rows).astype(stored.dtype)
      np.testing.assert_array_equal(read, stored, err_msg=name)
