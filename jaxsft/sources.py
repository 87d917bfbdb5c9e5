"""From the config's data keys to the user's rows: read, cleaned, and split."""

import dataclasses
from typing import NamedTuple

from jaxsft import tasks
from jaxsft.data import clean, fetch, read


class Rows(NamedTuple):
  """The user's rows, cleaned and split."""

  train: list
  held_out: list
  read: int
  left_out: dict[str, int]


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
  train, held_out, count = cleaned.rows, [], cleaned.read
  if data.eval_path is not None:
    other = fetch.resolve(data.eval_path, data.eval_sha256, key="data.eval_path")
    held = clean.clean(read.read_rows(other, **settings), **(rules | {"limit": None}))
    held_out, count = held.rows, count + held.read
    for why, n in held.left_out.items():
      left_out[why] = left_out.get(why, 0) + n
  elif data.split:
    train, held_out = clean.split(cleaned.rows, data.split)
  return Rows(train, held_out, count, left_out)


def called(name):
  """What a sentence calls the rows of one of evaluate.sets."""
  return f"rows of config.evaluate.sets[{name!r}]"


def further_sets(config):
  """{name: `Rows`, all in `train`} of evaluate.sets."""
  sets, task = {}, tasks.TASKS[config.task]
  for name, path in (config.evaluate.sets or {}).items():
    other = dataclasses.replace(config.data, path=path, split=0.0, eval_path=None, limit=None)
    sets[name] = read_data(other, task, key=f"evaluate.sets[{name!r}]")
  return sets
