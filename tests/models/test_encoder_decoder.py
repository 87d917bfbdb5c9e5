"""What every encoder-decoder must do whatever its weights are; no torch but for formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import families, models
from jaxsft.models import decoder, layers, relative
from tests.families import encoder_decoder_configs as configs
from tests.models import tiny

CASES = ("t5", "umt5", "bart", "marian-separate")  # every kind of positions and placements
SOURCES, TARGETS = (9, 4, 6), (7, 5, 2)


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


@functools.cache
def network_of(case, kind="lm", **settings):
  """(network, params) with every leaf random."""
  name = configs.family_of(case)
  module = families.FAMILIES[name]
  arch = module.architecture({**configs.CONFIGS[case][1], "model_type": name})
  head = families.head_of(module, arch, kind, 3)
  network = models.Network(arch, head, **settings)
  leaves, tree = jax.tree.flatten(network.shapes())
  rng = np.random.default_rng(1)
  return network, tree.unflatten([rng.normal(0, 0.3, x.shape).astype("f4") for x in leaves])


def padded(lengths, vocab, seed=0):
  """(tokens, segments) of random rows, padded to the right."""
  rng, T = np.random.default_rng(seed), max(lengths)
  segments = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)
  return rng.integers(3, vocab, (len(lengths), T)).astype(np.int32) * segments, segments


def batch_of(network):
  arch = network.arch
  source, source_segments = padded(SOURCES, arch.source_vocab or arch.vocab)
  inputs, segments = padded(TARGETS, arch.vocab, 1)
  batch = {"source": source, "source_segments": source_segments}
  return batch | {"inputs": inputs, "segments": segments}


def straight(params):
  return {**params, "decoder": decoder.unstack(params["decoder"])}


@pytest.mark.parametrize("unstacked", [False, True], ids=["stacked", "unstacked"])
@pytest.mark.parametrize("case", CASES)
def test_decoding_is_the_full_forward(case, unstacked):
  """Ragged beginnings at once, then token by token; the source's keys are made once."""
  network, params = network_of(case)
  batch = batch_of(network)
  full = np.asarray(jax.jit(network.hidden)(params, batch))
  params = straight(params) if unstacked else params
  prefill = jax.jit(lambda p, b: network.prefill(p, b, 8))
  cache = prefill(params, {k: v for k, v in batch.items() if "source" in k})
  lost = jax.tree_util.tree_map_with_path(
    lambda path, x: x * np.nan if "encoder" in str(path) or is_cross(path) else x, params
  )
  step = jax.jit(lambda p, x, cache, s: network.decode(p, x, cache, segments=s))
  inputs, lengths, rows = batch["inputs"], np.array(TARGETS), np.arange(len(TARGETS))
  live = batch["segments"][:, :3] * (np.arange(3) < np.array([[3], [2], [1]]))
  x, cache = step(lost, inputs[:, :3], cache, live)
  for _ in range(max(TARGETS)):
    held, seen = np.asarray(cache["lengths"]), live.sum(1) - 1
    going = seen >= 0
    found = np.asarray(x)[rows, seen][going]
    np.testing.assert_allclose(found, full[rows, held - 1][going], atol=2e-5)
    live = (held < lengths).astype(np.int32)[:, None]
    place = np.minimum(held, max(TARGETS) - 1)[:, None]
    x, cache = step(lost, np.take_along_axis(inputs, place, 1), cache, live)
  np.testing.assert_array_equal(cache["lengths"], lengths)
  assert step._cache_size() == 2


def is_cross(path):
  """Whether a leaf makes keys or values of the source."""
  keys = [str(getattr(key, "key", key)) for key in path]
  return "cross" in keys and keys[-2] in ("k", "v")


@pytest.mark.parametrize("case", ["t5", "umt5", "bart"])
@pytest.mark.parametrize("key", [None, 3])
def test_hidden_states_at_places_are_those_of_the_whole(case, key):
  """With dropout too, and whether the layers are a loop or not."""
  network, params = network_of(case, unroll=3)
  batch = batch_of(network)
  places = np.array([[0, 6], [4, 1], [1, 0]], np.int32)
  key = None if key is None else jax.random.key(key)
  whole = np.asarray(tiny.hidden(network, params, batch, key))
  few = np.asarray(tiny.hidden(network, params, batch, key, places))
  np.testing.assert_allclose(few, whole[np.arange(3)[:, None], places], atol=2e-5)
  looped = dataclasses.replace(network, unroll=1, remat="full")
  found = tiny.hidden(looped, params, batch, key, places)
  np.testing.assert_allclose(found, few, atol=2e-5)


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "mlp_dropout"])
def test_every_rate_drops_something(field):
  network, params = network_of("bart")
  batch, rates = batch_of(network), ("dropout", "attention_dropout", "mlp_dropout")
  arch = dataclasses.replace(network.arch, **dict.fromkeys(rates, 0.0))
  hidden = lambda arch: np.asarray(
    tiny.hidden(dataclasses.replace(network, arch=arch), params, batch, jax.random.key(0))
  )
  still = tiny.hidden(dataclasses.replace(network, arch=arch), params, batch)
  np.testing.assert_array_equal(hidden(arch), still)
  assert np.abs(hidden(dataclasses.replace(arch, **{field: 0.3})) - still).max() > 1e-3


