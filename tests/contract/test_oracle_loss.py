"""The loss is of the next token: who knows it pays nothing, and nobody beats chance."""

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import optim, pretrained, step
from jaxsft.data import feed
from jaxsft.tasks import chat, classify
from tests import tiny
from tests.contract import build

OPTIONS = SimpleNamespace(label_smoothing=0.0, z_loss=0.0, chunk=64)


@pytest.fixture(scope="module")
def packed(files):
  """(job, one packed batch of chats)."""
  config = tiny.config("llama", "chat", *files("llama", "chat"), data__split=0.0)
  job = build.job(config, tiny.devices(1))
  _, length, most = job.data.plan.shape(0)
  rows = job.data.plan.batch(0)
  assert max(map(len, rows)) > 1
  store = job.data.train.store
  return job, feed.batch(store, rows, row_length=length, segments=most)


def whole_tokens(job, batch):
  """{(row, place): all ids of the example}, tokenised by transformers from the messages."""
  by_id = {row.id: row for row in job.data.train.rows}
  found = {}
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    row = by_id[job.data.train.store.ids[batch["example_ids"][r, m]]]
    text = job.base.tokenizer.apply_chat_template(row.fields["messages"], tokenize=False)
    ids = job.base.tokenizer(text, add_special_tokens=False)["input_ids"]
    found[int(r), int(m)] = ids
  return found


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_only_the_next_token_is_right(packed, shift):
  job, batch = packed
  V = job.network.arch.vocab
  oracle = np.zeros((*batch["inputs"].shape, V), np.float32)
  for (r, m), ids in whole_tokens(job, batch).items():
    places = np.flatnonzero(batch["segments"][r] == m + 1)
    for t, place in enumerate(places):
      oracle[r, place, ids[min(t + shift, len(ids) - 1)]] = 50.0
  network = SimpleNamespace(
    hidden_and_auxiliary=lambda params, batch, key: (jnp.asarray(oracle), None),
    to_vocabulary=lambda params, x, key: (x, jnp.eye(V), None, None),
  )
  sums = chat.loss(network, None, {k: jnp.asarray(v) for k, v in batch.items()}, OPTIONS)
  total, weight = sums["loss"]
  hits, tokens = sums["token_accuracy"]
  assert weight == tokens == batch["weights"].sum() > 20
  if shift == 1:
    assert total / weight < 1e-6 and hits == tokens
  else:
    assert total / weight > 20 and hits < 0.4 * tokens


@pytest.mark.parametrize("number", [False, True], ids=["names", "numbers"])
def test_labels_are_paid_where_they_stand(number):
  labels = np.array([[1, 0, 2], [2, 2, 0]])
  weights = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
  batch = {"labels": jnp.asarray(labels), "label_weights": jnp.asarray(weights)}
  said = np.where(weights > 0, labels, (labels + 1) % 3)  # wrong where nobody asks
  logits = 50.0 * jax.nn.one_hot(said, 3)
  if number:
    batch["labels"], logits = batch["labels"].astype(jnp.float32), said[..., None] * 1.0
  for shift in (0, 1):
    seen = jnp.roll(logits, shift, axis=1)
    network = SimpleNamespace(logits=lambda params, batch, key, seen=seen: seen)
    total, weight = classify.loss(network, None, batch, OPTIONS, None)["loss"]
    assert weight == 4
    assert total / weight < 1e-6 if shift == 0 else total / weight > 0.5


def test_noise_is_never_learnt(files):
  """Training on fresh random tokens stays at log V; whoever gets below it looks ahead."""
  base = pretrained.open_pretrained(files("llama", "chat")[0])
  network = base.network("chat")
  params, _ = pretrained.load_params(base, network)
  V, rng, losses = network.arch.vocab, np.random.default_rng(0), []
  tx = optim.make_transformation(
    "adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, params=params
  )
  loss = lambda params, batch, key: chat.loss(network, params, batch, OPTIONS, key)
  rule = optim.Rule(tx, lambda _: 3e-3)
  options = {"rule": rule, "penalty": ("none", 0.0), "clip": 1.0}
  update = jax.jit(partial(step.train_step, loss=loss, seed=0, **options))
  state = step.init_state(params, {}, rule)
  for _ in range(150):
    ids = rng.integers(0, V, (1, 8, 33)).astype(np.int32)
    ones = np.ones((1, 8, 32), np.int32)
    batch = {
      "inputs": ids[..., :-1],
      "targets": ids[..., 1:],
      "weights": ones.astype(np.float32),
      "segments": ones,
      "positions": np.broadcast_to(np.arange(32, dtype=np.int32), ones.shape),
    }
    state, metrics = update(state, batch)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-30:]) > math.log(V) - 0.01
  assert np.mean(losses[-30:]) < math.log(V) + 0.2  # and it did learn that
