"""The sets of prepared data as plain values: what the report and the findings are made of."""

import collections

import numpy as np

from jaxsft import labels, sources
from jaxsft.data import audit, control, forms, store

CONTENT = (
  *forms.FIELDS,
  "text_pair",
  "question",
  "context",
  "source",
  "target",
  "targets",
  "tokens",
)
"""Fields by which rows say the same."""


def examples_of(prepared):
  """{"train", "held out", those of evaluate.sets: `encoding.Examples`}; held out only where
  there are such rows."""
  return {"train": prepared.train, **evaluated(prepared)}


def evaluated(prepared):
  """{set: `encoding.Examples`} of all rows that are measured."""
  held_out = {} if prepared.held_out is None else {"held out": prepared.held_out}
  return held_out | {name: part for name, (part, _) in prepared.sets.items()}


def called(name):
  """What a sentence calls the rows of one of `examples_of`."""
  return f"{name} rows" if name in ("train", "held out") else sources.called(name)


def all_described(prepared):
  """{set: audit.Examples} of `examples_of`."""
  return {name: described(part, prepared) for name, part in examples_of(prepared).items()}


def described(part, prepared):
  """audit.Examples of one part."""
  task, context = prepared.task, prepared.context
  values, counted, unit = part.store.values, {}, "tokens"
  if "label" in values or task.HEAD == "token":
    unit = "labels" if "label" in values else "words"
    if context.label_type != "number":
      counts = labels.counts(part.store, len(context.labels)).tolist()
      counted = {name: n for name, n in zip(context.labels, counts, strict=True) if n}
    if none := labels.unlabelled(part.store):
      counted["(none)"] = none
  if "start" in values:  # windows: their first token stands for no answer
    none, unit = int(np.sum(np.asarray(values["start"]) == 0)), "windows"
    counted = {"answer": len(part.store) - none, "no answer": none}
  chats, taken = task.HEAD == "lm" and not task.SOURCE, np.zeros(len(part.rows), bool)
  taken[values["row"]] = True
  keys = np.empty(len(part.rows), np.int64)
  written, of_sets = collections.Counter(), collections.Counter()
  for i, row in enumerate(part.rows):
    keys[i] = audit.key(content(row))
    if chats:
      written[forms.form(row.fields)] += 1
    if row.part and taken[i]:
      of_sets[row.part] += 1
  return audit.Examples(
    ids=part.store.ids,
    lengths=part.store.lengths,
    supervised=store.supervised(part.store),
    keys=keys,
    unit=unit,
    rows=int(taken.sum()),
    labels=counted,
    forms=dict(written),
    parts=dict(of_sets),
    **by_kind(part.counts["notes"]),
  )


def content(row):
  """What a row says, as one text: that of every field, with a mark between them."""
  parts = [" ".join(control.texts(row.fields.get(name))).strip() for name in CONTENT]
  return " ␟ ".join(parts)


def by_kind(notes):
  """{"dropped", "truncated", "noted": {note: rows}} of the notes of `Examples.counts`."""
  kinds = {"dropped": {}, "truncated": {}, "noted": {}}
  for note, n in notes.items():
    kinds[next((kind for kind in kinds if note.startswith(kind)), "noted")][note] = n
  return kinds
