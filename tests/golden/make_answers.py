"""Writes what transformers' SQuAD decoding makes of logits, for tests/tasks/test_answer.py.

  python -m tests.golden.make_answers

Needs transformers 4: version 5 has no transformers.data.metrics.squad_metrics any more. The
logits are multiples of 1/4, so that equal scores occur; every token of a context is a word.
"""

import json
import pathlib
import tempfile
from types import SimpleNamespace

import numpy as np

FILE = pathlib.Path(__file__).with_name("answers.json")
WORDS = ("north", "river", "old", "stone", "king", "sea", "north", "red", "hill", "king", "oak")
# (words of the context, [(first word, words)] of windows, n_best, max answer length, threshold)
CASES = [
  (4, [(0, 4)], 20, 30, None),
  (4, [(0, 4)], 3, 30, None),
  (11, [(0, 6), (4, 6), (8, 3)], 20, 3, None),
  (11, [(0, 6), (4, 6), (8, 3)], 5, 2, 0.0),
  (11, [(0, 8), (5, 6)], 20, 30, 0.0),
  (11, [(0, 8), (5, 6)], 20, 30, -6.0),
  (11, [(0, 8), (5, 6)], 4, 1, 4.0),
  (6, [(0, 6)], 10, 4, 0.0),
]
DRAWS = 5


def draw(case, seed):
  """The windows of a case: [(tokens, word of the context or -1, [T,2] logits)]."""
  _, parts, *_ = CASES[case]
  rng, windows = np.random.default_rng([case, seed]), []
  for first, count in parts:
    words = [-1, -1, -1, -1, *range(first, first + count), -1]  # [CLS] who was [SEP] … [SEP]
    tokens = ["[CLS]", "who", "was", "[SEP]", *WORDS[first : first + count], "[SEP]"]
    logits = rng.integers(-12, 13, (len(tokens), 2)) / 4
    logits[0] += 2 * (seed % 3)  # more often that there is no answer
    windows.append((tokens, words, logits))
  return windows


def reference(case, seed):
  """What the reference predicts: its answer, n best with probabilities, null odds."""
  from transformers.data.metrics import squad_metrics

  size, _, n_best, longest, threshold = CASES[case]
  features, results = [], []
  for number, (tokens, words, logits) in enumerate(draw(case, seed)):
    mine = {t: word for t, word in enumerate(words) if word >= 0}
    features.append(
      SimpleNamespace(
        example_index=0,
        unique_id=number,
        tokens=tokens,
        token_to_orig_map=mine,
        token_is_max_context=dict.fromkeys(mine, True),
      )
    )
    start, end = logits.T.tolist()
    results.append(SimpleNamespace(unique_id=number, start_logits=start, end_logits=end))
  with tempfile.TemporaryDirectory() as directory:
    files = [f"{directory}/{name}.json" for name in ("answers", "n_best", "odds")]
    squad_metrics.compute_predictions_logits(
      [SimpleNamespace(qas_id="q", doc_tokens=list(WORDS[:size]))],
      features,
      results,
      n_best,
      longest,
      True,
      *files,
      False,
      threshold is not None,
      threshold,
      SimpleNamespace(convert_tokens_to_string=" ".join),
    )
    found = [json.loads(pathlib.Path(f).read_text())["q"] for f in files[:2]]
    odds = None
    if threshold is not None:
      odds = json.loads(pathlib.Path(files[2]).read_text())["q"]
  best = [[one["text"], one["probability"]] for one in found[1]]
  return {"case": case, "seed": seed, "answer": found[0], "n_best": best, "null_odds": odds}


def main():
  found = [reference(case, seed) for case in range(len(CASES)) for seed in range(DRAWS)]
  lines = ",\n".join(json.dumps(one) for one in found)
  FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
  main()
