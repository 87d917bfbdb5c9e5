"""Answers against what the official SQuAD scripts said (tests/golden/make_squad.py)."""

import json

import numpy as np
import pytest

from jaxsft.errors import JaxsftError
from jaxsft.metrics import answers
from tests.golden import make_squad

STORED = json.loads(make_squad.FILE.read_text())
OFFICIAL = {
  "exact": "exact_match",
  "f1": "f1",
  "total": "total",
  "HasAns_exact": "has_answer_exact_match",
  "HasAns_f1": "has_answer_f1",
  "HasAns_total": "has_answer_total",
  "NoAns_exact": "no_answer_exact_match",
  "NoAns_f1": "no_answer_f1",
  "NoAns_total": "no_answer_total",
  "best_exact": "best_exact_match",
  "best_exact_thresh": "best_exact_match_threshold",
  "best_f1": "best_f1",
  "best_f1_thresh": "best_f1_threshold",
}


def columns(stored):
  return [[row[key] for row in stored["rows"]] for key in ("predicted", "gold", "no_answer")]


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_each_answer_scores_as_the_official_script_says(version):
  for stored in STORED[version]:
    predicted, gold, _ = columns(stored)
    found = answers.rows(predicted, gold, version)
    assert found["exact_match"].tolist() == stored["exact"]
    assert found["f1"].tolist() == stored["f1"]


def test_version_1_totals():
  for stored in STORED["1.1"]:
    predicted, gold, _ = columns(stored)
    found = answers.scores(predicted, gold, version="1.1")
    assert found.pop("total") == len(gold)
    assert found == pytest.approx(stored["total"], abs=1e-10)


@pytest.mark.parametrize("index", range(len(STORED["2.0"])))
def test_version_2_totals_parts_and_best_thresholds(index):
  stored = STORED["2.0"][index]
  found = answers.scores(*columns(stored), stored["threshold"])
  expected = {OFFICIAL[name]: value for name, value in stored["total"].items()}
  assert set(found) == set(expected)
  assert found == pytest.approx(expected, abs=1e-10)


def test_the_record_is_awkward_enough():
  rows = [row for stored in STORED["2.0"] for row in stored["rows"]]
  texts = [t for row in rows for t in [*row["gold"], row["predicted"]]]
  assert any(not answers.normalise(t) for row in rows for t in row["gold"])
  assert any("😀" in t for t in texts) and any("我爱北京" in t for t in texts)
  assert any(not row["gold"] and row["predicted"] for row in rows)
  ties = [row["no_answer"] for row in STORED["2.0"][0]["rows"]]
  assert len(set(ties)) < len(ties)
  values = [v for stored in STORED["2.0"] for v in stored["f1"]]
  assert sum(0 < v < 1 for v in values) > 20
  thresholds = {stored["total"]["best_f1_thresh"] for stored in STORED["2.0"]}
  assert len(thresholds) > 3


def test_gold_as_prediction_scores_exactly_100():
  gold = [["the U.S.", "America"], ["我爱北京"], [], ["😀"], ["Café au lait", "coffee"]]
  for pick in (0, -1):
    predicted = [row[pick] if row else "" for row in gold]
    result = answers.scores(predicted, gold, no_answer=[0.0, 0.1, 0.9, 0.2, 0.0])
    assert [result[name] for name in answers.DIRECTIONS] == [100.0] * len(answers.DIRECTIONS)
  result = answers.scores([g[0] for g in gold if g], [g for g in gold if g], version="1.1")
  assert result == {"total": 4, "exact_match": 100.0, "f1": 100.0}


def test_without_no_answer_there_is_no_threshold():
  result = answers.scores(["", "x"], [[], ["x"]])
  assert not any(name.startswith("best_") for name in result)
  assert result["no_answer_f1"] == 100.0


def test_the_best_threshold_reaches_the_best_score():
  rng = np.random.default_rng(0)
  gold = [["x"] if rng.random() < 0.6 else [] for _ in range(60)]
  predicted = [rng.choice(["x", "y"]) for _ in gold]
  chance = [rng.beta(1, 2) if row else rng.beta(2, 1) for row in gold]
  result = answers.scores(predicted, gold, chance)
  at = result["best_f1_threshold"]
  assert answers.scores(predicted, gold, chance, at)["f1"] == pytest.approx(result["best_f1"])
  tried = [answers.scores(predicted, gold, chance, t)["f1"] for t in np.linspace(0, 1, 101)]
  assert max(tried) <= result["best_f1"] + 1e-9
  assert result["best_f1"] > result["f1"]


def test_an_answer_of_articles_alone():
  assert answers.rows(["The"], [["The"]], "2.0")["f1"].tolist() == [1.0]
  found = answers.rows(["The"], [["The"]], "1.1")
  assert found["exact_match"].tolist() == [1.0] and found["f1"].tolist() == [0.0]


def test_bad_input_is_named():
  for call, words in (
    (lambda: answers.scores([], []), "no question"),
    (lambda: answers.scores(["a"], [["a"], ["b"]]), "1 answers for 2 questions"),
    (lambda: answers.scores(["a", None], [["a"], ["b"]]), "question 1: answer None"),
    (lambda: answers.scores(["a"], ["a"]), "question 0: .* a text and a list"),
    (lambda: answers.scores(["a", ""], [["a"], []], version="1.1"), "question 1 has no gold"),
    (lambda: answers.scores(["a"], [["a"]], version="3"), "version '3'"),
    (lambda: answers.scores(["a"], [["a"]], [1.5]), "expected a probability"),
    (lambda: answers.scores(["a"], [["a"]], [-0.1]), "expected a probability"),
    (lambda: answers.scores(["a"], [["a"]], [np.nan]), "expected a probability"),
    (lambda: answers.scores(["a"], [["a"]], [0.1, 0.2]), "expected a probability"),
  ):
    with pytest.raises(JaxsftError, match=words):
      call()
