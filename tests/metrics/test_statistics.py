"""Intervals against scipy, significance against sacrebleu and the binomial test."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from scipy import stats
from sklearn import metrics as sk

from jaxsft.errors import JaxsftError
from jaxsft.metrics import significance, statistics, tagging, text
from tests.metrics.test_text import CHINESE, ENGLISH, shuffled, streams

N, CLASSES = 40, 3


@functools.cache
def labels(seed=0, right=0.6):
  rng = np.random.default_rng(seed)
  gold = rng.integers(0, CLASSES, N)
  return np.where(rng.random(N) < right, gold, rng.integers(0, CLASSES, N)), gold


def measured(name):
  """(metric, function of row indices that gives its value by another implementation)."""
  predicted, gold = labels()
  x, y = np.random.default_rng(5).normal(3, 1, (2, N)) + gold
  counts = statistics.class_counts(predicted, gold, CLASSES)
  lengths = np.arange(1, N + 1)
  tags = [[["B-A", "I-A"][g % 2], "B-B", "O"] for g in gold]
  guess = [["B-A", "B-B", ["O", "B-B"][p % 2]] for p in predicted]
  types = statistics.type_counts(tagging.counts(guess, tags), ("A", "B"))
  texts, references = shuffled(3, ENGLISH[:4], N)
  pick = lambda rows, i: [rows[j] for j in i]
  spans = lambda i: tagging.scores(pick(guess, i), pick(tags, i))
  corpus = lambda m, i: m.corpus_score(pick(texts, i), streams(pick(references, i))).score
  f1 = lambda i, average: sk.f1_score(gold[i], predicted[i], average=average)
  return {
    "accuracy": (
      statistics.accuracy(predicted, gold),
      lambda i: sk.accuracy_score(gold[i], predicted[i]),
    ),
    "mean": (statistics.mean("f1", x, scale=100), lambda i: 100 * np.mean(x[i])),
    "perplexity": (
      statistics.perplexity(lengths * y, lengths),
      lambda i: np.exp(np.average(y[i], weights=lengths[i])),
    ),
    "macro_f1": (statistics.macro_f1(counts, "abc"), lambda i: f1(i, "macro")),
    "micro_f1": (statistics.micro_f1(counts), lambda i: f1(i, "micro")),
    "mcc": (
      statistics.mcc(counts, "abc"),
      lambda i: sk.matthews_corrcoef(gold[i], predicted[i]),
    ),
    "pearson": (statistics.pearson(x, y), lambda i: stats.pearsonr(x[i], y[i]).statistic),
    "span_f1": (statistics.micro_f1(types), lambda i: spans(i)["f1"]),
    "span_macro_f1": (statistics.macro_f1(types, ("A", "B")), lambda i: spans(i)["macro_f1"]),
    "bleu": (statistics.bleu(texts, references), lambda i: corpus(BLEU(), i)),
    "chrf": (statistics.chrf(texts, references), lambda i: corpus(CHRF(), i)),
  }[name]


NAMES = (
  "accuracy", "mean", "perplexity", "macro_f1", "micro_f1", "mcc", "pearson", "span_f1",
  "span_macro_f1", "bleu", "chrf",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_is_that_of_scipy(name):
  metric, reference = measured(name)
  assert metric.score == pytest.approx(reference(np.arange(N)), abs=1e-9)
  found = significance.interval(metric, resamples=50, level=0.9, seed=3)
  expected = stats.bootstrap(
    (np.arange(N),),
    lambda i: reference(i.astype(int)),
    vectorized=False,
    n_resamples=50,
    confidence_level=0.9,
    method="percentile",
    rng=np.random.default_rng(3),
  ).confidence_interval
  assert found["n"] == N and found["value"] == metric.score
  assert [found["low"], found["high"]] == pytest.approx([expected.low, expected.high], abs=1e-9)
  assert found["low"] < found["value"] < found["high"]


def test_the_blocks_change_nothing(monkeypatch):
  metric, _ = measured("mean")
  whole = significance.interval(metric, resamples=30)
  monkeypatch.setattr(significance, "_BLOCK", 7 * N)
  assert significance.interval(metric, resamples=30) == whole
  monkeypatch.setattr(significance, "_BLOCK", 1)
  assert significance.interval(metric, resamples=30) == whole
  assert significance.interval(metric, resamples=30, seed=1) != whole


def test_an_interval_covers_as_it_says():
  rng, inside = np.random.default_rng(0), 0
  for seed in range(200):
    found = significance.interval(statistics.mean("x", rng.normal(2, 1, 50)), 200, 0.8, seed)
    inside += found["low"] <= 2 <= found["high"]
  assert 0.7 < inside / 200 < 0.88


def test_one_row_has_no_interval_and_an_undefined_value_is_none():
  found = significance.interval(statistics.accuracy([1], [1]))
  assert found == {"n": 1, "value": 1.0, "low": None, "high": None}
  empty = statistics.micro_f1(np.zeros((3, 3)))
  found = significance.interval(empty, resamples=10)
  assert found == {
    "n": 3, "value": None, "low": None, "high": None, "undefined_resamples": 10,
  }  # fmt: skip
  nothing = significance.compare(empty, empty, 5, 5)
  assert {nothing[k] for k in ("p_bootstrap", "p_randomisation", "wins", "better")} == {None}
  some = statistics.micro_f1(np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0]]))
  found = significance.interval(some, resamples=400)
  assert found["low"] == found["high"] == found["value"] == 1.0
  assert found["undefined_resamples"] / 400 == pytest.approx((2 / 3) ** 3, abs=0.08)


def test_slices_hold_every_row_once_and_stand_alone():
  predicted, gold = labels()
  metric = statistics.accuracy(predicted, gold)
  groups = ["b", "a", "b", "c"] * (N // 4)
  found = significance.slices(metric, groups, resamples=50)
  assert [row["slice"] for row in found] == ["a", "b", "c"]
  assert sum(row["n"] for row in found) == N
  for row in found:
    inside = np.array(groups) == row["slice"]
    assert row["value"] == np.mean((predicted == gold)[inside])
    alone = statistics.accuracy(predicted[inside], gold[inside])
    assert row == {"slice": row["slice"], **significance.interval(alone, resamples=50)}
  spans = significance.slices(metric, ["10 to 20", "5 to 9", "100 to 3", "x"] * (N // 4), 5)
  assert [row["slice"] for row in spans] == ["5 to 9", "10 to 20", "100 to 3", "x"]
  mixed = significance.slices(metric, [None, "x", 1, "x"] * (N // 4), resamples=5)
  assert [row["slice"] for row in mixed] == [None, "x", 1]
  with pytest.raises(JaxsftError, match="3 groups for 40 rows"):
    significance.slices(metric, [1, 2, 3])


def test_slices_of_some_of_the_rows():
  """A group is of the rows that count; one without any has no value."""
  metric = dataclasses.replace(statistics.mean("x", [1.0, 3.0, 5.0]), at=np.array([0, 2, 3]))
  found = significance.slices(metric, ["a", "b", "a", "a", "b"], resamples=9)
  assert [(one["slice"], one["n"], one["value"]) for one in found] == [
    ("a", 3, 3),
    ("b", 0, None),
  ]
  assert found[1]["low"] is None
  with pytest.raises(JaxsftError, match="3 groups for 3 rows"):
    significance.slices(metric, ["a", "b", "a"])


def test_classes_are_told_by_their_names():
  """Two systems of the same answers, whose heads have the labels in another order, or more."""
  predicted, gold = labels()
  other = np.roll(predicted, 1)
  expected = None
  for names in ("abc", "cab", "xacby"):
    at = np.array([names.index("abc"[i]) for i in range(CLASSES)])
    system = statistics.class_counts(at[other], at[gold], len(names))
    baseline = statistics.class_counts(predicted, gold, CLASSES)
    for make in (statistics.macro_f1, statistics.mcc):
      said = significance.compare(make(baseline, "abc"), make(system, names), 50, 200)
      expected = {**(expected or {}), make: (expected or {}).get(make, said)}
      assert said == pytest.approx(expected[make])


def test_only_rows_that_both_have_are_compared():
  a = dataclasses.replace(statistics.mean("x", [1.0, 0.0, 1.0]), at=np.array([0, 1, 2]))
  b = dataclasses.replace(statistics.mean("x", [0.0, 1.0, 0.0, 0.0]), at=np.array([1, 2, 7, 9]))
  said = significance.compare(a, b, 50, 50)
  assert (said["n"], said["difference"], said["better"]) == (2, 0.0, None)
  none = dataclasses.replace(b, at=np.array([5, 6, 7, 9]))
  assert "no row" in significance.compare(a, none)["not_compared"]


def test_tokens_of_two_tokenizers_are_not_compared():
  words, bytes_ = (statistics.perplexity([50.0, 60.0], [n, n]) for n in (25, 100))
  said = significance.compare(words, bytes_)
  assert said == {
    "metric": "perplexity",
    "not_compared": "they count tokens differently (50 and 200)",
  }
  assert significance.compare(words, words, 9, 9)["difference"] == 0


def test_bleu_is_undefined_where_text_says_so():
  short = statistics.bleu(["no", "yes"], ["no", ["yes", "aye aye"]])
  assert math.isnan(short.score) and "bleu" in text.bleu(["no"], ["no"])["undefined"]
  one = statistics.bleu(["a b c d", "no"], ["a b c d", "no"])
  assert one.score == pytest.approx(100) and math.isnan(one.only([1]).score)
  empty = statistics.chrf(["no", "a"], ["", "a"])
  assert math.isnan(empty.only([0]).score) and empty.score > 0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 6))
def test_value_buckets_are_near_equal_and_do_not_overlap(lengths, buckets):
  found = significance.value_buckets(lengths, buckets)
  assert all(low <= n <= high for n, (low, high) in zip(lengths, found, strict=True))
  ends = sorted(set(found))
  assert len(ends) <= buckets
  assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
  if len(set(lengths)) == len(lengths) >= buckets:
    sizes = [found.count(end) for end in ends]
    assert len(sizes) == buckets and max(sizes) - min(sizes) <= 1


def test_value_buckets_are_slices():
  found = significance.slices(
    statistics.mean("x", range(8)), significance.value_buckets([1, 2, 3, 4, 5, 6, 7, 9], 2), 5
  )
  assert [(row["slice"], row["n"], row["value"]) for row in found] == [
    ((1, 4), 4, 1.5),
    ((5, 9), 4, 5.5),
  ]


@pytest.fixture(scope="module")
def systems():
  """(references, outputs of two systems of which the second is better, and of two alike)."""
  one, references = shuffled(1, ENGLISH[:4] + CHINESE[:4], 50)
  two, _ = shuffled(1, ENGLISH[:4] + CHINESE[:4], 50)
  better = [
    row[0] if i % 7 == 0 else t for i, (t, row) in enumerate(zip(two, references, strict=True))
  ]
  worse = [t[: len(t) // 2] if i % 5 == 0 else t for i, t in enumerate(one)]
  rng = np.random.default_rng(4)
  drop = lambda t: "".join(c for c in t if rng.random() < 0.95)
  near = [drop(row[0]) for row in references], [drop(row[0]) for row in references]
  return references, (worse, better), near


@pytest.mark.parametrize("pair", [1, 2], ids=["unequal", "near"])
@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_significance_is_that_of_sacrebleu(systems, name, pair):
  references, (worse, better) = systems[0], systems[pair]
  metric = {"bleu": BLEU, "chrf": CHRF}[name]()
  values = {}
  for kind, trials in (("bs", 200), ("ar", 500)):
    test = PairedTest(
      [("a", worse), ("b", better)], {"m": metric}, streams(references), kind, trials
    )
    _, scores = test()
    values[kind] = next(v for k, v in scores.items() if k != "System")
  make = {"bleu": statistics.bleu, "chrf": statistics.chrf}[name]
  a, b = make(worse, references), make(better, references)
  found = significance.compare(a, b, resamples=200, trials=500, seed=12345)
  assert found["baseline"] == pytest.approx(values["bs"][0].score)
  assert found["system"] == pytest.approx(values["bs"][1].score)
  assert found["p_bootstrap"] == pytest.approx(values["bs"][1].p_value, abs=1e-12)
  assert found["p_randomisation"] == pytest.approx(values["ar"][1].p_value, abs=1e-12)
  if pair == 1:
    assert found["better"] == "system" and 0.9 < found["wins"] <= 1
  else:
    assert 0.1 < found["p_bootstrap"] < 1 and 0.05 < found["wins"] < 0.95
  assert found["low"] < found["difference"] < found["high"]


def test_the_interval_of_a_difference_pairs_the_rows():
  rng = np.random.default_rng(0)
  hard = rng.normal(0, 10, 200)  # what both systems share cancels out
  a, b = statistics.mean("f1", hard), statistics.mean("f1", hard + rng.normal(0.5, 1, 200))
  found = significance.paired_bootstrap(a, b, 2000)
  expected = stats.bootstrap(
    (b.rows[:, 0] - a.rows[:, 0],), np.mean, n_resamples=2000, method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval  # fmt: skip
  assert [found["low"], found["high"]] == pytest.approx([expected.low, expected.high])
  assert found["wins"] > 0.99 and found["p_bootstrap"] < 0.01
  less = statistics.mean("loss", hard, "min"), statistics.mean("loss", hard - 1, "min")
  assert significance.compare(*less, 50, 50)["better"] == "system"
  assert significance.paired_bootstrap(*less, 50)["wins"] == 1.0
  assert significance.compare(*less[::-1], 50, 50)["better"] == "baseline"
  assert significance.paired_bootstrap(*less[::-1], 50)["wins"] == 0.0


@pytest.mark.parametrize("name", ["accuracy", "bleu"])
def test_a_system_is_not_better_than_itself(name):
  metric, _ = measured(name)
  found = significance.compare(metric, metric, 50, 50)
  assert found["p_bootstrap"] == found["p_randomisation"] == 1.0
  assert found["better"] is None and found["wins"] == 0.0 and found["difference"] == 0.0


def test_one_row_of_difference_is_chance():
  gold = np.zeros(30, int)
  one = gold.copy()
  one[4] = 1
  a, b = statistics.accuracy(one, gold), statistics.accuracy(gold, gold)
  assert significance.approximate_randomisation(a, b)["p_randomisation"] == 1.0
  assert significance.paired_bootstrap(a, b)["p_bootstrap"] > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_randomised_accuracies_come_to_the_exact_test(seed):
  gold = labels()[1]
  a, b = labels(seed + 1, 0.4)[0], labels(seed + 2, 0.8)[0]
  found = significance.approximate_randomisation(
    statistics.accuracy(a, gold), statistics.accuracy(b, gold), 20000
  )
  exact = significance.mcnemar(a == gold, b == gold)["p_mcnemar"]
  assert found["p_randomisation"] == pytest.approx(exact, abs=0.015)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test(only_a, only_b, both):
  a = [True] * only_a + [False] * only_b + [True] * both
  b = [False] * only_a + [True] * only_b + [True] * both
  found = significance.mcnemar(a, b)
  assert (found["only_baseline"], found["only_system"]) == (only_a, only_b)
  expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
  assert found["p_mcnemar"] == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_rows():
  a, b = np.arange(5000) < 2400, np.arange(5000) >= 2400
  expected = stats.binomtest(2400, 5000).pvalue
  assert significance.mcnemar(a, b)["p_mcnemar"] == pytest.approx(expected, rel=1e-9)


def test_a_constant_side_has_the_values_of_scikit_learn():
  counts = statistics.class_counts([1, 1, 1], [0, 1, 1], 2)
  assert statistics.mcc(counts, "ab").score == sk.matthews_corrcoef([0, 1, 1], [1, 1, 1]) == 0.0
  assert math.isnan(statistics.pearson([0.1] * 3, [1, 2, 3]).score)
  counts = statistics.class_counts([0, 1, 1], [1, 1, 1], 2)
  assert math.isnan(
    statistics.mcc(counts, "ab").score
  )  # as classification.single leaves it out


def test_a_class_counts_where_it_is_predicted_or_gold():
  counts = statistics.class_counts([0, 2, 1], [0, 1, 1], 4)
  assert counts[1].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
  expected = sk.f1_score([0, 1, 1], [0, 2, 1], average="macro", zero_division=0)
  assert statistics.macro_f1(counts, "abcd").score == pytest.approx(expected)


def test_pearson_of_large_numbers_is_not_rounded_away():
  x, y = np.random.default_rng(0).normal(0, 1, (2, 50))
  found = statistics.pearson(x + 1e9, x + y).score
  assert found == pytest.approx(stats.pearsonr(x, x + y).statistic, abs=1e-5)


def test_perplexity_of_a_uniform_guess():
  metric = statistics.perplexity([2 * math.log(7), 5 * math.log(7)], [2, 5])
  assert metric.score == pytest.approx(7.0) and metric.direction == "min"


def test_bad_input_is_named():
  a, b = statistics.mean("x", [1.0, 2.0]), statistics.mean("x", [1.0, 2.0, 3.0])
  for call, words in (
    (lambda: statistics.mean("x", []), "x: statistics of shape"),
    (lambda: statistics.mean("x", [1.0, np.nan]), "expected finite numbers"),
    (lambda: statistics.accuracy([1], [1, 2]), "1 predictions for 2 rows"),
    (lambda: significance.mcnemar([True], []), "1 predictions for 0 rows"),
    (lambda: significance.compare(a, b), "one metric on the same rows"),
    (lambda: significance.compare(a, statistics.mean("y", [1.0, 2.0])), "one metric"),
    (lambda: statistics.type_counts([{"A": (1, 1, 1)}], ["B"]), "row 0 has the type 'A'"),
  ):
    with pytest.raises(JaxsftError, match=words):
      call()
