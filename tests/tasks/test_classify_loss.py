"""The losses of classification are torch's, and weights are those of their labels."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import config, labels
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tasks import classify

KEY = jax.random.key(0)
SMOOTH = (0.0, 0.1)
WEIGHTS = (None, (0.5, 2.0, 1.25))


def options(**settings):
  return config.Loss(**{"class_weights": None, **settings})


def batch_of(labels, weights):
  return {"labels": jnp.asarray(labels), "label_weights": jnp.asarray(weights, jnp.float32)}


def loss_of(logits, labels, weights, settings, key=KEY):
  """(mean, gradient by the logits, sums) of the task's own loss."""

  def mean(logits):
    network = SimpleNamespace(logits=lambda params, batch, key: logits)
    sums = classify.loss(network, None, batch_of(labels, weights), settings, key)
    return sums["loss"][0] / sums["loss"][1], sums

  (value, sums), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(logits)
  return float(value), np.asarray(gradient), sums


@pytest.fixture
def drawn():
  """logits [4,3,3] far from 0 too, labels [4,3], weights [4,3] of 0 and 1."""
  rng = np.random.default_rng(0)
  logits = (3 * rng.normal(size=(4, 3, 3))).astype(np.float32)
  weights = (rng.random((4, 3)) < 0.7).astype(np.float32)
  assert 0 < weights.sum() < 12
  return logits, rng.integers(0, 3, (4, 3)).astype(np.int32), weights


def same(ours, theirs, logits):
  """A mean and its gradient beside torch's, which must not vanish."""
  theirs.backward()
  gradient = logits.grad.numpy()
  assert np.abs(gradient).max() > 1e-3
  assert ours[0] == pytest.approx(float(theirs.detach()), rel=1e-5)
  np.testing.assert_allclose(ours[1][ours[2]], gradient, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS, ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", SMOOTH)
def test_one_label_is_torch_s_cross_entropy(oracle, drawn, smoothing, weights):
  logits, ids, used = drawn
  settings = options(label_smoothing=smoothing, class_weights=weights)
  value, gradient, _ = loss_of(logits, ids, used, settings)
  theirs = oracle.tensor(logits[used > 0], requires_grad=True)
  weight = None if weights is None else oracle.tensor(weights)
  found = oracle.nn.CrossEntropyLoss(weight, label_smoothing=smoothing)(
    theirs, oracle.tensor(ids[used > 0]).long()
  )
  same((value, gradient, used > 0), found, theirs)
  assert not gradient[used == 0].any()


@pytest.mark.parametrize("weights", WEIGHTS, ids=["plain", "weighted"])
def test_many_labels_are_torch_s_binary_cross_entropy(oracle, drawn, weights):
  logits, _, used = drawn
  yes = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.int32)
  value, gradient, sums = loss_of(logits, yes, used, options(class_weights=weights))
  theirs = oracle.tensor(logits[used > 0], requires_grad=True)
  weight = None if weights is None else oracle.tensor(weights)
  found = oracle.nn.BCEWithLogitsLoss(pos_weight=weight)(
    theirs, oracle.tensor(yes[used > 0]).float()
  )
  same((value, gradient, used > 0), found, theirs)
  wrong, total = sums["hamming_loss"]
  assert wrong / total == np.mean(((logits > 0) != (yes > 0))[used > 0])


def test_smoothed_yes_and_no_are_torch_s_soft_targets(oracle, drawn):
  logits, _, used = drawn
  yes = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.int32)
  value, gradient, _ = loss_of(logits, yes, used, options(label_smoothing=0.2))
  theirs = oracle.tensor(logits[used > 0], requires_grad=True)
  soft = oracle.tensor(np.where(yes[used > 0] > 0, 0.9, 0.1).astype(np.float32))
  same((value, gradient, used > 0), oracle.nn.BCEWithLogitsLoss()(theirs, soft), theirs)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_one_label(oracle, drawn, gamma):
  """-(1 - p)^gamma log p of the paper, with torch's own softmax and gradient."""
  logits, ids, used = drawn
  value, gradient, _ = loss_of(logits, ids, used, options(focal=gamma))
  theirs = oracle.tensor(logits[used > 0], requires_grad=True)
  gold = oracle.tensor(ids[used > 0]).long()[:, None]
  p = oracle.softmax(theirs.double(), -1).gather(1, gold)[:, 0]
  same((value, gradient, used > 0), (-((1 - p) ** gamma) * p.log()).mean(), theirs)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_many_labels(oracle, drawn, gamma):
  """torchvision's sigmoid_focal_loss (alpha=-1, reduction="mean"), written out."""
  logits, _, used = drawn
  yes = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.int32)
  value, gradient, _ = loss_of(logits, yes, used, options(focal=gamma))
  theirs = oracle.tensor(logits[used > 0], requires_grad=True)
  target = oracle.tensor(yes[used > 0]).float()
  p = oracle.sigmoid(theirs)
  entropy = oracle.nn.functional.binary_cross_entropy_with_logits(
    theirs, target, reduction="none"
  )
  right = p * target + (1 - p) * (1 - target)
  same((value, gradient, used > 0), (entropy * (1 - right) ** gamma).mean(), theirs)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 2)], ids=["one", "many"])
