"""Classification and regression against scikit-learn, scipy and the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import calibration, linear_model
from sklearn import metrics as sk

from jaxsft.errors import JaxsftError
from jaxsft.metrics import classification

NAMES = ("bad", "good", "neutral", "unused")


def problem(seed, n=60, classes=3, names=None):
  """Logits that are right more often than not; the last of `names` may never be gold."""
  rng = np.random.default_rng(seed)
  gold = rng.integers(0, classes, n)
  logits = rng.normal(0, 1.5, (n, len(names) if names else classes))
  logits[np.arange(n), gold] += rng.normal(1, 1, n)
  return logits, gold


def best(gold, classes):
  return np.where(np.eye(classes)[gold] > 0, 4.0, -4.0)


@pytest.mark.parametrize("seed", range(4))
def test_single_equals_scikit_learn(seed):
  logits, gold = problem(seed)
  result = classification.single(logits, gold, NAMES[:3])
  predicted, p = logits.argmax(-1), np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  macro = sk.precision_recall_fscore_support(gold, predicted, average="macro")
  expected = {
    "accuracy": sk.accuracy_score(gold, predicted),
    "macro_precision": macro[0],
    "macro_recall": macro[1],
    "macro_f1": macro[2],
    "weighted_f1": sk.f1_score(gold, predicted, average="weighted"),
    "mcc": sk.matthews_corrcoef(gold, predicted),
    "auc": sk.roc_auc_score(gold, p, multi_class="ovr", average="macro"),
  }
  for name, value in expected.items():
    assert result[name] == pytest.approx(value, abs=1e-12), name
  assert set(classification.SINGLE) == {*expected, "ece"}
  assert result["undefined"] == {}
  assert result["confusion"] == sk.confusion_matrix(gold, predicted).tolist()
  assert result["labels"] == list(NAMES[:3])
  each = zip(*sk.precision_recall_fscore_support(gold, predicted), strict=True)
  for name, row in zip(NAMES, each, strict=False):
    found = result["per_class"][name]
    assert [found[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx(row)
    assert found["predicted"] == np.sum(predicted == NAMES.index(name))


def test_two_classes_have_the_auc_of_the_second():
  logits, gold = problem(5, classes=2)
  p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
  assert p.max() < 1
  found = classification.single(logits, gold, ("no", "yes"))["auc"]
  assert found == pytest.approx(sk.roc_auc_score(gold, p))


def test_auc_does_not_saturate_with_the_probabilities():
  # The probabilities of both rows round to 1, so that an AUC of them would be 0.5.
  logits = np.array([[0.0, 100.0], [0.0, 200.0]])
  assert classification.single(logits, [0, 1], ("no", "yes"))["auc"] == 1.0
  logits = np.array([[0.0, 100.0, 1.0], [0.0, 200.0, 1.0], [5.0, 0.0, 6.0]])
  odds = classification._log_odds(logits)
  for row in range(3):
    for c in range(3):
      rest = np.logaddexp.reduce(np.delete(logits[row], c))
      assert odds[row, c] == pytest.approx(logits[row, c] - rest, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_class_that_never_occurs_is_left_out_of_the_means(seed):
  logits, gold = problem(seed, names=NAMES)
  logits[:, 3] = -99
  result = classification.single(logits, gold, NAMES)
  for name, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
    assert result[name] == pytest.approx(sk.f1_score(gold, logits.argmax(-1), average=average))
  unused = result["per_class"]["unused"]
  assert unused == {
    "precision": None, "recall": None, "f1": None, "support": 0, "predicted": 0,
  }  # fmt: skip
  assert "auc" not in result and result["undefined"]["auc"] == "no gold row of unused"
  assert np.shape(result["confusion"]) == (4, 4)


def test_a_class_that_is_only_predicted_counts_as_in_scikit_learn():
  logits, gold = problem(1, names=NAMES)
  logits[:5, 3] = 99
  result = classification.single(logits, gold, NAMES)
  expected = sk.f1_score(gold, logits.argmax(-1), average="macro", zero_division=0)
  assert result["macro_f1"] == pytest.approx(expected)
  assert result["per_class"]["unused"]["recall"] == 0.0


def test_gold_as_prediction_scores_exactly_the_best():
  gold = np.array([0, 1, 2, 1, 1])
  result = classification.single(best(gold, 3), gold, NAMES[:3])
  for name in classification.SINGLE:
    assert result[name] == (pytest.approx(0, abs=1e-3) if name == "ece" else 1.0), name
  many = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
  result = classification.multi(8.0 * many - 4, many, NAMES)
  for name, direction in classification.MULTI.items():
    assert result[name] == (1.0 if direction == "max" else 0.0), name
  numbers = np.array([0.1, 2.7, -3.3, 0.1])
  result = classification.number(numbers, numbers)
  for name, direction in classification.NUMBER.items():
    assert result[name] == (1.0 if direction == "max" else 0.0), name


def test_one_gold_class_leaves_mcc_undefined_and_one_predicted_class_is_0():
  result = classification.single(best(np.zeros(4, int), 2), [0, 0, 0, 0], ("a", "b"))
  assert "mcc" not in result and result["undefined"]["mcc"] == "every gold label is a"
  assert "auc" not in result and result["accuracy"] == 1.0
  assert (
    classification.single(best(np.zeros(4, int), 2), [0, 1, 0, 1], ("a", "b"))["mcc"] == 0.0
  )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [15, 4])
def test_ece_is_the_gap_of_the_calibration_curve(seed, bins):
  logits, gold = problem(seed, n=300)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  top, right = p.max(-1), p.argmax(-1) == gold
  share, confidence = calibration.calibration_curve(right, top, n_bins=bins)
  counts = np.histogram(top, np.linspace(0, 1, bins + 1))[0]
  expected = np.sum(counts[counts > 0] * np.abs(share - confidence)) / len(gold)
  result = classification.calibration(logits, gold, bins)
  assert result["ece"] == pytest.approx(expected, abs=1e-12)
  assert result["nll"] == pytest.approx(sk.log_loss(gold, p))


def test_ece_by_hand():
  # Of two rows with p = 0.8 one is right; the row with p = 0.6 is wrong: (0.6 + 0.6) / 3.
  odds = np.log([4.0, 4.0, 1.5])
  logits = np.stack([odds, np.zeros(3)], axis=1)
  assert classification.calibration(logits, [0, 1, 1])["ece"] == pytest.approx(0.4)


def test_a_bin_is_closed_above():
  # A probability on an edge lies in the bin below it, with 0.7 here, whose gap it offsets.
  logits = np.log(np.array([[0.75, 0.25], [0.7, 0.3]]))
  assert np.exp(classification._log_softmax(logits)).max(-1)[0] == 0.75
  assert classification.calibration(logits, [0, 1], 4)["ece"] == pytest.approx(0.45 / 2)


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_the_temperature_has_the_least_nll(scale):
  logits, gold = problem(3, n=200)
  logits *= scale
  result = classification.calibration(logits, gold)

  def nll(log_t):
    return _nll(logits / np.exp(log_t), gold)

  found = optimize.minimize_scalar(
    nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}
  )
  assert result["temperature"] == pytest.approx(np.exp(found.x), rel=1e-5)
  assert result["nll_fitted"] == pytest.approx(found.fun) and found.fun <= result["nll"]
  again = classification.calibration(logits / result["temperature"], gold)
  assert again["temperature"] == pytest.approx(1.0)
  assert again["ece"] == pytest.approx(result["ece_fitted"])
  assert result["fitted_on"] == "the same rows"


def _nll(logits, gold):
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return sk.log_loss(gold, p / p.sum(-1, keepdims=True))


def test_the_temperature_of_two_classes_is_a_logistic_regression():
  logits, gold = problem(8, n=200, classes=2)
  slope = linear_model.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
  slope.fit(logits[:, 1:] - logits[:, :1], gold)
  found = classification.calibration(logits, gold)["temperature"]
  assert found == pytest.approx(1 / slope.coef_[0, 0], rel=1e-4)


@pytest.mark.parametrize("gold, why", [([0, 1], "sharper"), ([1, 0], "flatter")])
def test_no_temperature_where_every_row_is_right_or_none_better_than_chance(gold, why):
  logits = np.array([[2.0, 0.0], [0.0, 2.0]])
  result = classification.single(logits, gold, ("a", "b"))
  assert "temperature" not in result["calibration"]
  assert why in result["undefined"]["temperature"]
  assert 0 <= result["ece"] <= 1


@pytest.mark.parametrize("threshold", [0.5, 0.2, [0.1, 0.5, 0.9, 0.5]])
@pytest.mark.parametrize("seed", range(3))
def test_many_labels_equal_scikit_learn(seed, threshold):
  rng = np.random.default_rng(seed)
  gold = (rng.random((50, 4)) < [0.5, 0.2, 0.7, 0.3]).astype(int)
  logits = rng.normal(0, 2, (50, 4)) + 2 * gold
  predicted = 1 / (1 + np.exp(-logits)) > threshold
  result = classification.multi(logits, gold, NAMES, threshold)
  micro = sk.precision_recall_fscore_support(gold, predicted, average="micro")
  expected = {
    "micro_precision": micro[0],
    "micro_recall": micro[1],
    "micro_f1": micro[2],
    "macro_f1": sk.f1_score(gold, predicted, average="macro"),
    "subset_accuracy": sk.accuracy_score(gold, predicted),
    "hamming_loss": sk.hamming_loss(gold, predicted),
    "auc": sk.roc_auc_score(gold, logits, average="macro"),
  }
  assert set(expected) == set(classification.MULTI)
  for name, value in expected.items():
    assert result[name] == pytest.approx(value), name
  each = zip(*sk.precision_recall_fscore_support(gold, predicted), strict=True)
  areas = sk.roc_auc_score(gold, logits, average=None)
  for name, row, area in zip(NAMES, each, areas, strict=True):
    found = result["per_label"][name]
    assert [found[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx(row)
    assert found["auc"] == pytest.approx(area)


def test_labels_without_gold_or_without_any_row():
  gold = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]])
  logits = np.array([[1.0, -1, -1], [1, 1, -1], [-1, 1, -1]])
  result = classification.multi(logits, gold, ("all", "some", "none"))
  assert result["undefined"] == {
    "auc of all": "every gold row has it", "auc of none": "no gold row has it",
  }  # fmt: skip
  assert (
    result["auc"]
    == result["per_label"]["some"]["auc"]
    == sk.roc_auc_score([0, 1, 0], [-1, 1, 1])
  )
  expected = sk.f1_score(gold, logits > 0, average="macro", zero_division=np.nan)
  assert result["macro_f1"] == pytest.approx(expected)
  assert result["per_label"]["none"]["f1"] is None
  result = classification.multi(-np.ones((2, 3)), np.zeros((2, 3)), NAMES[:3])
  assert result["subset_accuracy"] == 1.0 and result["hamming_loss"] == 0.0
  absent = {"micro_f1", "macro_f1", "micro_precision", "micro_recall", "auc"}
  assert absent <= set(result["undefined"]) and not absent & set(result)


def test_a_threshold_is_exceeded_not_met_and_never_rounds():
  assert classification.chosen([[0.0, 1e-9, -1e-9]]).tolist() == [[False, True, False]]
  assert classification.chosen([[40.0, 60.0]], 1 - 1e-16).tolist() == [[True, True]]
  assert classification.chosen([36.0, 37.0], 1 - 1e-16).tolist() == [False, True]
  for threshold in (0.0, 1.0, [0.5, -1.0]):
    with pytest.raises(JaxsftError, match="above 0 and below 1"):
      classification.chosen([[1.0, 1.0]], threshold)


@settings(deadline=None)
@given(st.lists(st.tuples(*2 * [st.integers(-30, 30)]), min_size=2, max_size=25))
def test_numbers_equal_scipy_and_scikit_learn(pairs):
  predicted, gold = np.array(pairs, np.float64).T / 7
  result = classification.number(predicted, gold)
  assert result["mse"] == pytest.approx(sk.mean_squared_error(gold, predicted))
  assert result["mae"] == pytest.approx(sk.mean_absolute_error(gold, predicted))
  assert result["rmse"] == pytest.approx(sk.root_mean_squared_error(gold, predicted))
  if np.ptp(gold) == 0:
    assert "r2" not in result and "same" in result["undefined"]["r2"]
  else:
    assert result["r2"] == pytest.approx(sk.r2_score(gold, predicted), abs=1e-9)
  constant = np.ptp(gold) == 0 or np.ptp(predicted) == 0
  assert ("pearson" in result["undefined"]) == ("pearson" not in result) == constant
  if not constant:
    pearson = stats.pearsonr(predicted, gold).statistic
    assert result["pearson"] == pytest.approx(pearson, abs=1e-9)
    spearman = stats.spearmanr(predicted, gold).statistic
    assert result["spearman"] == pytest.approx(spearman, abs=1e-9)


def test_rounding_is_no_correlation():
  gold = np.array([1.0, 2.0, 3.0])
  nearly = np.float64(0.1) + np.array([0, 1e-17, 1.4e-17])
  for constant in (nearly, np.full(3, 0.1), np.array([1e9, 1e9, np.nextafter(1e9, 2e9)])):
    result = classification.number(constant, gold)
    assert "pearson" not in result and "predicted" in result["undefined"]["spearman"]


def test_half_precision_is_computed_in_double():
  gold = np.arange(50, dtype=np.float16)
  result = classification.number((gold + 1).astype(np.float16), gold)
  assert result["mse"] == 1.0 and result["pearson"] == 1.0


def test_bad_input_is_named():
  good = np.zeros((3, 2))
  for call, words in (
    (lambda: classification.single(np.zeros((0, 2)), np.zeros(0, int), "ab"), "no row"),
    (lambda: classification.multi(np.zeros((0, 2)), np.zeros((0, 2)), "ab"), "no row"),
    (lambda: classification.number([], []), "no row"),
    (lambda: classification.single(good, [0, 1, 2], "ab"), "row 2 has the gold label 2"),
    (lambda: classification.single(good, [0, -1, 0], "ab"), "row 1 has the gold label -1"),
    (lambda: classification.single(good, [0.0, 1.0, 0.0], "ab"), "one whole number"),
    (lambda: classification.single(good, [0, 1], "ab"), "one whole number for each row"),
    (lambda: classification.single(good, [0, 1, 0], "abc"), r"expected \[rows, 3\]"),
    (lambda: classification.multi(good, np.full((3, 2), 2), "ab"), "expected 0 or 1"),
    (lambda: classification.multi(good, np.zeros((3, 3)), "ab"), "expected 0 or 1"),
    (lambda: classification.number([1.0, 2.0], [1.0]), "one for each row"),
    (lambda: classification.number([1.0, np.nan], [1.0, 2.0]), "first is row 1"),
  ):
    with pytest.raises(JaxsftError, match=words):
      call()
  diverged = good.copy()
  diverged[1:, 0] = np.nan
  with pytest.raises(JaxsftError, match=r"2 of 3 rows .* first is row 1"):
    classification.single(diverged, [0, 1, 0], "ab")


def test_every_number_is_plain():
  logits, gold = problem(2)
  result = classification.single(logits.astype(np.float32), gold.astype(np.int32), NAMES[:3])
  many = classification.multi(logits, np.eye(3)[gold], NAMES[:3])
  for found in (result, many, classification.number(gold + 0.5, gold)):
    assert plain(found), found


def plain(value):
  if isinstance(value, dict):
    return all(type(k) is str and plain(v) for k, v in value.items())
  if isinstance(value, list):
    return all(map(plain, value))
  return value is None or type(value) in (int, float, str, bool)
