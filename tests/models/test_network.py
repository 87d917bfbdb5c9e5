"""What must hold for every architecture: packing, isolation, dropout, types, compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import models, sharding
from jaxsft.models import decoder, heads
from tests.models import tiny

FAMILIES = ["bert", "llama"]


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def separate(examples):
  """A batch with a row for every example, padded to the right."""
  rows = [tiny.packed([e], padding=12 - len(e)) for e in examples]
  return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def sequence_loss(network, params, batch):
  """Labels 0, 1, 2 in the order of the examples, packed or not."""
  logits = tiny.logits(network, params, batch).reshape(3, 3)
  return -jnp.sum(jax.nn.log_softmax(logits)[np.arange(3), np.arange(3)])


def token_loss(network, params, batch):
  """Every token is asked for the next one of its own example."""
  after = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
  segments = batch["segments"]
  weights = (segments != 0) & (after(segments) == segments)
  x, kernel, _, _ = network.to_vocabulary(params, network.hidden(params, batch))
  return heads.cross_entropy(
    x,
    kernel,
    after(batch["inputs"]),
    weights.astype(jnp.float32),
    chunk=8,
  )["loss"][0]


@pytest.mark.parametrize(
  ("family", "kind", "read"),
  [
    ("bert", "sequence", sequence_loss),
    ("llama", "sequence", sequence_loss),
    ("llama", "lm", token_loss),
  ],
)
def test_packed_is_separate(family, kind, read):
  """Losses and gradients of a packed row are those of its examples alone."""
  network, params = tiny.network(family, kind)
  examples = tiny.rows(61, (7, 3, 5))
  run = jax.jit(jax.value_and_grad(lambda p, batch: read(network, p, batch)))
  loss, grads = run(params, tiny.packed(examples))
  expected, other = run(params, separate(examples))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(near, grads, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_do_not_see_each_other(family):
  network, params = tiny.network(family, "sequence")
  examples = tiny.rows(61, (7, 3, 5))
  batch = tiny.packed(examples)
  run = jax.jit(network.hidden)
  before = np.asarray(run(params, batch))
  for place, mine in ((8, 2), (16, 0)):  # inside the second segment; in the padding
    inputs = batch["inputs"].copy()
    inputs[0, place] = (inputs[0, place] + 7) % 61
    after = np.asarray(run(params, {**batch, "inputs": inputs}))
    others = (batch["segments"] != mine) & (batch["segments"] != 0)
    np.testing.assert_array_equal(before[others], after[others])
    assert np.isfinite(after).all()
    assert (before != after).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_needs_a_key_and_follows_it(family):
  changes = {"attention_dropout": 0.2} if family == "llama" else {}
  network, params = tiny.network(family, "sequence", changes=changes)
  batch = tiny.packed(tiny.rows(61, (7, 5)))
  run = lambda key=None, net=network: np.asarray(tiny.logits(net, params, batch, key))
  np.testing.assert_array_equal(run(), run())
  one, two = run(jax.random.key(1)), run(jax.random.key(2))
  np.testing.assert_array_equal(one, run(jax.random.key(1)))
  assert (one != two).all() and (one != run()).all()
  off = models.with_dropout(network, 0.0)
  np.testing.assert_array_equal(run(), run(jax.random.key(1), off))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropout_rate_of_the_config_is_used(family):
  names = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    "llama": ("attention_dropout",),
  }[family]
  batch = tiny.packed(tiny.rows(61, (7, 5)))
  for name in names:
    changes = {**dict.fromkeys(names, 0.0), name: 0.5}
    network, params = tiny.network(family, "sequence", changes=changes)
    plain = tiny.logits(network, params, batch)
    assert (plain != tiny.logits(network, params, batch, jax.random.key(0))).any(), name


@pytest.mark.parametrize("settings", [{}, {"unroll": 3}, {"remat": "full"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_same_where_it_is_read(family, settings):
  """Hidden states and gradients at a few places are those of all tokens, picked afterwards."""
  network, params = tiny.network(family, "sequence", **settings)
  batch = tiny.packed(tiny.rows(61, (7, 3, 5)))
  places = jnp.array([[0, 9, 14, 10]])
  scale = jnp.arange(1.0, 5.0)[None, :, None]

  def few(params):
    x = network.hidden(params, batch, places=places)
    return jnp.sum(jnp.sin(x) * scale), x

  def all_of_them(params):
    x = network.hidden(params, batch)[:, places[0]]
    return jnp.sum(jnp.sin(x) * scale), x

  grads, x = jax.jit(jax.grad(few, has_aux=True))(params)
  expected, y = jax.jit(jax.grad(all_of_them, has_aux=True))(params)
  np.testing.assert_allclose(x, y, atol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
  jax.tree.map(near, grads, expected)
  if not settings:
    some = jax.jit(lambda p: network.hidden(p, batch, places=places))
    straight = some(decoder.unstack(params))
    np.testing.assert_allclose(straight, y, atol=1e-5)


def test_what_nobody_reads_is_not_computed(optimised):
  """The last layer's products over all tokens are gone: those of q, o, up and down."""
  network, params = tiny.network("bert", "sequence", changes={"num_hidden_layers": 1})
  batch = tiny.packed(tiny.rows(61, (40, 24)))
  flops = lambda f: jax.jit(f).lower(params).compile().cost_analysis()["flops"]
  some = flops(lambda p: network.logits(p, batch))
  every = flops(lambda p: network.hidden(p, batch))
  kernels = sum(
    leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["layers"])
    if leaf.ndim == 3 and not {"k", "v"} & {key.key for key in path}
  )
  assert every - some > 0.9 * 2 * kernels * (batch["inputs"].size - 2)


