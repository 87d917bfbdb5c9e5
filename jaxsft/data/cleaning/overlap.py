"""Training rows that say again what is measured: held-out rows, and texts of benchmarks."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxsft.data import nearest, read, scripts, spool
from jaxsft.data.cleaning import fields, near, record
from jaxsft.errors import JaxsftError

SHOWN = 3
"""Pairs of rows that a warning names."""


def apart(
  train: Sequence[read.Row],
  held_out: Sequence[read.Row],
  task: Any,
  settings: Any,
  noted: record.Record,
) -> tuple[Sequence[read.Row], list[str]]:
  """(the training rows that stay, warnings) by `settings.overlap`, of a config's `clean` group.

  A row overlaps that says what a held-out one says, case and spaces aside, or, where
  `settings.near_duplicates` is set, nearly so. Raises JaxsftError where that is an "error".
  """
  if settings.overlap == "warn" and settings.near_duplicates is None:
    return train, []  # the report counts equal texts by itself
  names = fields.asking(task) or task.TEXTS
  key = lambda row: fields.folded(row.fields, names)
  index = None if settings.near_duplicates is None else near.Index(settings.near_duplicates)
  held: dict[bytes, int] = {}
  for i, row in enumerate(held_out):
    text = key(row)
    if held.setdefault(fields.digest(text), i) == i and index is not None:
      index.add(text, i)
  met, nearly = {}, []  # {training row: held-out row}, and those of which that is nearly so
  for i, row in enumerate(train):
    text = key(row)
    other = held.get(fields.digest(text))
    if other is None and index is not None:
      other = index.find(text)
      nearly += [] if other is None else [i]
    if other is not None:
      met[i] = other
  if settings.overlap == "warn":
    pairs = [f"{train[i].id} and {held_out[met[i]].id}" for i in nearly[:SHOWN]]
    said = f"{len(nearly):,} training rows nearly equal held-out rows: "
    return train, [said + nearest.some(pairs, len(nearly))] if nearly else []
  if met and settings.overlap == "error":
    i = min(met)
    raise JaxsftError(
      f"{len(met)} training rows are held out too, or nearly so: {train[i].where} and "
      f"{held_out[met[i]].where}; remove them, or set config.clean.overlap to 'drop' or 'warn'"
    )

  def stays() -> Iterator[read.Row]:
    for i, row in enumerate(train):
      if i not in met:
        yield row
        continue
      said = " | ".join(fields.texts(row.fields, names))
      noted.leave("overlap with held-out rows", row, said)

  return spool.Spool(stays()), []


def unknown_to(
  train: Sequence[read.Row],
  task: Any,
  benchmarks: dict[str, list[str]],
  ngram: int,
  noted: record.Record,
) -> tuple[Sequence[read.Row], list[str]]:
  """(training rows that share no run of `ngram` words with a benchmark, warnings).

  benchmarks: name -> its texts. Words are compared without case and punctuation, as in
  arXiv:2005.14165, appendix C; there too 13 is the longest run that is asked for.
  """
  known: dict[str, str] = {}
  warnings = []
  for name, texts in benchmarks.items():
    short = 0
    for text in texts:
      found = list(runs(text, ngram))
      short += not found
      for run in found:
        known.setdefault(run, name)
    if short:
      warnings.append(
        f"{short:,} of {len(texts):,} texts of {name} have fewer than {ngram} words and were "
        "not looked for (config.clean.ngram)"
      )

  def stays():
    for row in train:
      both = [fields.texts(row.fields, task.TEXTS, deep) for deep in (False, True)]
      found = _shared([*both[0], *both[1]], ngram, known)
      if found is None:
        yield row
      else:
        noted.leave(f"{ngram} words in a row of {known[found]}", row, found)

  return spool.Spool(stays()), warnings


def _shared(texts: Sequence[str], ngram: int, known: dict[str, str]) -> str | None:
  """The first run of words that is known."""
  return next((run for text in texts for run in runs(text, ngram) if run in known), None)


def runs(text: str, count: int) -> Iterator[str]:
  """All runs of `count` words of a text; characters of scripts without spaces are words."""
  words: list[str] = []
  for word in re.findall(r"\w+", text.casefold()):
    parts, plain = [], ""
    for c in word:
      if scripts.unspaced(c):
        parts += [plain, c] if plain else [c]
        plain = ""
      else:
        plain += c
    words += [*parts, plain] if plain else parts
  for i in range(len(words) - count + 1):
    yield " ".join(words[i : i + count])