def test_focal_loss_of_what_is_certain_has_a_gradient(shape):
  """(1 - p)^0.5 has an infinite slope at p = 1, where float32 arrives at a logit of 20."""
  logits = np.array([[[60.0, -60.0]]], np.float32)
  for gold in (0, 1):
    ids = np.full(shape, gold, np.int32)
    value, gradient, _ = loss_of(logits, ids, np.ones((1, 1)), options(focal=0.5))
    assert math.isfinite(value) and np.isfinite(gradient).all()


def test_what_belongs_to_training_is_not_measured(drawn):
  logits, ids, used = drawn
  plain = loss_of(logits, ids, used, options())[0]
  for change in (
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"focal": 2.0},
    {"class_weights": (1.0, 2.0, 3.0)},
  ):
    settings = options(**change)
    assert abs(loss_of(logits, ids, used, settings)[0] - plain) > 1e-3, change
    assert loss_of(logits, ids, used, settings, key=None)[0] == plain, change


def test_z_loss_by_hand(drawn):
  logits, ids, used = drawn
  weights = (0.5, 2.0, 1.25)
  z = np.square(np.log(np.exp(logits.astype(np.float64)).sum(-1)))
  share = used * np.array(weights)[ids]
  for class_weights, w in ((None, used), (weights, share)):
    settings = {"class_weights": class_weights}
    plain = loss_of(logits, ids, used, options(**settings))[0]
    value = loss_of(logits, ids, used, options(z_loss=0.1, **settings))[0]
    assert value - plain == pytest.approx(0.1 * (z * w).sum() / w.sum(), rel=1e-4)


# --- weights and thresholds --------------------------------------------------------------


class Store(SimpleNamespace):
  def __len__(self):
    return len(self.values["label"])


def test_balanced_weights_are_scikit_learn_s():
  from sklearn.utils import class_weight

  ids = [0] * 7 + [1] * 2 + [3]
  expected = class_weight.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=ids)
  store = Store(values={"label": np.array(ids, np.int32)}, tokens={})
  found = labels.class_weights("balanced", ("a", "b", "c", "d"), store)
  assert found == pytest.approx((*expected[:2], 1.0, expected[2]))
  targets, weights = np.array([*ids, 2, 2], np.int32), np.array([1.0] * 10 + [0.0] * 2)
  tokens = SimpleNamespace(values={}, tokens={"targets": targets, "weights": weights})
  assert labels.class_weights("balanced", ("a", "b", "c", "d"), tokens) == found
  assert labels.class_weights("none", ("a", "b"), store) is None


def test_balanced_weights_of_many_labels_are_no_over_yes():
  yes = np.array([[1, 0, 0]] + [[0, 1, 0]] * 3, np.int32)
  store = Store(values={"label": yes}, tokens={})
  assert labels.class_weights("balanced", ("a", "b", "c"), store) == (3.0, 1 / 3, 1.0)
  store = Store(values={"label": np.ones((2, 1), np.int32)}, tokens={})
  with pytest.raises(JaxsftError, match="every training row has the label 'a'"):
    labels.class_weights("balanced", ("a",), store)


def test_weights_and_thresholds_by_name():
  names = ("b", "a", "c")
  assert labels.class_weights({"a": 2, "c": 0.5}, names, None) == (1.0, 2.0, 0.5)
  assert labels.thresholds({"c": 0.1}, names) == (0.5, 0.5, 0.1)
  assert labels.thresholds(0.3, names) == 0.3
  with pytest.raises(UsageError, match=r"config.loss.class_weights: found the label 'x'"):
    labels.class_weights({"x": 2.0}, names, None)
  with pytest.raises(UsageError, match=r"config.evaluate.threshold: .* some of b, a, c"):
    labels.thresholds({"x": 0.2}, names)
