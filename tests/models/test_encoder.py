"""What encoders have beside BERT: places, isolation, dropout, settings of speed, devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import families, models, sharding
from tests.families import torch_encoders
from tests.families.test_encoders import QUICK, highest  # noqa: F401
from tests.models import tiny

CASES = ["albert", "modernbert", "deberta-v2-xlarge"]  # a kind of layers each


def network(case, kind="sequence", **settings):
  """(network, random params) of a tiny case."""
  config = json.loads(torch_encoders.config_of(case, kind).to_json_string())
  module = torch_encoders.module_of(case)
  arch = module.architecture(config)
  net = models.Network(arch, families.head_of(module, arch, kind, 3), **settings)
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  return net, jax.tree.map(draw, net.shapes())


def quickly(function, *args):
  return jax.jit(function).lower(*args).compile(QUICK)(*args)


@pytest.mark.parametrize("case", CASES)
def test_places_and_settings_of_speed_change_nothing(case):
  """Hidden states and gradients at a few places are those of all tokens, picked afterwards."""
  net, params = network(case)
  batch = tiny.packed(tiny.rows(61, (7, 3, 5)))
  places = jnp.array([[0, 9, 14, 10]])
  scale = jnp.arange(1.0, 5.0)[None, :, None]

  def read(params, net, places):
    x = net.hidden(params, batch, places=places)
    x = x if places is not None else x[:, jnp.array([0, 9, 14, 10])]
    return jnp.sum(jnp.sin(x) * scale), x

  run = lambda net, places: quickly(
    lambda params: jax.grad(read, has_aux=True)(params, net, places), params
  )
  expected, y = run(net, None)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  for settings in ({"unroll": 8}, {"remat": "full"}):
    grads, x = run(dataclasses.replace(net, **settings), places)
    np.testing.assert_allclose(x, y, atol=1e-5)
    jax.tree.map(near, grads, expected)


@pytest.mark.parametrize("case", CASES)
def test_segments_do_not_see_each_other(case):
  net, params = network(case)
  batch = tiny.packed(tiny.rows(61, (7, 3, 5)))
  run = jax.jit(net.hidden).lower(params, batch).compile(QUICK)
  before = np.asarray(run(params, batch))
  for place, mine in ((7, 2), (9, 2), (15, 0)):  # both edges of a segment; the padding's
    inputs = batch["inputs"].copy()
    inputs[0, place] = (inputs[0, place] + 7) % 61
    after = np.asarray(run(params, {**batch, "inputs": inputs}))
    others = (batch["segments"] != mine) & (batch["segments"] != 0)
    np.testing.assert_array_equal(before[others], after[others])
    assert np.isfinite(after).all() and (before != after).any()


DROPOUTS = {
  "bert": {"embed", "attention", "attention_out", "mlp_out"},
  "distilbert": {"embed", "attention", "mlp_out"},
  "albert": {"embed", "attention", "attention_out"},
  "modernbert": {"embed", "attention", "attention_out", "mlp"},
  "deberta-v2": {"embed", "attention", "attention_out", "mlp_out", "relative"},
}


@pytest.mark.parametrize("case", DROPOUTS)
def test_every_dropout_of_the_family_is_used(case):
  changes = {"embedding_dropout": 0.1, "attention_dropout": 0.1, "mlp_dropout": 0.1}
  changes = changes if case == "modernbert" else {}
  config = json.loads(torch_encoders.config_of(case, "none", **changes).to_json_string())
  arch = torch_encoders.module_of(case).architecture(config)
  rates = {n: getattr(arch, n) for n in arch.__dataclass_fields__ if n.endswith("dropout")}
  used = {name.removesuffix("_dropout") for name, rate in rates.items() if rate > 0}
  assert used == DROPOUTS[case]
  net, params = network(case)
  net = models.with_dropout(net, 0.0)
  batch, key = tiny.packed(tiny.rows(61, (7, 5))), jax.random.key(0)

  def run(arch):
    other = dataclasses.replace(net, arch=arch)
    return np.asarray(quickly(lambda p: other.hidden(p, batch, key), params))

  plain, seen = run(net.arch), []
  np.testing.assert_array_equal(plain, quickly(lambda p: net.hidden(p, batch), params))
  for name in sorted(used):
    seen.append(run(dataclasses.replace(net.arch, **{f"{name}_dropout": 0.5})))
  assert all((plain != x).any() for x in seen)


@pytest.mark.parametrize("case", ["modernbert", "deberta-v2-xlarge"])
def test_every_layer_and_site_drops_different_places(monkeypatch, case):
  net, params = network(case, "none")
  net = models.with_dropout(dataclasses.replace(net, unroll=8), 0.5)
  monkeypatch.setattr(
    models.loop,
    "run_layers",
    lambda layer, params, x, **rest: _straight(layer, params, x, rest),
  )
  batch = tiny.packed(tiny.rows(61, (5,)))
  keys = tiny.keys_of_dropout(monkeypatch, lambda: net.hidden(params, batch, jax.random.key(0)))
  sites = 5 if case.startswith("deberta") else 4
  more = 2 if case.startswith("deberta") else 1
  assert len(np.unique(keys, axis=0)) == len(keys) == sites * net.arch.layers + more


def _straight(layer, params, x, rest):
  for i, kind in enumerate(rest["kinds"]):
    x, _ = layer(jax.tree.map(lambda leaf, i=i: leaf[i], params), x, i, kind, None, None)
  return x, None


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_close_and_trains_float32(case):
  net, params = network(case)
  half = dataclasses.replace(net, dtype="bfloat16")
  batch = tiny.packed(tiny.rows(61, (7, 5)))

  def read(params, net):
    logits = net.logits(params, batch)
    return jnp.sum(logits), logits

  exact = quickly(lambda p: net.logits(p, batch), params)
  grads, near = quickly(lambda p: jax.grad(read, has_aux=True)(p, half), params)
  assert near.dtype == jnp.float32
  assert 1e-6 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()
  assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_give_the_result_of_one(case):
  net, params = network(case)
  rows = [tiny.packed(tiny.rows(61, (7, 6), seed)) for seed in range(8)]
  batch = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
  key = jax.random.key(1)

  def run(params, batch):
    loss = lambda p: -jnp.mean(jax.nn.log_softmax(net.logits(p, batch, key))[..., 0])
    return jax.value_and_grad(loss)(params)

  expected = quickly(run, params, batch)
  mesh = sharding.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    spread = jax.device_put(params, sharding.shardings_for(params, mesh))
    ours = quickly(run, spread, sharding.put_batch(batch, mesh))

  def near(a, b):  # of each leaf's own size
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=max(1e-6, 2e-4 * np.abs(b).max()))

  jax.tree.map(near, ours, expected)
