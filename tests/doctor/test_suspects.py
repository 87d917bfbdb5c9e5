"""Label suspects: the rule against cleanlab, the search against labels that were flipped."""

import json
import pathlib

import numpy as np
import pytest

from jaxsft.doctor import suspects
from tests.doctor import test_findings
from tests.tiny_rows import BAD, FILLERS, GOOD

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "suspects.json"


@pytest.mark.parametrize("case", range(4))
def test_label_errors_and_their_rank_are_those_of_cleanlab(case):
  golden = json.loads(GOLDEN.read_text("utf-8"))[case]
  p = np.array(golden["probabilities"])
  found = suspects.confident_learning(golden["labels"], p / p.sum(1, keepdims=True))
  assert len(golden["errors"]) >= 3
  assert found.tolist() == golden["errors"]


def test_a_class_that_no_row_has_is_never_likely():
  p = np.array([[0.1, 0.2, 0.7]] * 4 + [[0.6, 0.3, 0.1]] * 4)
  assert suspects.confident_learning([0] * 4 + [1] * 4, p).tolist() == [4, 5, 6, 7]


def sentences(count=400, seed=0):
  """Rows whose words say the label, as reviews do: most of three words are of its side."""
  rng, rows = np.random.default_rng(seed), []
  for _ in range(count):
    good = bool(rng.integers(0, 2))
    own, other = (GOOD, BAD) if good else (BAD, GOOD)
    words = [*rng.choice(FILLERS, 6), *rng.choice(own, 3), *rng.choice(other, 1)]
    rows.append({"text": " ".join(rng.permutation(words)), "label": "pos" if good else "neg"})
  return rows


def flipped(rows, share=0.1, seed=1):
  at = np.random.default_rng(seed).random(len(rows)) < share
  turn = {"pos": "neg", "neg": "pos"}
  rows = [
    row | {"label": turn[row["label"]]} if f else row for row, f in zip(rows, at, strict=True)
  ]
  return rows, {f"r{i}" for i in np.flatnonzero(at)}


def test_flipped_labels_are_found(prepared):
  """One in ten is wrong: nine of ten of these are found, and nine of ten found are wrong."""
  rows, wrong = flipped(sentences())
  data, _ = prepared("classify", rows)
  found = suspects.search(data)
  ids = {one.id for one in found.suspects}
  assert found.judged == found.total == 400 and found.count == len(ids)
  precision, recall = len(ids & wrong) / len(ids), len(ids & wrong) / len(wrong)
  assert precision >= 0.9 and recall >= 0.9, (precision, recall, len(wrong))
  assert {one.set for one in found.suspects} == {"train", "held out"}
  assert found == suspects.search(data)  # the same again
  (finding,) = suspects.finding(found)
  assert finding.grade == "notes" and finding.rows[0] == found.suspects[0].id


def test_right_labels_are_left_alone(prepared):
  data, _ = prepared("classify", sentences())
  found = suspects.search(data)
  assert found.count <= 8  # 2 % of the rows


def test_wrong_tags_are_found(prepared):
  rng, rows = np.random.default_rng(0), []
  for _ in range(120):
    kind = str(rng.choice(["GOOD", "BAD"]))
    before, after = rng.choice(FILLERS, 3), rng.choice(FILLERS, 2)
    word = str(rng.choice(GOOD if kind == "GOOD" else BAD))
    tags = ["O"] * 3 + [f"B-{kind}"] + ["O"] * 2
    rows.append({"tokens": [*map(str, before), word, *map(str, after)], "tags": tags})
  for i in range(0, 120, 12):
    rows[i]["tags"][3] = {"B-GOOD": "B-BAD", "B-BAD": "B-GOOD"}[rows[i]["tags"][3]]
  found = suspects.search(prepared("tag", rows)[0])
  ids = [one.id for one in found.suspects]
  wrong = {f"r{i}" for i in range(0, 120, 12)}
  assert found.unit == "words" and found.judged == 120 * 6
  assert len(wrong & set(ids)) >= 4 and set(ids) <= wrong
  assert all("⟦" in one.text for one in found.suspects)


def test_a_sample_is_said_and_chosen_by_ids(prepared, monkeypatch):
  data, _ = prepared("classify", sentences(200))
  monkeypatch.setattr(suspects, "ROWS", 60)
  found = suspects.search(data)
  assert (found.judged, found.total) == (60, 200)
  monkeypatch.setattr(suspects, "CELLS", 100)
  assert suspects.search(data).judged == 50
  monkeypatch.setattr(suspects, "CHARACTERS", 1500)
  assert 20 <= suspects.search(data).judged < 45


@pytest.mark.parametrize("kind", ["multi", "number", "chat"])
def test_nothing_is_judged_without_one_label_a_row(prepared, kind):
  rows = {
    "multi": [{"text": test_findings.text(i), "label": ["a"]} for i in range(30)],
    "number": test_findings.numbers(range(30)),
    "chat": test_findings.chats(),
  }[kind]
  found = suspects.search(prepared(kind, rows)[0])
  assert found is None and list(suspects.finding(found)) == []


def test_too_few_rows_are_not_judged(prepared):
  found = suspects.search(prepared("classify", sentences(12))[0])
  assert (found.judged, found.total, found.count) == (0, 12, 0)
  assert "12 rows with 2 labels are too few" in found.why


def test_folds_are_even_and_keep_groups_together():
  groups = [f"g{i // 2}" for i in range(400)]
  strata = np.array([i // 2 % 4 == 0 for i in range(400)])
  folds = suspects.folds_of(groups, strata)
  assert all(folds[i] == folds[i + 1] for i in range(0, 400, 2))
  assert np.bincount(folds[strata]).tolist() == [20] * 5  # 100 of the rarer stratum
  assert np.bincount(folds).tolist() == [80] * 5
