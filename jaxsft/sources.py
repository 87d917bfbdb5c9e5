"""From the config's data keys to the user's rows: read, cleaned, and split."""

import collections
import dataclasses
from typing import NamedTuple

from jaxsft import tasks
from jaxsft.config.cleaning import Clean
from jaxsft.data import audit, clean, fetch, forms, prompt, read
from jaxsft.data import split as splits
from jaxsft.data.cleaning import benchmarks, fields, kept, overlap, record, text
from jaxsft.errors import JaxsftError

PRIVATE = ("secrets", "personal")


class Rows(NamedTuple):
  """The user's rows, cleaned and split."""

  train: list
  held_out: list
  read: int
  left_out: dict[str, int]
  split: str = ""
  """What was held out by what; "": nothing was, or rows of their own are."""
  changes: tuple = ()
  """What was done to texts and rows: of data.cleaning.record.Change."""
  warnings: tuple = ()
  sources: tuple[audit.Source, ...] = ()


def text_steps(cleaning):
  """What a config's `clean` group does to every text, in training and ever after."""
  masks = [group for group in PRIVATE if getattr(cleaning, group) == "mask"]
  return text.program(cleaning.text, masks=masks)


def of_texts(cleaning):
  """The settings that change texts alone: rows that are only measured are never left out."""
  masks = {group: "mask" for group in PRIVATE if getattr(cleaning, group) == "mask"}
  return Clean(text=cleaning.text, **masks)


def read_data(data, task, key="data.path", cleaning=None):
  """`Rows` of the config's `data` keys for a task module.

  key: what names them in errors. cleaning: the config's `clean` group; None: nothing of it.
  """
  cleaning = cleaning or Clean()
  noted, warnings = record.Record(), []
  path = fetch.resolve(data.path, data.sha256 if key == "data.path" else None, key=key)
  rules = dict(
    keep=data.keep,
    labels=data.labels,
    label_type=data.label_type,
    separator=data.label_separator,
    limit=data.limit,
    task_fields=task.FIELDS,
  )
  found = _read(path, data, task, cleaning, noted, whole=key == "data.path")
  cleaned = clean.clean(found, **rules)
  left_out, count = dict(cleaned.left_out), cleaned.read + sum(noted.left_out().values())
  rows, said = kept.kept(cleaned.rows, task, cleaning, noted)
  warnings += said
  train, held_out, split = rows, [], ""
  where = [_source(key, data.path, path, data, count, rows)]
  if data.eval_path is not None:
    other = fetch.resolve(data.eval_path, data.eval_sha256, key="data.eval_path")
    found = _read(other, data, task, of_texts(cleaning), noted)
    held = clean.clean(found, **(rules | {"limit": None}))
    held_out, count = held.rows, count + held.read
    for why, n in held.left_out.items():
      left_out[why] = left_out.get(why, 0) + n
    where.append(_source("data.eval_path", data.eval_path, other, data, held.read, held.rows))
  else:
    train, held_out, split = splits.split(
      rows,
      share=data.split,
      by=data.split_by,
      stratify=data.stratify,
      folds=data.folds,
      fold=data.fold,
    )
  train, said = overlap.apart(train, held_out, task, cleaning, noted)
  warnings += said
  if cleaning.benchmarks:
    texts = benchmarks.read(cleaning.benchmarks)
    train, said = overlap.unknown_to(train, task, texts, cleaning.ngram, noted)
    warnings += said
  if not train:
    raise JaxsftError(
      "config.clean leaves no training row ("
      + ", ".join(f"{n} {why}" for why, n in noted.left_out().items())
      + "); change config.clean.overlap or config.clean.benchmarks"
    )
  left_out |= noted.left_out()
  changes, warnings = tuple(noted.changes()), tuple(warnings)
  return Rows(train, held_out, count, left_out, split, changes, warnings, tuple(where))


def _read(path, data, task, cleaning, noted, whole=False):
  """The rows of a path with their texts as templates and `cleaning` want them.

  whole: of `prompt.filled`.
  """
  rows = read.read_rows(
    path,
    format=data.format,
    encoding=data.encoding,
    header=data.header,
    quoting=data.quoting,
    columns=data.columns,
    id=data.id,
  )
  rows = prompt.filled(rows, prompt.templates(data.prompt), whole)
  steps, refused = text_steps(cleaning), {}
  for group in PRIVATE:
    if getattr(cleaning, group) in ("drop", "error"):
      refused[group] = getattr(cleaning, group)
  if refused:
    rows = fields.without_private(rows, task, steps, refused, noted)
  return fields.normalised(rows, task, steps, noted) if steps else rows


def _source(key, path, found, data, count, rows):
  """audit.Source of the rows of a path, which was resolved to `found`."""
  format = read.formats_of(found, data.format, data.encoding)
  written = collections.Counter(forms.named(row.fields) for row in rows)
  return audit.Source(key, path, str(found), format, count, dict(written))


def called(name):
  """What a sentence calls the rows of one of evaluate.sets."""
  return f"rows of config.evaluate.sets[{name!r}]"


def further_sets(config):
  """{name: `Rows`, all in `train`} of evaluate.sets."""
  sets, task, cleaning = {}, tasks.TASKS[config.task], of_texts(config.clean)
  whole = dict(split=0.0, split_by=None, stratify=False, folds=None, eval_path=None, limit=None)
  for name, path in (config.evaluate.sets or {}).items():
    other = dataclasses.replace(config.data, path=path, **whole)
    key = f"evaluate.sets[{name!r}]"
    sets[name] = read_data(other, task, key=key, cleaning=cleaning)
  return sets