def test_a_loop_over_layers_copies_no_stack(optimised):
  """Leaving out the last layer would hand the loop a copy of all others."""
  network, params = tiny.network("bert", "sequence", changes={"hidden_size": 192})
  batch = tiny.packed(tiny.rows(61, (4,)))
  run = jax.jit(lambda p: network.logits(p, batch))
  stack = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
  assert run.lower(params).compile().memory_analysis().temp_size_in_bytes < 0.6 * stack


@pytest.mark.parametrize("places", [None, jnp.array([[0]])])
def test_every_layer_and_site_drops_different_places(monkeypatch, places):
  network, params = tiny.network("bert", "none")
  params = decoder.unstack(params)  # so that every layer is traced
  batch = tiny.packed(tiny.rows(61, (5,)))
  run = lambda: network.hidden(params, batch, jax.random.key(0), places)
  keys = tiny.keys_of_dropout(monkeypatch, run)
  assert len(np.unique(keys, axis=0)) == len(keys) == 3 * 3 + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_and_the_logits_stay_float32(family):
  network, params = tiny.network(family, "sequence")
  half, _ = tiny.network(family, "sequence", dtype="bfloat16")
  batch = tiny.packed(tiny.rows(61, (7, 5)))
  exact, near = (jax.jit(net.logits)(params, batch) for net in (network, half))
  hidden = jax.eval_shape(half.hidden, params, batch)
  assert hidden.dtype == jnp.bfloat16 and near.dtype == jnp.float32
  scale = np.abs(exact).max()
  assert 1e-6 < np.abs(exact - near).max() < 0.1 * scale
  grads = jax.eval_shape(jax.grad(lambda p: jnp.sum(half.logits(p, batch))), params)
  assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_init(family):
  for kind in ("none", "sequence", "token"):
    network, params = tiny.network(family, kind)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert describe(network.shapes()) == describe(params)
    jax.tree_util.tree_map_with_path(
      lambda path, x: sharding.spec_for(
        sharding.path_string(path), x.shape, sharding.make_mesh(2, 2, 2)
      ),
      params,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_one_compilation_a_shape(family):
  network, params = tiny.network(family, "sequence")
  run = jax.jit(network.logits)
  for seed in range(3):
    run(params, tiny.packed(tiny.rows(61, (7, 5), seed)))
  assert run._cache_size() == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_devices_give_the_result_of_one(family):
  network, params = tiny.network(family, "sequence")
  rows = [tiny.packed(tiny.rows(61, (7, 5), seed)) for seed in range(8)]
  batch = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
  key = jax.random.key(1)

  def run(params, batch):
    loss = lambda p: -jnp.mean(jax.nn.log_softmax(network.logits(p, batch, key))[..., 0])
    return jax.value_and_grad(loss)(params)

  expected = jax.jit(run)(params, batch)
  mesh = sharding.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    spread = jax.device_put(params, sharding.shardings_for(params, mesh))
    ours = jax.jit(run)(spread, sharding.put_batch(batch, mesh))

  def near(a, b):  # of each leaf's own size; that of the keys' bias is 0 but for rounding
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=max(1e-6, 1e-4 * np.abs(b).max()))

  jax.tree.map(near, ours, expected)