def test_t5_drops_after_the_last_norm():
  network, params = network_of("t5")
  rates = ("dropout", "attention_dropout", "mlp_dropout", "head_dropout")
  arch = dataclasses.replace(network.arch, **dict.fromkeys(rates, 0.0), final_dropout=0.5)
  network = dataclasses.replace(network, arch=arch)
  found = np.asarray(tiny.hidden(network, params, batch_of(network), jax.random.key(0)))
  assert 0.4 < (found == 0).mean() < 0.6


@pytest.mark.parametrize("case", ["t5", "bart"])
@pytest.mark.parametrize("start", [2, None])
def test_a_sentence_is_read_by_both_stacks(case, start):
  """Two sentences in one row are those alone; the decoder reads them shifted by one."""
  network, params = network_of(case, "sequence")
  arch = dataclasses.replace(network.arch, decoder_start=start)
  network = dataclasses.replace(network, arch=arch)
  long, short = np.array([[5, 9, 30, 4, 7, 1]]), np.array([[8, 12, 1]])
  row = np.concatenate([long, short, [[0, 0]]], 1).astype(np.int32)
  segments = np.array([[1] * 6 + [2] * 3 + [0] * 2], np.int32)
  labels = np.zeros((1, 2), np.int32)
  batch = {"inputs": row, "segments": segments, "labels": labels}
  packed = tiny.logits(network, params, batch)
  for place, alone in enumerate((long, short)):
    first = alone[:, -1:] if start is None else [[start]]
    batch = {"inputs": alone, "labels": labels[:, :1]}
    explicit = batch | {"source": alone, "inputs": np.concatenate([first, alone[:, :-1]], 1)}
    for one in (batch, explicit):
      found = tiny.logits(network, params, one)
      np.testing.assert_allclose(found[:, 0], packed[:, place], atol=2e-5)


def test_a_target_sees_its_own_source_alone_and_no_future():
  network, params = network_of("bart")
  inputs = np.arange(3, 13, dtype=np.int32)[None]
  segments = np.array([[1] * 6 + [2] * 4], np.int32)
  batch = {"inputs": inputs, "segments": segments}
  batch |= {"source": inputs + 20, "source_segments": segments}  # as long as the target
  run = functools.partial(tiny.hidden, network)
  before = np.asarray(run(params, batch))
  other = np.asarray(run(params, batch | {"source": inputs + 20 + (segments == 2)}))
  np.testing.assert_array_equal(before[:, :6], other[:, :6])
  assert (before[:, 6:] != other[:, 6:]).any(-1).all()
  later = np.asarray(run(params, batch | {"inputs": inputs + (np.arange(10) == 3)}))
  np.testing.assert_array_equal(
    before[:, [0, 1, 2, 6, 7, 8, 9]], later[:, [0, 1, 2, 6, 7, 8, 9]]
  )
  assert (before[:, 3:6] != later[:, 3:6]).any(-1).all()


def test_a_frozen_token_learns_nothing_as_an_input():
  network, params = network_of("marian-separate")
  start, batch = network.arch.decoder_start, batch_of(network)
  batch["inputs"][:, 0] = start
  loss = lambda params: jnp.sum(network.hidden(params, batch) ** 2)
  tables = jax.jit(jax.grad(loss))(params)
  assert not np.asarray(tables["embed"]["tokens"]["embedding"][start]).any()
  network = dataclasses.replace(
    network, arch=dataclasses.replace(network.arch, frozen_token=None)
  )
  tables = jax.jit(jax.grad(lambda p: jnp.sum(network.hidden(p, batch) ** 2)))(params)
  assert np.asarray(tables["embed"]["tokens"]["embedding"][start]).any()


def test_the_constant_of_the_logits_does_not_train():
  network, params = network_of("bart")
  x = jnp.ones((1, network.arch.width))
  loss = lambda params: jnp.sum(network.vocabulary_logits(params, x) ** 2)
  grads = jax.grad(loss)(params)
  assert not np.asarray(grads["lm_head"]["bias"]).any()
  silent = {**params, "lm_head": {"bias": params["lm_head"]["bias"] * 0}}
  added = network.vocabulary_logits(params, x) - network.vocabulary_logits(silent, x)
  np.testing.assert_allclose(added[0], params["lm_head"]["bias"], atol=1e-5)


# --- positions -------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (5, 9), (9, 5), (40, 30)])
def test_a_turned_row_is_every_row_of_distances(causal, T, S):
  module = relative.Bias(relative.Relative(8, 20, False), 3, causal, 1.0)
  params = module.init(jax.random.key(0), (2, 2))
  distances = jnp.arange(S)[None, None] - jnp.arange(T)[None, :, None]
  np.testing.assert_array_equal(module.apply(params, (T, S)), module.apply(params, distances))


def test_buckets_are_those_of_torch(oracle):
  from transformers.models.t5.modeling_t5 import T5Attention

  distances = np.arange(-700, 700)
  for buckets in (4, 6, 8, 20, 32, 64, 128):
    for far in (65, 100, 128, 256, 512):
      for causal in (True, False):
        table = relative.bucket_table(relative.Relative(buckets, far, False), causal)
        theirs = T5Attention._relative_position_bucket(
          oracle.tensor(distances), not causal, buckets, far
        )
        np.testing.assert_array_equal(table[np.clip(distances, -far, far) + far], theirs)


@pytest.mark.parametrize("width", [24, 25])
def test_sinusoids_are_those_of_torch(oracle, width):
  from transformers.models.marian import modeling_marian

  theirs = modeling_marian.MarianSinusoidalPositionalEmbedding(700, width).create_weight()
  np.testing.assert_array_equal(layers.sinusoids(700, width), theirs)
