"""Answers for rows without labels.

  python -m jaxsft.predict --model=DIR_OR_NAME --data=rows.jsonl --out=predictions.jsonl
                           [--columns='{"text": "review"}'] [--batch_size=64]

Writes one JSON object a row, in the order of the rows: its id and what the model says.
"""

import contextlib
import json
import os
import pathlib

import jax

from jaxsft import (
  command,
  config,
  config_values,
  evaluate,
  prepare,
  pretrained,
  sharding,
  start,
)
from jaxsft.data import fetch, order, read, store
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tasks import TASKS


def predict(model, rows, batch_size=64):
  """What the task decodes for each of `rows` (dicts with the task's fields), in their order.

  Raises JaxsftError for a row without text, and for models that generate.
  """
  named = [read.Row(str(i), f"row {i}", dict(row)) for i, row in enumerate(rows)]
  return [answer for _, answer in _predict(model, named, batch_size)]


def _predict(model, rows, batch_size):
  """(row, answer) for every row."""
  if model.base.task != "classify":
    raise JaxsftError(
      f"the model is a {model.base.config['architectures'][0]}, which answers with text; "
      "use python -m jaxsft.generate"
    )
  task = TASKS[model.base.task]
  unlabelled = []
  for row in rows:
    if not str(row.fields.get("text", "")).strip():
      raise JaxsftError(
        f"{row.where}: has no text, found the fields {', '.join(row.fields)}; name the "
        "column with --columns='{\"text\": …}'"
      )
    fields = {k: v for k, v in row.fields.items() if k in ("text", "text_pair")}
    for name in ("text", "text_pair"):
      if not isinstance(row.fields.get(name, ""), str):
        raise JaxsftError(
          f"{row.where}: the field {name!r} is {row.fields[name]!r}, expected text; correct "
          "the row or name another column with --columns"
        )
    unlabelled.append(row._replace(fields=fields))
  examples = prepare.examples(unlabelled, task, model.context, store.in_memory)
  for row, found in zip(rows, _found(model, task, examples, batch_size), strict=True):
    yield row, task.decode(found, model.context)


def _found(model, task, examples, batch_size):
  """tasks.Found of every row, in their order."""
  mesh = sharding.make_mesh()
  plan = order.plan_evaluation(
    examples.store.lengths,
    batch_size=batch_size,
    batch_unit="examples",
    packing="pack",
    max_length=int(examples.store.lengths.max()),
    row_multiple=sharding.row_shards(mesh),
  )
  params = jax.device_put(model.params, sharding.shardings_for(model.params, mesh))
  step = evaluate.make_eval_step(model.network, task, config.Loss(), mesh)
  return evaluate.measure(step, params, examples, plan, mesh)


def main(argv):
  flags = {
    "model": "",
    "data": "",
    "out": "",
    "columns": None,
    "batch_size": 64,
    "sha256": None,
  }
  _, flags = command.parse(argv, flags, needs_config=False)
  start.quiet()
  columns, kind = flags["columns"], dict[str, str | int]
  if columns:
    columns = config_values.parse(columns, kind, "--columns")
    config_values.check(columns, kind, "--columns")
  if flags["batch_size"] < 1:
    raise UsageError(f"--batch_size={flags['batch_size']}: expected at least 1")
  path = fetch.resolve(flags["data"], None, key="--data")
  rows = list(
    read.read_rows(
      path, format="auto", encoding="utf-8", header=None, quoting=True, columns=columns, id=None
    )
  )
  model = pretrained.load(flags["model"], flags["sha256"])
  out = pathlib.Path(flags["out"])
  temporary = out.with_name(f".{out.name}.{os.getpid()}")
  try:
    with temporary.open("w", encoding="utf-8") as file:
      for row, answer in _predict(model, rows, flags["batch_size"]):
        file.write(
          json.dumps({"id": row.id, **row.fields, **answer}, ensure_ascii=False) + "\n"
        )
    os.replace(temporary, out)
  except OSError as error:
    raise JaxsftError(
      f"{out}: cannot be written: {error.strerror}; make room or choose another --out"
    ) from None
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
  print(f"{len(rows)} predictions in {out}")


if __name__ == "__main__":
  command.run(main)
