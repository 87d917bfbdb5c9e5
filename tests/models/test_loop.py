"""Layers one after another: as a loop, as straight code and in parts the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import stack, step
from jaxsft.models import layers, loop
from jaxsft.tuning import select
from tests.models import tiny

KINDS = [
  ("a",) * 5,
  ("a", "b") * 2,
  ("a", "a", "b") * 2 + ("a",),  # a tail that is not a whole period
  ("a", "b", "b", "b", "a"),  # no period shorter than the whole
]


@pytest.mark.parametrize("kinds", KINDS, ids="".join)
@pytest.mark.parametrize("unroll", [1, 2, 99])
def test_every_layer_gets_its_own_kind_weights_and_extra(kinds, unroll):
  size = len(kinds)
  params = {"w": jnp.arange(1.0, size + 1)}
  extras = {"e": jnp.arange(size) * 0.1}

  def layer(one, x, index, kind, extra, places):
    x = jnp.sin(x * one["w"] + (index if kind == "a" else -index) + extra["e"])
    return x, x

  def run(params, x):
    return loop.run_layers(layer, params, x, extras, kinds=kinds, unroll=unroll)

  x, outs, expected = jnp.float32(0.3), [], []
  for i, kind in enumerate(kinds):
    x = jnp.sin(x * (i + 1) + (i if kind == "a" else -i) + 0.1 * i)
    expected.append(x)
  last, outs = jax.jit(run)(params, jnp.float32(0.3))
  np.testing.assert_allclose(last, x, rtol=1e-5)
  np.testing.assert_allclose(outs, np.stack(expected), rtol=1e-5)


@pytest.mark.parametrize("unroll", [1, 3, 99])
def test_a_shared_layer_is_applied_again_and_its_gradients_add_up(unroll):
  def layer(one, x, index, kind, extra, places):
    return layers.at(jnp.tanh(x * one["w"] + index), places), None

  def run(w, places=None):
    x = jnp.full((1, 2), 0.3)
    return loop.run_layers(
      layer, {"w": w}, x, repeats=4, places=places, unroll=unroll, remat="full"
    )[0]

  def plain(w):
    x = jnp.full((1, 2), 0.3)
    for index in range(4):
      x = jnp.tanh(x * w + index)
    return x

  np.testing.assert_allclose(run(0.4), plain(0.4), rtol=1e-6)
  np.testing.assert_allclose(run(0.4, jnp.array([[1]])), plain(0.4)[:, 1:], rtol=1e-6)
  slope = lambda f: jax.grad(lambda w: jnp.sum(f(w)))(0.4)
  np.testing.assert_allclose(slope(run), slope(plain), rtol=1e-5)


@pytest.mark.parametrize(("kinds", "unroll"), [(KINDS[0], 1), (KINDS[2], 1), (KINDS[2], 99)])
def test_parts_are_walked_in_order(kinds, unroll):
  """Values, outs and gradients of a stack in two parts are those of the whole."""
  size, w = len(kinds), jnp.arange(1.0, len(kinds) + 1)
  x = jnp.full((1, 2), 0.3)

  def layer(one, x, index, kind, extra, places):
    x = layers.at(x, places)
    x = jnp.sin(x * one["w"] + (index if kind == "a" else -index) + one["b"])
    return x, None if extra is None else x + extra["e"]

  def run(w, b, places=None):
    extras = None if places is not None else {"e": jnp.arange(size)}
    options = {"kinds": kinds, "unroll": unroll, "places": places, "remat": "full"}
    return loop.run_layers(layer, {"w": w, "b": b}, x, extras, **options)

  total = lambda last, places=None: jnp.sum(run(stack.Parts(w[:2], last), w, places)[0])
  whole, parts = run(w, w), run(stack.Parts(w[:2], w[2:]), w)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, whole)
  at = jnp.array([[1]])
  np.testing.assert_allclose(total(w[2:], at), run(w, w, at)[0].sum(), rtol=1e-6)
  slope = jax.grad(lambda w: jnp.sum(run(w, jnp.arange(1.0, size + 1))[0]))(w)
  np.testing.assert_allclose(jax.grad(total)(w[2:]), slope[2:], rtol=1e-5)


@pytest.mark.full
def test_a_network_whose_last_layers_train():
  """Dropout included, values are those of the whole, and so are the gradients."""
  net, params = tiny.network("bert", "sequence", changes={"hidden_dropout_prob": 0.3})
  batch = tiny.packed(tiny.rows(61, (5, 3)))
  chosen = select.choose(params, "last:2", stacks=net.stacks)
  trainable, frozen = select.split(params, chosen)

  @jax.jit
  def run(trainable, frozen):
    loss = lambda trainable: jnp.sum(
      jnp.sin(net.logits(step.merge(trainable, frozen), batch, jax.random.key(3)))
    )
    return jax.value_and_grad(loss)(trainable)

  (value, slope), (whole, full) = run(trainable, frozen), run(params, {})
  np.testing.assert_allclose(value, whole, rtol=1e-6)
  expected = select.split(full, chosen)[0]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slope, expected
  )
