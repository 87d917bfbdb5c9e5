"""Every way to stretch rotary positions: the frequencies of transformers, in both spellings."""

import numpy as np
import pytest

from jaxsft.errors import JaxsftError
from jaxsft.families import rope as ropes
from jaxsft.models import rope

KINDS = {
  "linear": {"rope_type": "linear", "factor": 4.0},
  "dynamic": {"rope_type": "dynamic", "factor": 4.0},
  "llama3": {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
  },
  "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
  "yarn of DeepSeek": {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
  },
  "yarn of gpt-oss": {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 512,
    "truncate": False,
    "attention_factor": 1.3,
  },
  "longrope": {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [2.0 + 0.3 * i for i in range(16)],
  },
  "part": {"rope_type": "default", "partial_rotary_factor": 0.5},
}


def config_of(fields):
  import transformers

  return transformers.LlamaConfig(
    hidden_size=64,
    num_attention_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    rope_parameters={"rope_theta": 70000.0, **fields},
  )


@pytest.mark.parametrize("name", KINDS)
def test_frequencies_are_those_of_transformers(oracle, name):
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
  from transformers.models.gpt_neox import modeling_gpt_neox

  config = config_of(KINDS[name])
  found = ropes.read(config.to_dict(), 32)
  kind = KINDS[name]["rope_type"]
  plain = modeling_gpt_neox.GPTNeoXRotaryEmbedding.compute_default_rope_parameters
  make = ROPE_INIT_FUNCTIONS.get(kind, plain)
  for length in (None, 1024) if kind == "longrope" else (None,):
    theirs, scale = make(config, "cpu", seq_len=length)
    ours = rope.frequencies(found, long=length is not None)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=3e-7)
    np.testing.assert_allclose(rope.magnitude(found), scale, rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_both_spellings_say_the_same(name):
  fields = {"rope_theta": 70000.0, **KINDS[name]}
  found = ropes.parse(fields, 32)
  out = ropes.write(found, 32)
  assert ropes.read(out, 32) == found
  old = {k: v for k, v in out.items() if k != "rope_parameters"}
  assert ropes.read(old, 32) == found
  assert ropes.read({"rope_parameters": out["rope_parameters"]}, 32) == found
  assert ropes.read({"rope_parameters": fields}, 32) == found
  with pytest.raises(JaxsftError, match="disagree"):
    ropes.read({**out, "rope_theta": 9.0}, 32)


@pytest.mark.parametrize("name", ["llama3", "yarn", "longrope", "linear"])
def test_a_field_that_is_missing_or_unknown_is_an_error(name):
  fields = {"rope_theta": 70000.0, **KINDS[name]}
  with pytest.raises(JaxsftError, match=r"missing fields \['factor'\]"):
    ropes.parse({k: v for k, v in fields.items() if k != "factor"}, 32)
  with pytest.raises(JaxsftError, match=r"unknown fields \['alpha'\]"):
    ropes.parse({**fields, "alpha": 2.0}, 32)


def test_neighbours_and_halves_turn_alike():
  """Interleaved pairs are halves in another order; what does not turn stays."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 3, 2, 8)).astype(np.float32)
  turn = rope.Rope("default", 100.0, 6, False, ())
  rotation = rope.rotations(turn, np.array([[0, 5, 900]]))
  order = [0, 2, 4, 1, 3, 5, 6, 7]
  halves = np.asarray(rope.rotate(x[..., order], rotation))
  pairs = np.asarray(rope.rotate(x, rotation, interleaved=True))
  np.testing.assert_allclose(pairs[..., order], halves, atol=1e-6)
  np.testing.assert_array_equal(pairs[..., 6:], x[..., 6:])
  np.testing.assert_allclose(pairs[:, 0], x[:, 0], atol=1e-7)
  length = lambda x: (x**2).sum(-1)
  np.testing.assert_allclose(length(pairs), length(x), rtol=1e-5)
