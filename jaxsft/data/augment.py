"""Changed copies of training rows: words left out, exchanged, replaced, texts put in frames.

What a copy is like follows from the seed, the row's id and the copy's number alone. Words that
a row points at, by entities, answers or tags, stay, in their order.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsft.data import clean, prompt, read
from jaxsft.data.cleaning import edits, fields, record
from jaxsft.errors import JaxsftError, UsageError

Synonyms = Mapping[str, Sequence[str]]
CORE = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
SAME = "left without a copy: nothing changed"
NONE = "left without a copy: no text of it may change"


class Copier(NamedTuple):
  """What makes copies."""

  settings: Any
  """A config's `augment` group."""
  seed: int
  synonyms: Synonyms
  templates: Sequence[prompt.Template]
  """Of `settings.templates`."""


def copier(settings: Any, seed: int) -> Copier:
  """`Copier` of a config's `augment` group; raises UsageError for what its keys name."""
  synonyms = read_synonyms(settings.synonyms) if settings.synonyms else {}
  templates = []
  for i, given in enumerate(settings.templates):
    one = prompt.template(i, given, "config.augment.templates")
    if not one.names:
      raise UsageError(
        f"{one.key}: {given!r} names no field, expected one as in {{{{ text }}}}"
      )
    templates.append(one)
  return Copier(settings, seed, synonyms, templates)


def copies(
  rows: Sequence[read.Row],
  task: Any,
  make: Copier,
  taken: set[str],
  noted: record.Record,
  translated: Mapping[str, str] | None = None,
) -> Iterator[read.Row]:
  """The copies of all rows, in their order, made as they are read; noted: how many there are,
  and of which none are.

  taken: ids of all rows, which a copy must not have. translated: text -> what copies begin
  with in its place. Raises JaxsftError for an id that is taken.
  """
  for row in map(fields.plain, rows):
    seen = [row.fields | _starts(row, task)]  # to be joined is no change
    for number in range(1, make.settings.copies + 1):
      id = f"{row.id}~{number}"
      if id in taken:
        raise JaxsftError(
          f"{row.where}: a copy of the row {row.id!r} would have the id {id!r} of another row; "
          "rename that one, or set config.augment.copies to 0"
        )
      new = _copy(row, number, task, make, translated or {})
      if new in seen:
        why = SAME if _changeable(row, task) else NONE
        noted.add(why, row, _shown(row.fields, task))
        continue
      seen.append(new)
      where = f"{row.where} (copy {number})"
      noted.add(
        "copies made by augmentation", row, *(_shown(f, task) for f in (row.fields, new))
      )
      yield row._replace(id=id, where=where, fields=new)


def texts(row: read.Row, task: Any) -> list[str]:
  """The texts of a row that its copies begin with."""
  return list(_starts(fields.plain(row), task).values())


def _changeable(row: read.Row, task: Any) -> bool:
  """Whether a row has a text, or a word outside of all entities, that copies may change."""
  if _tagged(row, task):
    return "O" in (row.fields.get("tags") or ())
  return bool(_starts(row, task))


def _tagged(row: read.Row, task: Any) -> bool:
  return "tokens" in task.AUGMENTED and row.fields.get("tokens") is not None


def _starts(row: read.Row, task: Any) -> dict[str, str]:
  """Field -> its text, of those that copies change; lists of sentences are joined as a source
  is when it is read.
  """
  found = {name: row.fields.get(name) for name in task.AUGMENTED}
  source = found.get("source")
  if isinstance(source, list) and all(isinstance(one, str) for one in source):
    found["source"] = clean.joined(source)
  return {name: text for name, text in found.items() if isinstance(text, str)}


def _shown(found: dict[str, Any], task: Any) -> str:
  return " ".join(fields.texts(found, task.AUGMENTED))


def _copy(row, number, task, make, translated) -> dict[str, Any]:
  """The fields of one copy."""
  rng = rng_of(make.seed, row.id, number)
  start = _starts(row, task)
  names = list(start)
  start = {name: translated.get(text, text) for name, text in start.items()}
  row = row._replace(fields=row.fields | start)
  tagged = _tagged(row, task)
  change = lambda one, spans: noisy(one, spans, rng, make)
  found = row.fields | _noisy_tokens(row, rng, make) if tagged else row.fields
  if not tagged:
    found = fields.changed(row, task, names, change).fields
  if make.templates and names:
    one = make.templates[int(rng.integers(len(make.templates)))]
    found = prompt.fill(row._replace(fields=found), {names[0]: one}).fields
  return found


