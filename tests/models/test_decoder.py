import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.models import decoder
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
  full = np.asarray(network.hidden(params, {"inputs": inputs, "segments": segments}))
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
  _, cache = network.decode(params, inputs, cache, segments=segments)
  heads = network.arch.heads.kv
  held = np.repeat(np.asarray(cache["segments"]) != 0, heads, axis=0)  # [B*K,S]
  for name in ("k", "v"):
    assert not np.asarray(cache[name])[:, ~held].any()
    assert np.abs(np.asarray(cache[name])[:, held]).min(-1).max() > 0


def test_unstacked_layers_are_the_same_network():
  network, params = tiny.network("llama", "lm")
  inputs, segments = ragged()
  batch = {"inputs": inputs, "segments": segments}
  plain = network.hidden(params, batch)
  straight = network.hidden(decoder.unstack(params), batch)
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
    np.asarray(network.logits(params, {"inputs": x[None]})) for x in (row, other)
  )
  np.testing.assert_array_equal(before[:, :12], after[:, :12])
  assert (before[:, 12:] != after[:, 12:]).any(-1).all()
