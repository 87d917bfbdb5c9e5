import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.errors import JaxsftError
from jaxsft.models import layers
from tests.models import tiny


def test_positions_count_from_zero_in_every_segment():
  segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3]])
  expected = [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 0]]
  np.testing.assert_array_equal(layers.positions_of(segments), expected)


def test_a_leaf_that_nobody_uses_is_refused():
  leaves = {"kernel": jnp.ones((2, 3)), "lora_a": jnp.ones((1, 3))}
  with pytest.raises(JaxsftError, match="lora_a"):
    layers.linear(leaves, jnp.ones((4, 3)), "float32")


def test_an_id_outside_the_table_is_loud():
  table = layers.Embed(5, 4, "float32", 1.0)
  params = table.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  assert np.isnan(table.apply(params, jnp.array([[5]]))).all()
  assert np.isfinite(table.apply(params, jnp.array([[4]]))).all()


def test_dropout_share_mean_and_no_key():
  x = jnp.ones((50, 40, 30))
  assert layers.dropout(x, 0.3, None, 0) is x
  y = layers.dropout(x, 0.3, jax.random.key(1), 0)
  np.testing.assert_allclose((np.asarray(y) == 0).mean(), 0.3, atol=0.01)
  np.testing.assert_allclose(y.mean(), 1, atol=0.02)
  kept = np.asarray(y).astype(bool)
  for axis in range(3):  # no row, column or example is like its neighbour
    same = (kept == np.roll(kept, 1, axis)).mean()
    np.testing.assert_allclose(same, 0.7**2 + 0.3**2, atol=0.01)


def test_dropout_differs_by_key_and_site_and_repeats_otherwise():
  x, key = jnp.ones((20, 30)), jax.random.key
  drop = lambda k, site: np.asarray(layers.dropout(x, 0.5, k, site))
  np.testing.assert_array_equal(drop(key(1), 0), drop(key(1), 0))
  for other in (drop(key(2), 0), drop(key(1), 1)):
    assert 0.4 < (drop(key(1), 0) == other).mean() < 0.6


def test_dropout_does_not_depend_on_the_devices():
  from jaxsft import sharding

  x = jax.random.normal(jax.random.key(0), (8, 6, 10))
  alone = jax.jit(layers.dropout, static_argnums=(1, 3))(x, 0.5, jax.random.key(1), 0)
  for shape in ((8, 1, 1), (2, 2, 2)):
    mesh = sharding.make_mesh(*shape)
    with jax.set_mesh(mesh):
      placed = sharding.put_batch({"x": x}, mesh)["x"]
      spread = jax.jit(layers.dropout, static_argnums=(1, 3))
      np.testing.assert_array_equal(alone, spread(placed, 0.5, jax.random.key(1), 0))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_speed_settings_change_nothing(family):
  """Loss and gradients, with dropout, for every way to run the same three layers."""
  plain, params = tiny.network(family, "sequence")
  batch = tiny.packed(tiny.rows(61, (7, 5)))

  def run(network):
    loss = lambda p: jnp.sum(network.logits(p, batch, jax.random.key(3)) ** 2)
    return jax.jit(jax.value_and_grad(loss))(params)

  expected = run(plain)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for change in ({"unroll": 2}, {"remat": "dots"}, {"remat": "full", "unroll": 3}):
    other = dataclasses.replace(plain, **change)
    assert jax.tree.structure(other.shapes()) == jax.tree.structure(params)
    jax.tree.map(near, run(other), expected)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(kind):
  x = np.random.default_rng(0).normal(2, 3, (4, 5)).astype(np.float32)
  norm = layers.Norm(kind, 1e-2, kind == "layer", 1.0)
  module = layers.Normalise(norm, "float32")
  params = module.init(jax.random.key(0), x)["params"]
  neutral = module.apply({"params": params}, x)
  params = jax.tree.map(lambda leaf: leaf + 0.5, params)
  centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
  expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-2)
  np.testing.assert_allclose(neutral, expected, rtol=1e-5)
  shifted = 1.5 * expected + (0.5 if kind == "layer" else 0)
  np.testing.assert_allclose(module.apply({"params": params}, x), shifted, rtol=1e-5)


def test_remat_stores_less():
  batch = tiny.packed(tiny.rows(61, (40, 8)))

  def stored(remat):
    network, params = tiny.network("bert", "sequence", remat=remat)
    loss = lambda p: jnp.sum(network.logits(p, batch))
    _, pull = jax.eval_shape(lambda p: jax.vjp(loss, p), params)
    return sum(leaf.size for leaf in jax.tree.leaves(pull))

  assert stored("full") < stored("dots") < stored("none")
