"""What generated answers are scored by: metrics of `text` and `answers` by their names."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxsft.metrics import answers, statistics, text

SQUAD = {"squad_exact_match": "exact_match", "squad_f1": "f1"}  # of answers, version 1.1
DIRECTIONS = dict.fromkeys(
  ("bleu", *text.CHRF_WORDS, *text.ROUGE, "exact_match", *SQUAD, *text.NUMBERS), "max"
)


def scores(
  predicted: Sequence[str],
  references: Sequence,
  names: Sequence[str],
  tokenizer: str = "13a",
  stemmer: bool = False,
) -> dict:
  """The metrics `names` of DIRECTIONS, with the "notes" and "undefined" of those asked for.

  references: for each row a text or a list of texts. tokenizer: of `text.bleu`; stemmer: of
  `text.rouge_rows`.
  """
  found, notes, undefined = {}, [], {}
  corpus = {"bleu": lambda *rows: text.bleu(*rows, tokenizer)}
  corpus |= {name: lambda *rows, name=name: text.chrf(*rows, name) for name in text.CHRF_WORDS}
  corpus |= dict.fromkeys(text.ROUGE, lambda *rows: text.rouge(*rows, stemmer))
  made = {make: None for name, make in corpus.items() if name in names}  # each once
  for make in made:
    numbers = make(predicted, references)
    notes += [note for note in numbers.pop("notes", ()) if _concerns(note, names)]
    undefined |= numbers.pop("undefined", {})
    found |= {k: v for k, v in numbers.items() if k in names or k not in DIRECTIONS}
  for name, (rows, scale) in _means(predicted, references, names).items():
    found[name] = scale * float(np.mean(rows))
  return (
    found
    | ({"notes": notes} if notes else {})
    | ({"undefined": undefined} if undefined else {})
  )


def _concerns(note, names):
  """Whether a note is about what was asked for, where it names a metric."""
  named = {name for name in DIRECTIONS if f"{name} " in note}
  return not named or bool(named & set(names))


def measured(
  predicted: Sequence[str | None],
  references: Sequence,
  names: Sequence[str],
  tokenizer: str = "13a",
  stemmer: bool = False,
) -> list[statistics.Measured]:
  """`statistics.Measured` of `names`, in their order, of the rows that are not None.

  The other arguments are those of `scores`.
  """
  has = np.array([i for i, one in enumerate(predicted) if one is not None], int)
  pairs = [predicted[i] for i in has], [references[i] for i in has]
  made = {}
  if set(text.ROUGE) & set(names):
    made |= {k: statistics.mean(k, v) for k, v in text.rouge_rows(*pairs, stemmer).items()}
  for name, (rows, scale) in _means(*pairs, names).items():
    made[name] = statistics.mean(name, rows, scale=scale)
  if "bleu" in names:
    made["bleu"] = statistics.bleu(*pairs, tokenizer)
  for name in set(text.CHRF_WORDS) & set(names):
    made[name] = statistics.chrf(*pairs, name)
  return [dataclasses.replace(made[name], at=has) for name in names]


def _means(predicted, references, names):
  """{name: ([n] values of the rows, scale of their mean)} of those of `names` without more."""
  found = {}
  if "exact_match" in names:
    found["exact_match"] = text.exact_rows(predicted, references), 1.0
  if set(SQUAD) & set(names):
    rows = answers.rows(predicted, text.lists_of(predicted, references), "1.1")
    found |= {name: (rows[SQUAD[name]], 100.0) for name in SQUAD if name in names}
  if set(text.NUMBERS) & set(names):
    rows = text.number_rows(predicted, references)
    found |= {name: (rows[name], 1.0) for name in text.NUMBERS if name in names}
  return found
