"""The metrics of `text` by their names: what generated answers are scored by."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxsft.metrics import statistics, text

DIRECTIONS = text.DIRECTIONS
NUMBERS = ("answer_accuracy", "format_accuracy", "last_number_accuracy")


def scores(
  predicted: Sequence[str],
  references: Sequence,
  names: Sequence[str],
  bleu_tokenizer: str = "13a",
) -> dict:
  """The metrics `names` of DIRECTIONS, with the "notes" and "undefined" of those asked for.

  references: for each row a text or a list of texts.
  """
  found, notes, undefined = {}, [], {}
  for asked, make in (
    (("bleu",), lambda *rows: text.bleu(*rows, bleu_tokenizer)),
    (("chrf",), text.chrf),
    (text.ROUGE, text.rouge),
    (("exact_match",), text.exact_match),
    (NUMBERS, text.number_match),
  ):
    if not set(asked) & set(names):
      continue
    numbers = make(predicted, references)
    notes += [note for note in numbers.pop("notes", ()) if _concerns(note, names)]
    undefined |= numbers.pop("undefined", {})
    found |= {k: v for k, v in numbers.items() if k in names or k not in DIRECTIONS}
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
  bleu_tokenizer: str = "13a",
) -> list[statistics.Measured]:
  """`statistics.Measured` of `names`, in their order, of the rows that are not None."""
  has = np.array([i for i, one in enumerate(predicted) if one is not None], int)
  pairs = [predicted[i] for i in has], [references[i] for i in has]
  rows = {}
  if set(text.ROUGE) & set(names):
    rows |= text.rouge_rows(*pairs)
  if set(NUMBERS) & set(names):
    rows |= text.number_rows(*pairs)
  if "exact_match" in names:
    rows["exact_match"] = text.exact_rows(*pairs)
  made = {name: statistics.mean(name, rows[name]) for name in names if name in rows}
  if "bleu" in names:
    made["bleu"] = statistics.bleu(*pairs, bleu_tokenizer)
  if "chrf" in names:
    made["chrf"] = statistics.chrf(*pairs)
  return [dataclasses.replace(made[name], at=has) for name in names]
