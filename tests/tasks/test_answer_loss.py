"""The loss of windows: over each one's own tokens, however rows are packed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.data import feed, store
from jaxsft.errors import JaxsftError
from jaxsft.tasks import answer
from tests.tasks.questions import LONG, PASSAGE, context, row

OPTIONS = types.SimpleNamespace(label_smoothing=0.0, z_loss=0.0, chunk=4)


def batch_of(place, *given, **settings):
  """One row of a batch with the windows of all of them, and a second row that is empty."""
  examples = [e for one in given for e in answer.encode(one, place).examples]
  named = [(str(i), e | {"row": np.int32(i)}) for i, e in enumerate(examples)]
  made = store.in_memory(named)
  length, most = int(made.lengths.sum()) + 3, len(examples) + 1
  order = list(range(len(examples)))[::-1]
  return examples, feed.batch(made, [order, []], row_length=length, segments=most, **settings)


def network_of(logits):
  return types.SimpleNamespace(logits=lambda params, batch, key: params["logits"])


def by_hand(logits, batch, smoothing=0.0, z_loss=0.0):
  """Mean over the segments, each by itself in float64."""
  total, right, count = 0.0, 0, 0
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    mine = logits[r][batch["segments"][r] == m + 1].astype(np.float64)
    both = True
    for side, name in enumerate(("starts", "ends")):
      scores, gold = mine[:, side], batch[name][r, m]
      log_z = np.log(np.sum(np.exp(scores)))
      share = np.full(len(scores), smoothing / len(scores))
      share[gold] += 1 - smoothing
      total += (np.sum(share * (log_z - scores)) + z_loss * log_z**2) / 2
      both = both and scores.argmax() == gold
    right += both
    count += 1
  return total, right, count


def sums(logits, batch, key=None, **options):
  options = types.SimpleNamespace(**vars(OPTIONS) | options)
  run = lambda x: answer.loss(network_of(x), {"logits": x}, batch, options, key)
  (loss, weight), gradient = run(jnp.asarray(logits))["loss"], None
  gradient = jax.grad(lambda x: run(x)["loss"][0])(jnp.asarray(logits))
  return float(loss), float(weight), run(jnp.asarray(logits))["accuracy"], gradient


@pytest.fixture
def packed():
  place = context(max_length=16, stride=4, null_threshold=0.0)
  examples, batch = batch_of(place, row(LONG, "w7 w8"), row(PASSAGE, "William"), row("a b"))
  logits = np.random.default_rng(0).normal(size=(*batch["inputs"].shape, 2)) * 3
  return len(examples), batch, logits.astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"z_loss": 0.01}], ids=str)
def test_the_loss_is_that_of_each_window_alone(packed, options):
  count, batch, logits = packed
  assert (batch["starts"] > 0).sum() >= 3 and count == batch["label_weights"].sum()
  loss, weight, _, gradient = sums(logits, batch, jax.random.key(0), **options)
  values = {name.removeprefix("label_"): value for name, value in options.items()}
  expected, _, number = by_hand(logits, batch, **values)
  assert weight == number == count
  assert loss == pytest.approx(expected, rel=1e-6)
  assert np.isfinite(gradient).all()
  assert not gradient[batch["segments"] == 0].any()  # nothing of what lies beside a segment
  plain = by_hand(logits, batch)[0]
  assert sums(logits, batch, None, **options)[0] == pytest.approx(plain, rel=1e-6)


def test_it_is_the_loss_of_torch(packed, oracle):
  """Cross-entropy as AutoModelForQuestionAnswering computes it, of every window alone."""
  _, batch, logits = packed
  total = 0.0
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    mine = oracle.tensor(logits[r][batch["segments"][r] == m + 1])[None]
    for side, name in enumerate(("starts", "ends")):
      gold = oracle.tensor([int(batch[name][r, m])])
      total += float(oracle.nn.functional.cross_entropy(mine[..., side], gold)) / 2
  assert sums(logits, batch)[0] == pytest.approx(total, rel=1e-6)


def test_accuracy_counts_windows_with_both_places_right(packed):
  count, batch, logits = packed
  assert sums(logits, batch)[2][0] == by_hand(logits, batch)[1]
  told = np.zeros_like(logits)
  for r, m in np.argwhere(batch["example_ids"] >= 0):
    places = np.flatnonzero(batch["segments"][r] == m + 1)
    told[r, places[batch["starts"][r, m]], 0] = 50
    told[r, places[batch["ends"][r, m]], 1] = 50
  loss, weight, right, _ = sums(told, batch)
  assert loss / weight < 1e-6 and right == (count, count)
  assert sums(np.roll(told, 1, axis=1), batch)[0] / weight > 20
  assert sums(told[..., ::-1], batch)[2][0] < count  # starts are not ends


@pytest.mark.parametrize("key", ["starts", "ends"])
@pytest.mark.parametrize("value", [-1, 16])
def test_the_feed_refuses_a_place_outside_its_window(packed, key, value):
  _, batch, _ = packed
  feed.validate(batch, 100, 64, None)
  batch[key][0, 1] = value
  with pytest.raises(JaxsftError, match=rf"{key} {value} in example \d, expected a token"):
    feed.validate(batch, 100, 64, None)
