"""The texts of a row, wherever they stand, and steps that change them.

Which fields these are a task says by TEXTS. Spans of a changed text follow it: `entities`, the
starts of `answers`, and the tags of tokens of which nothing is left.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxsft.data import read, squad, words
from jaxsft.data.cleaning import edits, private, record, text
from jaxsft.errors import JaxsftError

SAID = ("content", "value", "reasoning_content")
"""Keys of a message that hold text."""
SPANNED = {"text": "entities", "context": "answers"}
"""Field -> the field with spans of it."""

Changed = Callable[[str, Sequence[edits.Span]], tuple[str, list[edits.Span]]]
"""(text, spans) -> both after a change."""


def texts(fields: dict[str, Any], names: Sequence[str]) -> list[str]:
  """All texts of the named fields, in order; what holds none has none."""
  found: list[str] = []

  def look(one: str) -> str:
    found.append(one)
    return one

  for name in names:
    _mapped(fields.get(name), look)
  return found


def asking(task: Any) -> tuple[str, ...]:
  """The fields with texts that are not the answer; all of them where the texts are learnt."""
  return tuple(name for name in task.TEXTS if name not in task.GOLD)


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
  """A field's value with every text in it replaced."""
  if isinstance(value, str):
    return function(value)
  value = _plain(value)
  if isinstance(value, list | tuple):
    return [_mapped(part, function) for part in value]
  if isinstance(value, dict):
    here = {key: _mapped(value[key], function) for key in SAID if key in value}
    kinds = value.get("type") == "text" and "text" in value  # a part of a message's content
    return value | here | ({"text": _mapped(value["text"], function)} if kinds else {})
  return value


def _plain(value: Any) -> Any:
  """An array as a list."""
  return value.tolist() if isinstance(value, np.ndarray) else value


def changed(row: read.Row, task: Any, names: Sequence[str], change: Changed) -> read.Row:
  """The row with the texts of the named fields changed, and the spans of these moved.

  Raises JaxsftError, with row.where, where nothing is left of a span or of a tagged token.
  """
  new = {}
  for name in names:
    value = row.fields.get(name)
    spans = SPANNED.get(name)
    if value is None:
      continue
    if name == "tokens":
      new |= _tokens(row, change)
    elif spans in task.GOLD and row.fields.get(spans) is not None and isinstance(value, str):
      new |= _with_spans(row, name, change)
    else:
      new[name] = _mapped(value, lambda one: change(one, ())[0])
  same = all(_plain(row.fields[name]) == value for name, value in new.items())
  return row if same else row._replace(fields=row.fields | new)


def _with_spans(row: read.Row, name: str, change: Changed) -> dict[str, Any]:
  """The changed text of a field, and the field with its spans."""
  try:
    if name == "context":
      fields = squad.question(row.fields)
      found = [(a["start"], a["start"] + len(a["text"])) for a in fields["answers"]]
    else:
      fields, entities = row.fields, words.entities(row.fields) or []
      found = [(e.start, e.end) for e in entities]
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error
  before = fields[name]
  after, moved = change(before, found)
  if after == before:
    return {}
  moved = [_trimmed(after, span) for span in moved]
  for old, (start, end) in zip(found, moved, strict=True):
    if start >= end:
      raise JaxsftError(
        f"{row.where}: config.clean leaves nothing of {before[slice(*old)]!r}, which "
        f"{SPANNED[name]} names; take the step out of config.clean.text, or leave such rows "
        "out with config.data.keep"
      )
  if name == "context":
    answers = [{"text": after[start:end], "start": start} for start, end in moved]
    return {name: after, "answers": answers, "impossible": not answers}
  spans = zip(entities, moved, strict=True)
  return {
    name: after,
    "entities": [{"start": a, "end": b, "label": e.label} for e, (a, b) in spans],
  }


def _trimmed(text: str, span: edits.Span) -> edits.Span:
  """A span without white space at its ends."""
  start, end = span
  while start < end and text[start].isspace():
    start += 1
  while start < end and text[end - 1].isspace():
    end -= 1
  return start, end


