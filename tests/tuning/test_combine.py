"""Weights combined with weights, against torch and PEFT, and by hand."""

import math
import warnings

import numpy as np
import pytest

from jaxsft.tuning import combine


def leaves(count=3, shape=(5, 7), near=0.1):
  """A pretrained tensor and others near it."""
  rng = np.random.default_rng(0)
  pretrained = rng.normal(size=shape).astype(np.float32)
  tuned = [pretrained + near * rng.normal(size=shape).astype(np.float32) for _ in range(count)]
  return pretrained, tuned


@pytest.mark.parametrize("alpha", (0.0, 0.3, 0.7, 1.0, -0.5, 1.25))
def test_the_line_is_that_of_torch(oracle, alpha):
  p, (t, *_) = leaves()
  expected = alpha * oracle.tensor(p) + (1 - alpha) * oracle.tensor(t)
  found = combine.linear(p, t, alpha)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected.numpy())


def test_the_line_ends_at_both_models_and_is_the_formula_of_alpha():
  p, (t, *_) = leaves()
  np.testing.assert_array_equal(combine.linear(p, t, 0), t)
  np.testing.assert_array_equal(combine.linear(p, t, 1), p)
  m = combine.linear(p, t, 0.3)  # (M_f - M_t) / (M_p - M_t) is alpha, at every weight
  np.testing.assert_allclose((m - t).astype(np.float64) / (p - t), 0.3, rtol=2e-3)


def test_each_layer_has_an_alpha():
  p, (t, *_) = leaves(shape=(3, 2, 4))
  found = combine.linear(p, t, np.array([0.0, 0.5, 1.0]))
  assert found.dtype == np.float32
  for layer, alpha in enumerate((0.0, 0.5, 1.0)):
    np.testing.assert_array_equal(found[layer], combine.linear(p[layer], t[layer], alpha))


@pytest.mark.parametrize("near", (0.1, 10.0))
def test_the_arc_is_the_closed_form(oracle, near):
  p, (t, *_) = leaves(near=near)
  a, b = (oracle.tensor(x).double().flatten() for x in (p, t))
  cosine = oracle.nn.functional.cosine_similarity(a, b, dim=0, eps=0.0)
  angle = oracle.acos(cosine)
  for alpha in (0.0, 0.25, 0.5, 1.0):
    weights = [oracle.sin(x * angle) / oracle.sin(angle) for x in (alpha, 1 - alpha)]
    expected = (weights[0] * a + weights[1] * b).reshape(p.shape).float().numpy()
    np.testing.assert_allclose(combine.slerp(p, t, alpha), expected, rtol=1e-6, atol=1e-6)


def test_an_arc_keeps_the_length_and_parallel_tensors_have_none():
  rng = np.random.default_rng(1)
  p, t = (x / np.linalg.norm(x) for x in rng.normal(size=(2, 40)).astype(np.float32))
  assert np.linalg.norm(combine.slerp(p, t, 0.5)) == pytest.approx(1, abs=1e-6)
  assert np.linalg.norm(combine.linear(p, t, 0.5)) < 0.9
  for other in (p, 2 * p, -p, 0 * p):
    np.testing.assert_array_equal(combine.slerp(p, other, 0.3), combine.linear(p, other, 0.3))


def test_the_soup_is_torchs_mean(oracle):
  _, tuned = leaves()
  expected = (oracle.tensor(tuned[0]) + oracle.tensor(tuned[1]) + oracle.tensor(tuned[2])) / 3
  np.testing.assert_array_equal(combine.mean(iter(tuned)), expected.numpy())
  assert combine.mean(tuned[:1]) is tuned[0]


def peft_utils():
  return pytest.importorskip("peft.utils.merge_utils")


def changes(oracle, p, tuned):
  return [oracle.tensor(t - p) for t in tuned]


def test_task_arithmetic_is_pefts(oracle):
  p, tuned = leaves()
  weights = oracle.ones(len(tuned))
  expected = peft_utils().task_arithmetic(changes(oracle, p, tuned), weights).numpy()
  np.testing.assert_allclose(combine.task_arithmetic(p, tuned), p + expected, atol=1e-6)


@pytest.mark.parametrize("sign", combine.SIGNS)
@pytest.mark.parametrize("density", (0.2, 0.55, 1.0))
def test_ties_is_pefts(oracle, density, sign):
  p, tuned = leaves(count=4)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PEFT says that a density of 1 prunes nothing
    expected = peft_utils().ties(
      changes(oracle, p, tuned), oracle.ones(len(tuned)), density, sign
    )
  found = combine.ties(p, tuned, density, sign)
  np.testing.assert_allclose(found, p + expected.numpy(), atol=1e-6)
  assert (found != p).any()


def test_what_is_largest_is_pefts(oracle):
  values = leaves()[0]
  for density in (0.0, 0.01, 0.5):
    expected = peft_utils().magnitude_based_pruning(oracle.tensor(values), density).numpy()
    np.testing.assert_array_equal(combine.largest(values, density), expected)


def test_dare_is_pefts_with_the_same_draws(oracle, monkeypatch):
  p, tuned = leaves()
  rng = np.random.default_rng(3)
  draws = iter([oracle.tensor((rng.random(p.shape) < 0.4).astype("f4")) for _ in tuned])
  monkeypatch.setattr(oracle, "bernoulli", lambda _: next(draws))
  expected = peft_utils().dare_linear(changes(oracle, p, tuned), oracle.ones(len(tuned)), 0.4)
  found = combine.dare(p, tuned, 0.4, np.random.default_rng(3))
  np.testing.assert_allclose(found, p + expected.numpy(), atol=1e-6)


def test_dare_keeps_the_mean_change():
  p = np.zeros(40_000, np.float32)
  found = combine.dare(p, [p + 1], 0.25, np.random.default_rng(0))
  assert set(np.unique(found)) == {0.0, 4.0}
  assert found.mean() == pytest.approx(1, abs=5 * math.sqrt(3 / p.size))


def test_stacked_leaves_are_tensors_of_their_own():
  p, tuned = leaves(shape=(2, 3, 4, 5))
  merge = lambda slot, p, *t: combine.ties(p, t, 0.3)
  found = combine.by_tensor(merge, 2, p, *tuned)
  for slot in np.ndindex(2, 3):
    expected = combine.ties(p[slot], [t[slot] for t in tuned], 0.3)
    np.testing.assert_array_equal(found[slot], expected)
  assert (found != combine.ties(p, tuned, 0.3)).any()
