"""Schedules against closed forms, decay by kind of leaf, the penalty against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsft import optim, sharding
from jaxsft.errors import UsageError

PARAMS = {
  "embed": {"tokens": {"embedding": jnp.full((3, 2), 2.0)}, "norm": {"scale": jnp.ones(2)}},
  "layers": {"attn": {"q": {"kernel": jnp.full((2, 2, 2), 3.0), "bias": jnp.ones((2, 2))}}},
  "head": {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.ones(2)},
}


def rates(name, total=20, warmup=5, **more):
  settings = {"peak_lr": 1.0, "end_lr": 0.1, "warmup": warmup, "decay": 0.25, "total": total}
  schedule = optim.make_schedule(name, **(settings | more))
  return np.array([schedule(i) for i in range(total + 1)])


def test_warmup_rises_to_the_peak_and_never_starts_at_zero():
  np.testing.assert_allclose(rates("linear")[:6], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-6)
  np.testing.assert_allclose(rates("linear", warmup=0.25), rates("linear"), rtol=1e-6)
  assert rates("linear", warmup=0)[0] == 1.0


def test_shapes_after_warmup():
  x = np.clip((np.arange(21) - 5) / 15, 0, 1)
  after = slice(5, None)
  np.testing.assert_allclose(rates("constant")[after], 1.0)
  np.testing.assert_allclose(rates("linear")[after], (0.1 + 0.9 * (1 - x))[after], rtol=1e-6)
  cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * x))
  np.testing.assert_allclose(rates("cosine")[after], cosine[after], rtol=1e-5)
  wsd = 0.1 + 0.9 * np.minimum(1, (20 - np.arange(21)) / 5)
  np.testing.assert_allclose(rates("wsd")[after], wsd[after], rtol=1e-5)
  for name in ("linear", "cosine", "wsd"):
    np.testing.assert_allclose(rates(name)[-1], 0.1, rtol=1e-6)


def test_linear_equals_optax():
  ours = rates("linear", end_lr=0.0, warmup=0)
  theirs = optax.linear_schedule(1.0, 0.0, 20)
  np.testing.assert_allclose(ours, [theirs(i) for i in range(21)], rtol=1e-5, atol=1e-7)


def test_only_matrices_and_embeddings_decay():
  mask = optim.decays(PARAMS)
  assert mask["embed"] == {"tokens": {"embedding": True}, "norm": {"scale": False}}
  assert mask["layers"]["attn"]["q"] == {"kernel": True, "bias": False}
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.5, params=PARAMS
  )
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  direction, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
  expected = jax.tree.map(lambda p, m: 0.5 * p if m else 0 * p, PARAMS, mask)
  jax.tree.map(np.testing.assert_array_equal, direction, expected)


@pytest.mark.parametrize("name", ["l2", "l2_squared"])
def test_penalty_gradient_is_the_derivative_of_its_value(name):
  mask = optim.decays(PARAMS)
  value, factor = optim.penalty(name, 0.3, PARAMS)
  square = 6 * 4.0 + 8 * 9.0 + 4 * 16.0  # embedding, q kernel, head kernel
  np.testing.assert_allclose(value, 0.3 * (square**0.5 if name == "l2" else square), rtol=1e-6)
  derived = jax.grad(lambda p: optim.penalty(name, 0.3, p)[0])(PARAMS)
  gradient = jax.tree.map(lambda p, m: factor * m * p, PARAMS, mask)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradient, derived)


def test_penalty_at_zero_is_finite():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  value, factor = optim.penalty("l2", 1.0, zero)
  assert np.isfinite(value) and np.isfinite(factor)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd", "muon"])
def test_every_rule_moves_every_leaf_and_keeps_float32(name):
  tx = optim.make_transformation(
    name, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, params=PARAMS
  )
  state = tx.init(PARAMS)
  gradient = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), PARAMS)
  sharding.shardings_for(state, sharding.make_mesh())  # each has a place
  direction, state = tx.update(gradient, state, PARAMS)
  assert all(np.abs(d).min() > 0 for d in jax.tree.leaves(direction))
  floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert all(x.dtype == jnp.float32 for x in floats)


STACK = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)


def one_update(name, params, gradient, **more):
  settings = {"b1": 0.95, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "params": params}
  tx = optim.make_transformation(name, **(settings | more))
  return jax.jit(tx.update)(gradient, tx.init(params), params)[0]


def test_muon_of_a_stack_is_torchs_of_every_layer(oracle):
  """And AdamW's of what is no matrix of a layer. torch's polynomial is in bfloat16."""
  tree = lambda x: {"layers": {"q": {"kernel": x, "bias": x[..., 0]}}, "head": {"kernel": x[0]}}
  gradient = np.roll(STACK, 1, 0)
  found = one_update("muon", tree(STACK), tree(gradient))
  for layer in range(3):
    weight = oracle.nn.Parameter(oracle.tensor(STACK[layer]))
    weight.grad = oracle.tensor(gradient[layer])
    settings = {"weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    oracle.optim.Muon([weight], lr=0.01, **settings).step()
    moved = (STACK[layer] - weight.detach().numpy()) / 0.01
    np.testing.assert_allclose(found["layers"]["q"]["kernel"][layer], moved, atol=0.03)
  rest = one_update("adamw", tree(STACK), tree(gradient))
  for path in (("layers", "q", "bias"), ("head", "kernel")):
    get = lambda t, path=path: (
      t[path[0]][path[1]] if len(path) == 2 else t["layers"]["q"]["bias"]
    )
    np.testing.assert_allclose(get(found), get(rest), rtol=1e-6)


def test_muon_needs_a_matrix_of_a_layer():
  with pytest.raises(UsageError, match="name='muon': found no matrix of a layer"):
    one_update("muon", {"head": {"kernel": STACK[0]}}, {"head": {"kernel": STACK[0]}})


def moves(starts, params, path, bad=0, total=30):
  """How far a constant gradient moves a leaf's first number in each update; [total]."""
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, params=params, starts=starts
  )
  rule = optim.Rule(tx, lambda _: 1.0, starts=starts)
  ones, state, found = jax.tree.map(jnp.ones_like, params), tx.init(params), []
  for step in range(bad, total):  # the first `bad` ones were skipped
    training = optim.training(rule, step)
    direction, new = tx.update(ones, state, params)
    state = optim.kept(training, new, state, params)
    masks = optim.by_rows(params, training)
    direction = optim.where(masks, direction, 0)
    leaf = dict(
      (sharding.path_string(p), x) for p, x in jax.tree_util.tree_leaves_with_path(direction)
    )
    found.append(float(leaf[path].ravel()[-1]))
  return found


@pytest.mark.parametrize("start", [12, np.array([0, 12], np.int32)])
def test_skipped_updates_do_not_change_the_age_of_what_starts_late(start):
  path = "layers/attn/q/bias"
  found = moves({path: start}, PARAMS, path, bad=8)
  np.testing.assert_allclose(found, [0.0] * 4 + [1.0] * 18, rtol=1e-4)


def test_moments_of_a_leaf_whose_path_ends_in_that_of_a_late_one_are_not_held():
  params = {"norm": {"scale": jnp.ones(2)}, "embed": {"norm": {"scale": jnp.ones(2)}}}
  found = moves({"norm/scale": 12}, params, "embed/norm/scale", total=14)
  np.testing.assert_allclose(found, 1.0, rtol=1e-4)
