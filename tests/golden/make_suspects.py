"""Writes suspects.json: label errors by cleanlab 2.9.0 (pip install cleanlab), an oracle.

python tests/golden/make_suspects.py
"""

import json
import pathlib

import numpy as np

PLACES = 4


def case(seed, count, classes, noise, spread, lift=3):
  """Labels of which some are wrong, and probabilities that mostly know better.

  lift: how sure they are of the true class; [classes], or the same for all.
  """
  rng = np.random.default_rng(seed)
  true = rng.integers(0, classes, count)
  logits = rng.normal(size=(count, classes)) * spread
  logits[np.arange(count), true] += np.broadcast_to(lift, classes)[true]
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  wrong = rng.random(count) < noise
  labels = np.where(wrong, (true + 1 + rng.integers(0, classes - 1, count)) % classes, true)
  return labels, np.round(p, PLACES)


def main():
  from cleanlab import filter

  cases = []
  uneven = (0, 60, 3, 0.1, 1.0, (4, 0, 0))  # sure of one class alone
  for args in ((0, 80, 2, 0.1, 1.2), (1, 90, 5, 0.15, 1.5), (2, 60, 3, 0.0, 2.5), uneven):
    labels, p = case(*args)
    errors = filter.find_label_issues(
      labels,
      p / p.sum(1, keepdims=True),
      filter_by="confident_learning",
      return_indices_ranked_by="normalized_margin",
      n_jobs=1,
    )
    found = {"labels": labels.tolist(), "probabilities": p.tolist()}
    cases.append(found | {"errors": errors.tolist()})
  path = pathlib.Path(__file__).with_name("suspects.json")
  path.write_text(json.dumps(cases, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
