"""Models compared on the same rows."""

import numpy as np
import pytest

from jaxsft import compare
from jaxsft.errors import JaxsftError
from jaxsft.metrics import statistics
from jaxsft.tasks import classify
from tests.found_rows import CONTEXT, found


def test_a_better_model_is_told_from_chance():
  rng = np.random.default_rng(0)
  gold = rng.integers(0, 2, 400)
  right = lambda share: np.where(rng.random(400) < share, 1, -1) * (2.0 * gold - 1)
  good, bad, same = right(0.9), right(0.7), None
  same = bad.copy()
  same[:3] *= -1
  systems = {
    "bad": (found(bad, gold), CONTEXT),
    "good": (found(good, gold), CONTEXT),
    "same": (found(same, gold), CONTEXT),
  }
  said = compare.compare(systems, classify)
  pairs = {(*p["models"], p["metric"]): p for p in said["pairs"]}
  better = pairs["bad", "good", "accuracy"]
  assert better["better"] == "system" and better["p_randomisation"] < 0.01
  assert better["p_mcnemar"] < 0.01 and better["low"] > 0
  chance = pairs["bad", "same", "accuracy"]
  assert chance["p_randomisation"] > 0.05 and chance["p_mcnemar"] > 0.05
  shown = "\n".join(compare.table(said))
  assert "good - bad: accuracy" in shown and "good is better, beyond chance" in shown
  assert "which may be chance" in shown and "400 rows" in shown


def test_models_are_compared_on_the_rows_that_all_could_take():
  gold = [1, 0, 1, 0]
  whole, part = found([1.0, -1, 1, 1], gold), found([1.0, -1, 1, 1], gold)[1:]
  said = compare.compare({"a": (whole, CONTEXT), "b": (part, CONTEXT)}, classify)
  assert (said["rows"], said["left_out"]) == (3, 1)
  assert all(pair["difference"] == 0 and pair["better"] is None for pair in said["pairs"])
  other = found([1.0], [1], name="x")
  with pytest.raises(JaxsftError, match="no held-out row in common"):
    compare.compare({"a": (whole, CONTEXT), "b": (other, CONTEXT)}, classify)


def test_right_sentences_are_no_right_words():
  """The exact test is of rows that are right or wrong, not of shares within them."""
  shares = lambda hits: statistics.share("accuracy", hits, [10.0] * len(hits))
  assert compare._mcnemar(shares([9, 10]), shares([10, 9])) == {}
  assert compare._mcnemar(*[statistics.accuracy([1, 0], [1, 1])] * 2)["p_mcnemar"] == 1


def test_what_cannot_be_compared_is_said():
  rows = {"rows": 2, "left_out": 0, "metrics": {}}
  pair = {"models": ["a", "b"], "metric": "perplexity"}
  none = pair | {"difference": None, "better": None, "p_randomisation": None, "n": 2}
  shown = compare.table(rows | {"pairs": [pair | {"not_compared": "why"}, none]})
  assert shown[1:] == [
    "b - a: perplexity is not compared: why",
    "b - a: perplexity is undefined on these rows",
  ]
