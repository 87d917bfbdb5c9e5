"""Writes squad.json: what the official SQuAD scripts say of awkward answers.

  python -m tests.golden.make_squad evaluate-v1.1.py

Run where transformers 4 is installed, whose `squad_metrics` is the script of version 2.0; that
of version 1.1 (github.com/allenai/bi-att-flow, squad/evaluate-v1.1.py) is a file to be given.
"""

import contextlib
import importlib.util
import json
import pathlib
import random
import sys
import tempfile
import types

FILE = pathlib.Path(__file__).with_name("squad.json")
WORDS = (
  "the", "The", "a", "An", "an", "Paris", "paris", "café", "Café", "U.S.", "us", "word-word",
  "$5", "5", "?", "—", "“quoted”", "quoted", "it's", "its", "😀", "我爱北京", "北京", "我 爱",
  "İstanbul", "istanbul", "straße", "\u00a0", "\t", "\n", "\u200b", "theme", "x.the.y", "the中",
  "—the—",
)  # fmt: skip


def questions(seed, unanswerable):
  """[{"gold": [...], "predicted", "no_answer"}] of texts made of WORDS."""
  rng = random.Random(seed)

  def text():
    separator = rng.choice((" ", " ", " ", ", ", ""))
    return separator.join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))

  found = []
  for _ in range(30):
    gold = [text() for _ in range(rng.randint(1, 3))]
    near = rng.choice(gold)
    part = " ".join(w for w in near.split() if rng.random() < 0.7)
    predicted = rng.choice([near, near.lower(), part, f"{near} {text()}", text(), ""])
    if unanswerable and rng.random() < 0.4:
      gold, predicted = [], rng.choice(["", "", text()])
    good = bool(gold) and predicted in (near, near.lower())
    no_answer = rng.random() * (0.6 if good else 1.0)
    no_answer = rng.choice([round(no_answer, 1), no_answer])
    found.append({"gold": gold, "predicted": predicted, "no_answer": no_answer})
  return found


def by_version_2(rows, threshold):
  from transformers.data.metrics import squad_metrics

  examples = [
    types.SimpleNamespace(qas_id=i, answers=[{"text": t} for t in row["gold"]])
    for i, row in enumerate(rows)
  ]
  predicted = {i: row["predicted"] for i, row in enumerate(rows)}
  chances = {i: row["no_answer"] for i, row in enumerate(rows)}
  exact, f1 = squad_metrics.get_raw_scores(examples, predicted)
  return {
    "exact": [exact[i] for i in range(len(rows))],
    "f1": [f1[i] for i in range(len(rows))],
    "total": dict(squad_metrics.squad_evaluate(examples, predicted, chances, threshold)),
  }


def by_version_1(rows, script):
  spec = importlib.util.spec_from_file_location("evaluate_v1", script)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  asked = [
    {"id": str(i), "question": "", "answers": [{"text": t} for t in row["gold"]]}
    for i, row in enumerate(rows)
  ]
  data = [{"title": "", "paragraphs": [{"context": "", "qas": asked}]}]
  best = module.metric_max_over_ground_truths
  with contextlib.chdir(tempfile.mkdtemp()):  # it writes incorrect.json where it runs
    total = module.evaluate(data, {str(i): row["predicted"] for i, row in enumerate(rows)})
  return {
    "exact": [int(best(module.exact_match_score, r["predicted"], r["gold"])) for r in rows],
    "f1": [best(module.f1_score, r["predicted"], r["gold"]) for r in rows],
    "total": total,
  }


def main():
  script = pathlib.Path(sys.argv[1]).resolve()
  stored = {"1.1": [], "2.0": []}
  for seed in range(3):
    rows = questions(seed, unanswerable=False)
    stored["1.1"].append({"rows": rows, **by_version_1(rows, script)})
  for seed, threshold in ((3, 1.0), (4, 0.5), (5, 0.3), (6, 0.25), (7, 0.0)):
    rows = questions(seed, unanswerable=True)
    stored["2.0"].append(
      {"rows": rows, "threshold": threshold, **by_version_2(rows, threshold)}
    )
  for seed, kept in ((8, True), (9, False)):  # only questions with, only without an answer
    rows = [r for r in questions(seed, unanswerable=True) if bool(r["gold"]) == kept]
    stored["2.0"].append({"rows": rows, "threshold": 0.5, **by_version_2(rows, 0.5)})
  lines = ",\n".join(
    f"{json.dumps(v)}: [\n" + ",\n".join(json.dumps(x) for x in stored[v]) + "\n]"
    for v in stored
  )
  FILE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
  main()