def _tokens(row: read.Row, change: Changed) -> dict[str, Any]:
  """Changed tokens; of what is left empty, the tag goes too, where it is "O"."""
  tokens, tags = row.fields["tokens"], row.fields.get("tags")
  tokens = _plain(tokens)
  if not isinstance(tokens, list | tuple) or not all(isinstance(t, str) for t in tokens):
    return {}
  new = [change(token, ())[0].strip() for token in tokens]
  if all(new) or not all(tokens):
    return {"tokens": new} if new != list(tokens) else {}
  if tags is None or len(tags) != len(tokens):
    return {"tokens": [token for token in new if token]}
  kept: list[str] = []
  for i, (token, tag) in enumerate(zip(new, tags, strict=True)):
    if token:
      apart = i > 0 and tags[i - 1] == "O" and str(tag).startswith("I-")
      joined = apart and bool(kept) and kept[-1] != "O"
      kept.append("B-" + tag[2:] if joined else tag)  # two entities stay two
    elif tag != "O":
      raise JaxsftError(
        f"{row.where}: config.clean leaves nothing of the token {tokens[i]!r}, whose tag is "
        f"{tag!r}; take the step out of config.clean.text, or leave such rows out with "
        "config.data.keep"
      )
  return {"tokens": [token for token in new if token], "tags": kept}


def normalised(
  rows: Iterable[read.Row], task: Any, steps: Sequence[str], noted: record.Record
) -> Iterator[read.Row]:
  """The rows after the steps of `text.program`, one after the other."""
  for row in rows:
    for step in steps:
      change = lambda one, spans, step=step: text.changed(step, one, spans)
      new = changed(row, task, task.TEXTS, change)
      if new is not row:
        before, after = (" ".join(texts(r.fields, task.TEXTS)) for r in (row, new))
        noted.add(record.CHANGED + step.partition(":[")[0], row, before, after)
      row = new
    yield row


def without_private(
  rows: Iterable[read.Row],
  task: Any,
  steps: Sequence[str],
  settings: dict[str, str],
  noted: record.Record,
) -> Iterator[read.Row]:
  """The rows without those that hold what `settings` ({"secrets", "personal": …}) "drop".

  They are looked at as they are written, and as all but the steps that hide something leave
  them. Raises JaxsftError for the first that holds what is an "error".
  """
  clear = [step for step in steps if not step.startswith((*text.DESTROYING, "mask:"))]
  for row in rows:
    raw = texts(row.fields, task.TEXTS)
    seen = {*raw}
    for one in raw:
      for step in clear:
        one = text.changed(step, one)[0]
      seen.add(one)
    for group, what in settings.items():
      kinds = [(kind, one) for one in sorted(seen) for *_, kind in private.find(group, one)]
      if not kinds:
        continue
      kind, one = kinds[0]
      if what == "error":
        said = record.sample(one)["before"]
        raise JaxsftError(
          f"{private.masked(row.where)}: holds {group} ({kind}): {said!r}; remove it, or set "
          f"config.clean.{group} to 'mask' or 'drop'"
        )
      noted.leave(group, row, one)
      break
    else:
      yield row


def plain(fields: dict[str, Any], names: Sequence[str]) -> str:
  """What two rows with the same texts share: case and spaces aside."""
  found = [" ".join(one.casefold().split()) for one in texts(fields, names)]
  return "\x1f".join(found)


def prompt(asked: Any, steps: Sequence[str]) -> Any:
  """A text, or a list of messages, after the steps of `text.program`."""
  for step in steps:
    asked = _mapped(asked, lambda one, step=step: text.changed(step, one)[0])
  return asked


def as_trained(
  rows: Sequence[read.Row], task: Any, steps: Sequence[str]
) -> tuple[Sequence[read.Row], dict[int, dict[str, Any]]]:
  """(rows to be answered as training would have read them, {index: {"read": what differs}}).

  Where there are steps of `text.program`, the rows come back without their answers.
  """
  if not steps:
    return rows, {}
  asked = []
  for row in rows:
    given = {name: value for name, value in row.fields.items() if name not in task.GOLD}
    asked.append(row._replace(fields=given))
  new = list(normalised(asked, task, steps, record.Record()))
  differ = {}
  for i, (row, other) in enumerate(zip(asked, new, strict=True)):
    if row is not other:
      found = {k: v for k, v in other.fields.items() if row.fields.get(k) != v}
      differ[i] = {"read": found}
  return new, differ
