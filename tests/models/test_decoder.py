import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import families, models
from jaxsft.errors import JaxsftError
from jaxsft.generation import batches
from jaxsft.models import decoder
from tests.families import decoder_configs
from tests.generation import continued
from tests.models import tiny


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


LENGTHS = (9, 4, 6)


def ragged():
  """Rows padded on the right, and their segments."""
  examples = tiny.rows(67, LENGTHS)
  inputs = np.stack([np.pad(e, (0, max(LENGTHS) - len(e))) for e in examples])
  segments = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
  return inputs, segments


@pytest.mark.parametrize("straight", [False, True], ids=["stacked", "unstacked"])
@pytest.mark.parametrize("prompt", [1, 3])
def test_decoding_is_the_full_forward(straight, prompt):
  """Ragged prompts at once, then token by token, rows ending at different times."""
  network, params = tiny.network("llama", "lm")
  inputs, segments = ragged()
  full = np.asarray(tiny.hidden(network, params, {"inputs": inputs, "segments": segments}))
  params = decoder.unstack(params) if straight else params
  step = jax.jit(lambda p, x, cache, s: network.decode(p, x, cache, segments=s))
  cache = network.empty_cache(params, len(LENGTHS), max(LENGTHS))
  prompts = np.minimum(prompt, np.array([9, 2, 3]))[:, None]  # ragged for prompt 3
  live = segments[:, :prompt] * (np.arange(prompt) < prompts)
  hidden, cache = step(params, inputs[:, :prompt], cache, live)
  rows = np.arange(len(LENGTHS))
  for _ in range(prompt, max(LENGTHS) + 1):
    held = np.asarray(cache["lengths"])
    seen = live.sum(1) - 1
    going = seen >= 0
    np.testing.assert_allclose(
      np.asarray(hidden)[rows, seen][going], full[rows, held - 1][going], atol=1e-5
    )
    place = np.minimum(held, max(LENGTHS) - 1)[:, None]
    live = (held < LENGTHS).astype(np.int32)[:, None]
    hidden, cache = step(params, np.take_along_axis(inputs, place, 1), cache, live)
  np.testing.assert_array_equal(cache["lengths"], LENGTHS)
  np.testing.assert_array_equal(cache["segments"], segments)
  assert step._cache_size() <= 2  # the prompt's shape and one token's


def test_padding_is_not_stored():
  network, params = tiny.network("llama", "lm")
  inputs, segments = ragged()
  cache = network.empty_cache(params, 3, 12)
  _, cache = tiny.decode(network, params, inputs, cache, segments)
  heads = network.arch.heads.kv
  held = np.repeat(np.asarray(cache["segments"]) != 0, heads, axis=0)  # [B*K,S]
  for name in ("k", "v"):
    assert not np.asarray(cache[name])[:, ~held].any()
    assert np.abs(np.asarray(cache[name])[:, held]).min(-1).max() > 0


def test_unstacked_layers_are_the_same_network():
  network, params = tiny.network("llama", "lm")
  inputs, segments = ragged()
  batch = {"inputs": inputs, "segments": segments}
  plain = tiny.hidden(network, params, batch)
  straight = tiny.hidden(network, decoder.unstack(params), batch)
  np.testing.assert_allclose(plain, straight, atol=1e-5)


def test_unstacked_decoding_copies_no_weights():
  """One token's program slices nothing as large as a kernel out of a stack."""
  network, params = tiny.network("llama", "lm")
  params = decoder.unstack(params)
  cache = network.empty_cache(params, 1, 8)
  one = jnp.ones((1, 1), jnp.int32)
  run = jax.jit(lambda p, c: network.decode(p, one, c), donate_argnums=1)
  text = run.lower(params, cache).as_text()
  stacked = {(3, *leaf.shape) for leaf in jax.tree.leaves(params["layers"][0])}
  for shape in stacked:
    assert "x".join(map(str, shape)) + "xf32" not in text


def test_the_future_is_not_seen():
  network, params = tiny.network("llama", "lm")
  (row,) = tiny.rows(67, (20,))
  other = np.where(np.arange(20) > 11, (row + 5) % 67, row)
  before, after = (
    np.asarray(tiny.logits(network, params, {"inputs": x[None]})) for x in (row, other)
  )
  np.testing.assert_array_equal(before[:, :12], after[:, :12])
  assert (before[:, 12:] != after[:, 12:]).any(-1).all()


