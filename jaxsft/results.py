"""What an evaluation leaves for people: every prediction, the worst errors, slices, intervals.

predictions.jsonl   a row each: id, its fields, "gold", what the model says, "loss"
errors.jsonl        those of the largest loss, the worst first
metrics.json        the numbers, "intervals" (95 %, bootstrap over rows) and "slices"
"""

import json
import math
import pathlib
from collections import Counter

from jaxsft import log, tasks
from jaxsft.errors import UsageError
from jaxsft.metrics import significance

WORST = 50  # rows in errors.jsonl
NONE = "(none)"  # the slice of rows without the field, or with a number that is none
VALUES = 20  # values of a field that are slices of their own


def lines(found, task, context):
  """One dict for each of [tasks.Found]: id, fields, gold, what the model says, loss."""
  result = []
  for one in found:
    given, gold = tasks.given_and_gold(one.row, task)
    if hasattr(task, "own_answer") and not one.texts:  # nothing stands beside it
      gold = {}
    said = task.decode(one, context) | {"loss": task.row_loss(one, context)}
    result.append({"id": one.row.id, **given, **gold, **said})
  return result


def summary(found, task, context, metrics, slices=()):
  """metrics | {"intervals": {name: …}, "slices": {field: [{"slice", "n", "value", …}]}}.

  slices: fields of the rows, or "length" (tokens, of the source if there is one, in quarters).
  """
  measured = task.measured(found, context)
  intervals = {one.name: significance.interval(one) for one in measured}
  parts = {
    name: significance.slices(measured[0], groups(found, name), resamples=1000)
    for name in slices
  }
  return metrics | {"intervals": intervals} | ({"slices": parts} if parts else {})


def check_slices(slices, parts):
  """Raises UsageError for one of `slices` that no row of a part has; parts: {what: rows}."""
  for name in slices:
    for what, rows in parts.items():
      if name != "length" and not any(name in row.fields for row in rows):
        raise UsageError(
          f"config.evaluate.slices: none of {len(rows)} {what} has the field {name!r}, "
          f"expected one of {', '.join(rows[0].fields)}, or 'length'"
        )


def groups(found, name):
  """The slice that each row belongs to by a field, as texts (numbers of many values: quarters).

  Raises UsageError for a field that no row has.
  """
  check_slices((name,), {"held-out rows": [one.row for one in found]})
  if name == "length":
    lengths = [sum(len(e.get("source", e["inputs"])) for e in one.examples) for one in found]
    return [f"{a} to {b} tokens" for a, b in significance.value_buckets(lengths)]
  values = [one.row.fields.get(name) for one in found]
  values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
  there = [i for i, v in enumerate(values) if v is not None]
  numbers = [float(v) for v in (values[i] for i in there) if _is_number(v)]
  if len(numbers) == len(there) and len(set(numbers)) > VALUES:
    ends = zip(there, significance.value_buckets(numbers), strict=True)
    said = {i: f"{_shown(least)} to {_shown(most)}" for i, (least, most) in ends}
    return [said.get(i, NONE) for i in range(len(values))]
  texts = [NONE if v is None else str(v) for v in values]
  kept = {text for text, _ in Counter(texts).most_common(VALUES)}
  return [text if text in kept else "(other)" for text in texts]


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(number):
  """A float, whole ones without a point, in as many digits as tell it from others."""
  whole, short = number.is_integer() and abs(number) < 2**53, f"{number:g}"
  return str(int(number)) if whole else short if float(short) == number else repr(number)


def write(directory, found, task, context, metrics, slices=()):
  """Writes the three files into a directory that is made; returns what metrics.json holds."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  rows = lines(found, task, context)
  worst = sorted(rows, key=lambda row: -row["loss"])[:WORST]
  for name, part in (("predictions.jsonl", rows), ("errors.jsonl", worst)):
    temporary = directory / f".{name}.tmp"
    lines_of = (json.dumps(log.plain(row), ensure_ascii=False, allow_nan=False) for row in part)
    temporary.write_text("".join(line + "\n" for line in lines_of), encoding="utf-8")
    temporary.replace(directory / name)
  result = summary(found, task, context, metrics, slices)
  log.write_json(directory / "metrics.json", result)
  return result
