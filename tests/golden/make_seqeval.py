"""Writes seqeval.json: entities and scores that seqeval 1.2.2 finds in awkward tag sequences.

  python -m tests.golden.make_seqeval

seqeval is no dependency because its archive does not build beside a new setuptools-scm; with
`pip install 'setuptools<70' 'setuptools-scm<8'` and then `pip install --no-build-isolation
seqeval` it does.
"""

import json
import pathlib
import random
import warnings

FILE = pathlib.Path(__file__).with_name("seqeval.json")
PREFIXES = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}
TYPES = ("PER", "LOC", "creative-work")


def problem(scheme, seed):
  """(gold, predicted): sentences of any tags of a scheme, many of them broken."""
  rng = random.Random(f"{scheme} {seed}")

  def tag():
    prefix = rng.choice("O" + 2 * PREFIXES[scheme])
    bare = prefix == "O" or rng.random() < 0.1
    return prefix if bare else f"{prefix}-{rng.choice(TYPES[: 1 + seed % 3])}"

  lengths = [rng.randint(1, 9) for _ in range(5)]
  gold = [[tag() for _ in range(n)] for n in lengths]
  return gold, [[t if rng.random() < 0.8 else tag() for t in tags] for tags in gold]


def entities(tags, scheme, strict):
  """[type, start, end] of one sequence by seqeval, `end` beyond the last token."""
  from seqeval import scheme as schemes
  from seqeval.metrics import sequence_labeling

  if strict:
    found = schemes.Entities([tags], getattr(schemes, scheme)).entities[0]
    return [[e.tag, e.start, e.end] for e in found]
  return [[kind, start, end + 1] for kind, start, end in sequence_labeling.get_entities(tags)]


def scores(gold, predicted, scheme, strict):
  """{average or type: [precision, recall, F1, support]} by seqeval."""
  from seqeval import scheme as schemes
  from seqeval.metrics import sequence_labeling, v1

  report = sequence_labeling.precision_recall_fscore_support
  options = {"zero_division": 0}
  if strict:
    report = v1.precision_recall_fscore_support
    options["scheme"] = getattr(schemes, scheme)
  found = [entities(tags, scheme, strict) for tags in gold + predicted]
  kinds = sorted({kind for row in found for kind, _, _ in row})
  each = zip(*report(gold, predicted, average=None, **options), strict=True)
  result = dict(zip(kinds, each, strict=True))
  for average in ("micro", "macro", "weighted") if kinds else ():
    result[f"{average} avg"] = report(gold, predicted, average=average, **options)
  return {name: [float(x) for x in row] for name, row in result.items()}


def reference(scheme, seed, strict):
  gold, predicted = problem(scheme, seed)
  return {
    "gold": gold,
    "predicted": predicted,
    "entities": [entities(tags, scheme, strict) for tags in gold],
    "scores": scores(gold, predicted, scheme, strict),
  }


def cases():
  """(scheme, seed, strict); seqeval's lenient mode does not know L and U."""
  return [
    (scheme, seed, strict)
    for scheme in PREFIXES
    for strict in (False, True)
    for seed in range(4)
    if strict or scheme != "BILOU"
  ]


def name(scheme, seed, strict):
  return f"{scheme} {seed} {'strict' if strict else 'lenient'}"


def main():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    stored = {name(*case): reference(*case) for case in cases()}
  lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in stored.items())
  FILE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
  main()