def longrope():
  """A network whose short factors are for texts of at most 12 tokens."""
  module, config = families.FAMILIES["phi3"], decoder_configs.SIZES
  config = {**config, **decoder_configs.CONFIGS["phi3"][1], "model_type": "phi3"}
  arch = module.architecture({**config, "resid_pdrop": 0.0})
  network = models.Network(arch, families.head_of(module, arch, "lm"))
  return network, network.init(jax.random.key(0))


def test_longrope_reads_a_long_prompt_in_pieces():
  network, params = longrope()
  (row,) = tiny.rows(61, (16,))
  full = np.asarray(tiny.hidden(network, params, {"inputs": row[None]}))
  cache = network.empty_cache(params, 1, 16, jnp.array([14]))
  step, found = jax.jit(network.decode), []
  for piece in (row[:7], row[7:14], row[14:15], row[15:]):
    hidden, cache = step(params, piece[None], cache)
    found.append(np.asarray(hidden)[0])
  np.testing.assert_allclose(np.concatenate(found), full[0], atol=1e-5)


def test_longrope_is_never_of_two_kinds_in_one_cache():
  """A short text stays right as long as it is short, and is not a number after that."""
  network, params = longrope()
  (row,) = tiny.rows(61, (14,))
  full = np.asarray(tiny.hidden(network, params, {"inputs": row[None, :12]}))
  cache = network.empty_cache(params, 1, 14)
  hidden, cache = tiny.decode(network, params, row[None, :11], cache)
  np.testing.assert_allclose(hidden, full[:, :11], atol=1e-5)
  hidden, cache = tiny.decode(network, params, row[None, 11:12], cache)
  np.testing.assert_allclose(hidden, full[:, 11:], atol=1e-5)
  hidden, _ = tiny.decode(network, params, row[None, 12:13], cache)
  assert np.isnan(hidden).all()


def test_longrope_generates_what_the_full_forward_does(monkeypatch):
  network, params = longrope()
  monkeypatch.setattr(batches, "READ", 16)
  prompts = [list(map(int, row)) for row in tiny.rows(61, (20, 4, 13))]
  found = continued.best_ids(network, params, prompts, stop_ids=(), max_new_tokens=6)
  run = jax.jit(network.logits)
  for prompt, new in zip(prompts, found, strict=True):
    for i, token in enumerate(new):
      text = np.zeros((1, 32), np.int32)
      text[0, : len(prompt) + i] = [*prompt, *new[:i]]
      logits = run(params, {"inputs": text, "segments": (text > 0).astype(np.int32)})
      assert int(np.argmax(logits[0, len(prompt) + i - 1])) == token
  with pytest.raises(JaxsftError, match="at most 3 new tokens"):
    continued.best_ids(network, params, [[1] * 10], stop_ids=(), max_new_tokens=6)


RATES = {"gpt2": ("embd_pdrop", "resid_pdrop", "attn_pdrop", "classifier_dropout")}
RATES["phi3"] = ("resid_pdrop", "attention_dropout", "classifier_dropout")


@pytest.mark.parametrize(("family", "rate"), [(f, r) for f, all in RATES.items() for r in all])
def test_every_dropout_rate_of_the_config_is_used(family, rate):
  name, config = decoder_configs.CONFIGS[family]
  config = {**decoder_configs.OWN.get(name, decoder_configs.SIZES), **config}
  config |= dict.fromkeys(RATES[family], 0.0)
  config |= {rate: 0.5, "model_type": family, "activation_function": "relu"}
  module = families.FAMILIES[family]
  arch = module.architecture(config)
  network = models.Network(arch, families.head_of(module, arch, "token", 2))
  params = network.init(jax.random.key(0))
  batch = {"inputs": np.arange(1, 8, dtype=np.int32)[None]}
  run = jax.jit(network.logits)
  one, two = (run(params, batch, jax.random.key(i)) for i in (1, 2))
  still = run(params, batch)
  assert (one != two).any() and (one != still).any()
  quiet = models.with_dropout(network, 0.0)
  np.testing.assert_array_equal(tiny.logits(quiet, params, batch), still)
