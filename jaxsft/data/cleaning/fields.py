"""The texts of a row, wherever they stand, and steps that change them.

Which fields these are a task says by TEXTS. Spans of a changed text follow it: `entities`, the
starts of `answers`, and the tags of tokens of which nothing is left. What is private is looked
for, and hidden, "deep": in calls of tools, in their descriptions, and in JSON too.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxsft.data import read, squad, words
from jaxsft.data.cleaning import edits, private, record, text, values
from jaxsft.errors import JaxsftError

TOOLS = "tools"
"""The field that describes tools to a model."""
MASK = "mask:"
"""How the steps begin that hide what is private."""
SPANNED = {"text": "entities", "context": "answers"}
"""Field -> the field with spans of it."""

Changed = Callable[[str, Sequence[edits.Span]], tuple[str, list[edits.Span]]]
"""(text, spans) -> both after a change."""


def texts(fields: dict[str, Any], names: Sequence[str], deep: bool = False) -> list[str]:
  """All texts of the named fields, in order; what holds none has none. deep: as `values.mapped`
  has it.
  """
  found: list[str] = []
  look = lambda one: found.append(one) or one
  for name in names:
    _mapped(name, values.plain(fields.get(name)), look, deep)
  return found


def asking(task: Any) -> tuple[str, ...]:
  """The fields with texts that are not the answer; all of them where the texts are learnt."""
  return tuple(name for name in task.TEXTS if name not in task.GOLD)


def searched(task: Any) -> tuple[str, ...]:
  """The fields in which private data are looked for: all that a model of the task reads."""
  return (*task.TEXTS, TOOLS) if "messages" in task.TEXTS else tuple(task.TEXTS)


def plain(row: read.Row) -> read.Row:
  """The row without arrays; see `values.plain`."""
  found = values.plain(row.fields)
  return row if found is row.fields else row._replace(fields=found)


def _mapped(name: str, value: Any, function: Callable[[str], str], deep: bool) -> Any:
  """A field's plain value with every text in it replaced."""
  if name != TOOLS:
    return values.mapped(value, function, deep)
  return values.inside(value, function) if deep else value


def changed(
  row: read.Row, task: Any, names: Sequence[str], change: Changed, deep: bool = False
) -> read.Row:
  """The `plain` row with the texts of the named fields changed, and the spans of these moved.

  deep: as `values.mapped` has it, but not for a text with spans.
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
      new[name] = _mapped(name, value, lambda one: change(one, ())[0], deep)
  same = all(row.fields[name] == value for name, value in new.items())
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
  if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
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
  for row in map(plain, rows):
    for step in steps:
      deep = step.startswith(MASK)
      names = searched(task) if deep else task.TEXTS
      change = lambda one, spans, step=step: text.changed(step, one, spans)
      new = changed(row, task, names, change, deep)
      if new is not row:
        before, after = (" ".join(texts(r.fields, names, deep)) for r in (row, new))
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
  clear = [step for step in steps if not step.startswith((*text.DESTROYING, MASK))]
  for row in rows:
    raw = texts(row.fields, searched(task), deep=True)
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


def exact(fields: dict[str, Any], task: Any) -> str:
  """What two rows share that are one row to a model and its loss: all that it reads of them,
  and their answers, to the letter; other columns do not count.
  """
  names = dict.fromkeys((*searched(task), *task.GOLD))
  found = {name: values.plain(fields[name]) for name in names if fields.get(name) is not None}
  told = [[name, _in_order(value)] for name, value in found.items()]
  return json.dumps(told, default=repr)


def _in_order(value: Any) -> Any:
  """A list of messages with their keys in one order."""
  if not isinstance(value, list):
    return value
  by_name = lambda pair: str(pair[0])
  return [
    dict(sorted(one.items(), key=by_name)) if isinstance(one, dict) else one for one in value
  ]


def folded(fields: dict[str, Any], names: Sequence[str]) -> str:
  """What two rows say alike: speakers, texts and calls of tools, case and spaces aside."""
  found = [one for name in names for one in values.spoken(values.plain(fields.get(name)))]
  return "\x1f".join(" ".join(one.casefold().split()) for one in found)


def digest(text: str) -> bytes:
  """16 bytes that stand for a text."""
  return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def prompt(asked: Any, steps: Sequence[str]) -> Any:
  """A text, or a list of messages, after the steps of `text.program`."""
  asked = values.plain(asked)
  for step in steps:
    change = lambda one, step=step: text.changed(step, one)[0]
    asked = values.mapped(asked, change, step.startswith(MASK))
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
    asked.append(plain(row._replace(fields=given)))
  new = list(normalised(asked, task, steps, record.Record()))
  differ = {}
  for i, (row, other) in enumerate(zip(asked, new, strict=True)):
    if row is not other:
      found = {k: v for k, v in other.fields.items() if row.fields.get(k) != v}
      differ[i] = {"read": found}
  return new, differ
