"""Findings by what rows say: duplicates, leakage, and labels that contradict each other."""

import re

from jaxsft import tasks
from jaxsft.data.nearest import some
from jaxsft.doctor import parts
from jaxsft.doctor.codes import found

NOISE = re.compile(r"[\W_]+")
MOST = 60
"""Characters of an answer that are shown."""
JUDGED = ("classify", "tag", "answer")
"""Tasks in which the same text has the same answer."""


def check(prepared, examples, described):
  """Duplicates, leakage and conflicts, texts compared without case and spaces."""
  train = prepared.train
  ids = [row.id for row in train.rows]
  keys = [plain(text) for text in described["train"].texts]
  first = _first(keys, ids)
  twice = [(id, first[key]) for id, key in zip(ids, keys, strict=True) if first[key] != id]
  if twice:
    yield found(
      "duplicates",
      f"{len(twice):,} of {len(ids):,} training rows say what another says: {_pairs(twice)}; "
      "unless their weight is meant, set clean.duplicates='drop' for those that are equal to "
      "the letter, clean.near_duplicates for others",
      [id for id, _ in twice],
    )
  for name, part in parts.evaluated(prepared).items():
    pairs = zip(part.rows, described[name].texts, strict=True)
    leaked = [(row.id, first[k]) for row, text in pairs if (k := plain(text)) in first]
    fix = "set clean.overlap='drop'"
    if name != "held out":
      fix = "clean.benchmarks leaves out training rows by a file"
    if leaked:
      yield found(
        "leakage",
        f"{len(leaked):,} of {len(part.rows):,} {parts.called(name)} say what a training row "
        f"says: {_pairs(leaked)}; their numbers will be too good: {fix}",
        [id for id, _ in leaked],
      )
  yield from conflicts(prepared, keys)


def near(prepared):
  """Rows that are equal but for punctuation, case and spaces, and not without.

  Takes longer than `check`; what `check` finds is not found again.
  """
  rows = prepared.train.rows
  texts = [parts.content(row) for row in rows]
  exact, ids = {plain(text) for text in texts}, [row.id for row in rows]
  seen, twice = {}, []
  for id, text in zip(ids, texts, strict=True):
    key, own = letters(text), plain(text)
    if key in seen and own not in seen[key][1]:
      twice.append((id, seen[key][0]))
    seen.setdefault(key, (id, set()))[1].add(own)
  if twice:
    yield found(
      "near-duplicates",
      f"{len(twice):,} of {len(ids):,} training rows are nearly what another says: "
      f"{_pairs(twice)} (punctuation, case and spaces aside); look at some",
      [id for id, _ in twice],
    )
  for name, part in parts.evaluated(prepared).items():
    leaked = []
    for row in part.rows:
      text = parts.content(row)
      if (key := letters(text)) in seen and plain(text) not in exact:
        leaked.append((row.id, seen[key][0]))
    if leaked:
      yield found(
        "near-leakage",
        f"{len(leaked):,} of {len(part.rows):,} {parts.called(name)} are nearly what a "
        f"training row says: {_pairs(leaked)} (punctuation, case and spaces aside); look at "
        "some",
        [id for id, _ in leaked],
      )


def conflicts(prepared, keys):
  """Training rows of the same text whose answers differ; keys: `plain` of their texts."""
  if prepared.task not in [tasks.TASKS[name] for name in JUDGED]:
    return
  said, met, texts = {}, [], set()
  for row, key in zip(prepared.train.rows, keys, strict=True):
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


def plain(text):
  """A hash of the text without case and spaces."""
  return hash(" ".join(text.casefold().split()))


def letters(text):
  """A hash of the letters and digits of a text, and of where its words end."""
  return hash(NOISE.sub(" ", text.casefold()).strip())


def _first(keys, ids):
  """{key: id of the first row that has it}."""
  first = {}
  for key, id in zip(keys, ids, strict=True):
    first.setdefault(key, id)
  return first


def _pairs(pairs):
  return some([f"{a} as {b}" for a, b in pairs[:3]], len(pairs))
