"""From the config's data keys to the user's rows: read, cleaned, and split."""

import dataclasses
from typing import NamedTuple

from jaxsft import tasks
from jaxsft.data import clean, fetch, read
from jaxsft.data import split as splits


class Rows(NamedTuple):
  """The user's rows, cleaned and split."""

  train: list
  held_out: list
  read: int
  left_out: dict[str, int]
  split: str = ""
  """What was held out by what; "": nothing was, or rows of their own are."""


def read_data(data, task, key="data.path"):
  """`Rows` of the config's `data` keys for a task module; key: what names them in errors."""
  path = fetch.resolve(data.path, data.sha256 if key == "data.path" else None, key=key)
  settings = dict(
    format=data.format,
    encoding=data.encoding,
    header=data.header,
    quoting=data.quoting,
    columns=data.columns,
    id=data.id,
  )
  rules = dict(
    keep=data.keep,
    labels=data.labels,
    label_type=data.label_type,
    separator=data.label_separator,
    limit=data.limit,
    task_fields=task.FIELDS,
  )
  cleaned = clean.clean(read.read_rows(path, **settings), **rules)
  left_out = dict(cleaned.left_out)
  if data.eval_path is not None:
    other = fetch.resolve(data.eval_path, data.eval_sha256, key="data.eval_path")
    held = clean.clean(read.read_rows(other, **settings), **(rules | {"limit": None}))
    for why, n in held.left_out.items():
      left_out[why] = left_out.get(why, 0) + n
    return Rows(cleaned.rows, held.rows, cleaned.read + held.read, left_out)
  train, held_out, said = splits.split(
    cleaned.rows,
    share=data.split,
    by=data.split_by,
    stratify=data.stratify,
    folds=data.folds,
    fold=data.fold,
  )
  return Rows(train, held_out, cleaned.read, left_out, said)


def called(name):
  """What a sentence calls the rows of one of evaluate.sets."""
  return f"rows of config.evaluate.sets[{name!r}]"


def further_sets(config):
  """{name: `Rows`, all in `train`} of evaluate.sets."""
  sets, task = {}, tasks.TASKS[config.task]
  whole = dict(split=0.0, split_by=None, stratify=False, folds=None, eval_path=None, limit=None)
  for name, path in (config.evaluate.sets or {}).items():
    other = dataclasses.replace(config.data, path=path, **whole)
    sets[name] = read_data(other, task, key=f"evaluate.sets[{name!r}]")
  return sets