def rng_of(seed: int, id: str, number: int) -> np.random.Generator:
  """What a copy is drawn with."""
  key = json.dumps([seed, id, number]).encode()
  return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:16]))


def noisy(
  text: str, spans: Sequence[edits.Span], rng: np.random.Generator, make: Copier
) -> tuple[str, list[edits.Span]]:
  """A text with its words dropped, replaced and exchanged, and where its spans are then.

  Words that share a character with a span stay.
  """
  places = [match.span() for match in re.finditer(r"\S+", text)]
  fixed = [any(a < end and start < b for a, b in spans) for start, end in places]
  new = _noisy_words([text[a:b] for a, b in places], fixed, rng, make)
  found: list[edits.Edit] = []
  for i, ((start, end), word) in enumerate(zip(places, new, strict=True)):
    if word is None:
      found.append((start, places[i + 1][0] if i + 1 < len(places) else len(text), ""))
    elif word != text[start:end]:
      found.append((start, end, word))
  after = edits.apply(text, found)
  last = bool(new) and new[-1] is None
  return (after.rstrip() if last else after), edits.moved(spans, found)


def _noisy_words(words, fixed, rng, make, runs=()) -> list[str | None]:
  """The words of a copy, None for one that is dropped; at least one stays, also in each of
  `runs` (lists of indices).
  """
  s = make.settings
  draws = rng.random((len(words), 4))
  new: list[str | None] = list(words)
  for i, word in enumerate(words):
    if fixed[i]:
      continue
    if draws[i, 0] < s.drop:
      new[i] = None
    elif draws[i, 1] < s.replace:
      new[i] = _synonym(word, make.synonyms, draws[i, 2])
  for run in (*runs, range(len(words))):
    if run and all(new[i] is None for i in run):
      new[run[0]] = words[run[0]]
  i = 0
  while i + 1 < len(words):
    both = not (fixed[i] or fixed[i + 1] or new[i] is None or new[i + 1] is None)
    if both and draws[i, 3] < s.swap:
      new[i], new[i + 1] = new[i + 1], new[i]
      i += 1
    i += 1
  return new


def _synonym(word: str, synonyms: Synonyms, draw: float) -> str:
  """Another word in the place of one, with the marks around it and its capital."""
  before, core, after = CORE.fullmatch(word).groups()
  others = synonyms.get(core.lower())
  if not others:
    return word
  other = others[int(draw * len(others))]
  return before + (other[:1].upper() + other[1:] if core[:1].isupper() else other) + after


def _noisy_tokens(row: read.Row, rng: np.random.Generator, make: Copier) -> dict[str, Any]:
  """Tokens and tags of a copy: only words that are no part of anything ("O") differ."""
  tokens, tags = row.fields["tokens"], row.fields.get("tags")
  lists = isinstance(tokens, list) and isinstance(tags, list) and len(tags) == len(tokens)
  if not lists or not all(isinstance(token, str) for token in tokens):
    return {}
  fixed = [tag != "O" for tag in tags]
  runs, run = [], []
  for i, stays in enumerate([*fixed, True]):
    if not stays:
      run.append(i)
    elif run:
      runs += [run] if run[0] > 0 and i < len(tokens) else []  # between two entities
      run = []
  new = _noisy_words(tokens, fixed, rng, make, runs)
  pairs = [(word, tag) for word, tag in zip(new, tags, strict=True) if word is not None]
  return {"tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}


def read_synonyms(path: str) -> dict[str, list[str]]:
  """{word in small letters: others} of a JSON or TSV file."""
  key = "config.augment.synonyms"
  try:
    with open(path, encoding="utf-8", newline="") as file:
      if path.endswith(".json"):
        found = json.load(file)
      else:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        found = {words[0]: [w for w in words[1:] if w] for words in lines if words}
  except OSError as error:
    raise UsageError(f"{key}: {path} cannot be read ({error.strerror})") from error
  except ValueError as error:
    raise UsageError(f"{key}: {path} is neither JSON nor TSV in UTF-8 ({error})") from error
  good = isinstance(found, dict) and found
  for word, others in found.items() if good else ():
    listed = isinstance(others, list) and others and all(isinstance(o, str) for o in others)
    if not listed or not all(o.strip() for o in others) or not word.strip():
      raise UsageError(
        f"{key}: {path} has {others!r} for {word!r}, expected a list of at least one other word"
      )
  if not good:
    raise UsageError(
      f'{key}: {path} has no words, expected {{"word": ["other", …]}}, or lines of TSV'
    )
  return {word.lower(): others for word, others in found.items()}
