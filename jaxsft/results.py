"""What an evaluation leaves for people: every prediction, the worst errors, slices, intervals.

predictions.jsonl   a row each: id, its fields, "gold", what the model says, "loss"
errors.jsonl        those of the largest loss, the worst first
metrics.json        the numbers, "intervals" (95 %, bootstrap over rows) and "slices"
"""

import json
import pathlib
from collections import Counter

import numpy as np

from jaxsft import log, tasks
from jaxsft.errors import UsageError
from jaxsft.metrics import statistics

WORST = 50  # rows in errors.jsonl
VALUES = 20  # values of a field that are slices of their own


def lines(found, task, context):
  """One dict for each of [tasks.Found]: id, fields, gold, what the model says, loss."""
  result = []
  for one in found:
    given, gold = tasks.given_and_gold(one.row, task)
    said = task.decode(one, context) | {"loss": task.row_loss(one, context)}
    result.append({"id": one.row.id, **given, **gold, **said})
  return result


def summary(found, task, context, metrics, slices=()):
  """metrics | {"intervals": {name: …}, "slices": {field: [{"slice", "n", "value", …}]}}.

  slices: fields of the rows, or "length" (tokens, in quarters).
  """
  measured = task.measured(found, context)
  intervals = {one.name: statistics.interval(one) for one in measured}
  parts = {
    name: statistics.slices(measured[0], groups(found, name), resamples=1000) for name in slices
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
    lengths = [sum(len(e["inputs"]) for e in one.examples) for one in found]
    return [f"{a} to {b} tokens" for a, b in statistics.length_buckets(lengths)]
  values = [one.row.fields.get(name) for one in found]
  numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
  if len(numbers) == len(values) and len(set(values)) > VALUES:
    return _quarters(np.asarray(values, np.float64))
  texts = ["(none)" if v is None else str(v) for v in values]
  kept = {text for text, _ in Counter(texts).most_common(VALUES)}
  return [text if text in kept else "(other)" for text in texts]


def _quarters(values):
  inner = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="lower"))
  at = np.searchsorted(inner, values, side="left")
  ends = {k: (values[at == k].min(), values[at == k].max()) for k in np.unique(at)}
  return [f"{ends[k][0]:g} to {ends[k][1]:g}" for k in at]


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
