"""Findings by what rows say: duplicates, leakage, and labels that contradict each other."""

import re

import numpy as np

from jaxsft import tasks
from jaxsft.data.nearest import some
from jaxsft.doctor import parts
from jaxsft.doctor.codes import SHOWN, found

NOISE = re.compile(r"[\W_]+")
MOST = 60
"""Characters of an answer that are shown."""
JUDGED = ("classify", "tag", "answer")
"""Tasks in which the same text has the same answer."""


def check(prepared, examples, described):
  """Duplicates, leakage and conflicts, texts compared without case and spaces."""
  rows, keys = prepared.train.rows, np.asarray(described["train"].keys)
  first = _firsts(keys)
  twice = np.flatnonzero(first != np.arange(len(keys)))
  if len(twice):
    pairs = _ids(rows, twice, rows, first[twice])
    yield found(
      "duplicates",
      f"{len(twice):,} of {len(keys):,} training rows say what another says: "
      f"{_pairs(pairs, len(twice))}; unless their weight is meant, set clean.duplicates='drop' "
      "for those that are equal to the letter, clean.near_duplicates for others",
      [id for id, _ in pairs],
    )
  for name, part in parts.evaluated(prepared).items():
    others = np.asarray(described[name].keys)
    leaked = np.flatnonzero(np.isin(others, keys))
    fix = "set clean.overlap='drop'"
    if name != "held out":
      fix = "clean.benchmarks leaves out training rows by a file"
    if len(leaked):
      pairs = _ids(part.rows, leaked, rows, _places(keys, others[leaked]))
      yield found(
        "leakage",
        f"{len(leaked):,} of {len(part.rows):,} {parts.called(name)} say what a training row "
        f"says: {_pairs(pairs, len(leaked))}; their numbers will be too good: {fix}",
        [id for id, _ in pairs],
      )
  yield from conflicts(prepared, keys)


def near(prepared, described):
  """Rows that are equal but for punctuation, case and spaces, and not without.

  Takes longer than `check`; what `check` finds is not found again. described: of
  parts.all_described.
  """
  rows = prepared.train.rows
  exact, loose = np.asarray(described["train"].keys), _letters(rows)
  first = _firsts(loose)
  met = np.sort(np.unique(np.stack([loose, exact], 1), axis=0, return_index=True)[1])
  twice = met[first[met] != met]
  if len(twice):
    pairs = _ids(rows, twice, rows, first[twice])
    yield found(
      "near-duplicates",
      f"{len(twice):,} of {len(rows):,} training rows are nearly what another says: "
      f"{_pairs(pairs, len(twice))} (punctuation, case and spaces aside); look at some",
      [id for id, _ in pairs],
    )
  for name, part in parts.evaluated(prepared).items():
    others, own = _letters(part.rows), np.asarray(described[name].keys)
    leaked = np.flatnonzero(np.isin(others, loose) & ~np.isin(own, exact))
    if len(leaked):
      pairs = _ids(part.rows, leaked, rows, _places(loose, others[leaked]))
      yield found(
        "near-leakage",
        f"{len(leaked):,} of {len(part.rows):,} {parts.called(name)} are nearly what a "
        f"training row says: {_pairs(pairs, len(leaked))} (punctuation, case and spaces "
        "aside); look at some",
        [id for id, _ in pairs],
      )


def conflicts(prepared, keys):
  """Training rows of the same text whose answers differ; keys: audit.key of their texts."""
  if prepared.task not in [tasks.TASKS[name] for name in JUDGED]:
    return
  known, times = np.unique(keys, return_counts=True)
  repeated = set(known[times > 1].tolist())
  said, met, texts = {}, [], set()
  for row, key in zip(prepared.train.rows, keys.tolist(), strict=True) if repeated else ():
    if key not in repeated:
      continue
    first = said.setdefault(key, row)
    if _answer(first, prepared.task) != _answer(row, prepared.task):
      met.append((row, first))
      texts.add(key)
  if met:
    shown = "; ".join(_difference(row, first, prepared.task) for row, first in met[:2])
    yield found(
      "label-conflicts",
      f"{len(texts):,} texts stand in training rows with different answers: {shown}; correct "
      "the rows, or leave some out with data.keep",
      [row.id for pair in met for row in pair],
    )


def _answer(row, task):
  """The answer of a row as text; the order of labels does not count."""
  label = row.fields.get("label")
  if isinstance(label, list):
    return ", ".join(sorted(label)) or "(none)"
  return ", ".join(str(row.fields[name]) for name in task.GOLD if name in row.fields)


def _difference(row, other, task):
  """What two rows say of the same text; of words the first that they disagree on."""
  tags, others = row.fields.get("tags"), other.fields.get("tags")
  said, says = _answer(row, task), _answer(other, task)
  where = ""
  if tags and others and len(tags) == len(others):
    at = next(i for i, (a, b) in enumerate(zip(tags, others, strict=True)) if a != b)
    where, said, says = f" of {row.fields['tokens'][at]!r}", tags[at], others[at]
  cut = lambda text: text if len(text) <= MOST else f"{text[:MOST]}…"
  return f"{row.id} says {cut(said)}{where}, {other.id} says {cut(says)}"


def letters(text):
  """A hash of the letters and digits of a text, and of where its words end."""
  return hash(NOISE.sub(" ", text.casefold()).strip())


def _letters(rows):
  """[N] int64: `letters` of what each row says."""
  return np.fromiter((letters(parts.content(row)) for row in rows), np.int64, len(rows))


def _firsts(keys):
  """[N] int: where each key stands first."""
  _, first, which = np.unique(keys, return_index=True, return_inverse=True)
  return first[which]


def _places(keys, wanted):
  """The places where the first of the wanted keys stand first."""
  return [int(np.argmax(keys == key)) for key in wanted[:SHOWN]]


def _ids(rows, at, others, to):
  """[(id, id of the other)] of the first rows at some places, and of others they are like."""
  shown = zip(at[:SHOWN], to[:SHOWN], strict=True)
  return [(rows[i].id, others[j].id) for i, j in shown]


def _pairs(pairs, count):
  return some([f"{a} as {b}" for a, b in pairs[:3]], count)
