"""Answers for rows without labels.

  python -m jaxsft.predict --model=DIR_OR_NAME --data=rows.jsonl --out=predictions.jsonl
                           [--columns='{"text": "review"}'] [--batch_size=64]
                           [--config=configs/x.py] [--temperature=1.0] [--threshold=0.5]
                           [--max_new_tokens=64]

Reads what training reads: --config says how (format, columns, encoding, …), else the file's
suffix does. Lengths, windows and what is answered "" are the config's too, where its task is
the model's. Writes one row for each, in their order: its id, its fields, and what the model
says of it, as JSON objects or, where --out ends with .csv or .tsv, as a table. Stopped on the
way, the same command goes on. --temperature divides the logits of classes before they become
scores (an evaluation fits one); --threshold, a number or a JSON object {label: number}, says
above which score a label is given where a row may have many. Models that write answer in
"text", as `generate` does; "cut" says that max_new_tokens may have ended it, "source_cut" that
the model saw only the beginning of a source.
"""

import dataclasses
import hashlib
import itertools
import json
import os

import jax

from jaxsft import (
  answering,
  command,
  config_values,
  evaluate,
  labels,
  prepare,
  pretrained,
  row_file,
  screen,
  sharding,
  start,
  tasks,
)
from jaxsft import config as config_lib
from jaxsft.data import clean, fetch, forms, order, read, store
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import batches, defaults, stops, writing
from jaxsft.generation.prompts import room

BLOCK = 4096  # rows that are tokenised, sorted by length and answered together


def predict(model, rows, batch_size=64, temperature=1.0, threshold=None, **rules):
  """What the task decodes for each of `rows` (dicts with the task's fields), in their order.

  temperature, threshold: see labels.scoring. rules: of `writing.written`, for models that write
  (max_new_tokens, num_beams, …); what is not given is the checkpoint's. Raises JaxsftError for
  a row without what the task needs.
  """
  context = labels.scoring(model.context, temperature, threshold)
  model = dataclasses.replace(model, context=context)
  named = [read.Row(str(i), f"row {i}", dict(row)) for i, row in enumerate(rows)]
  answer = predictor(model, batch_size, **rules)
  return [said for block in _blocks(named) for said in answer(block)]


def predictor(model, batch_size, **rules):
  """A function [read.Row] -> [what the task decodes]; its calls share weights and programs."""
  task = tasks.TASKS.get(model.base.task)
  if task is None:
    raise JaxsftError(
      f"the model is a {model.base.config['architectures'][0]}, whose head no task here has; "
      "fine-tune it first"
    )
  mesh = sharding.make_mesh()
  params = jax.device_put(model.params, sharding.shardings_for(model.params, mesh))
  if hasattr(task, "prompt"):
    return _writer(model, task, params, mesh, {"batch_size": batch_size, **rules})
  options = tasks.options_of(task, config_lib.Loss(), model.context)
  eval_step = evaluate.make_eval_step(model.network, task, options, mesh)

  def answer(rows):
    unlabelled = [_unlabelled(row, task) for row in rows]
    examples = prepare.examples(unlabelled, task, model.context, store.in_memory)
    if left_out := examples.counts["dropped"]:
      where = next(row.where for row in rows if row.id == left_out[0])
      raise JaxsftError(
        f"{where}: is too long for the model's {model.context.max_length} tokens and cannot be "
        "cut; shorten or leave out the row"
      )
    plan = _plan(examples.store.lengths, batch_size, model.base.limit, mesh)
    found = evaluate.measure(eval_step, params, examples, plan, mesh)
    return [task.decode(one, model.context) for one in found]

  return answer


def _writer(model, task, params, mesh, given):
  """A `predictor` of texts: {"text"}, with "cut" where max_new_tokens may have ended one and
  "source_cut" where the model was shown but the beginning of a source.

  given: of `writing.written`; what is not is the checkpoint's, as in `writing.answer`.
  """
  followed, rest = defaults.settings_of(model.base, given)
  defaults.say(model.base, rest)
  most = min(defaults.LIMIT, model.network.arch.max_positions - 1)
  rules = {"max_new_tokens": most} | followed | given
  rules["stop_ids"] = stops.stop_ids(model.base, model.context.chat_template)
  rules["frame"] = answering.frame_of(model.base, model.context)

  def answer(rows):
    prompts = []
    for row in rows:
      prompt = task.prompt(row, model.context)
      if prompt is None:
        raise JaxsftError(f"{row.where}: asks nothing, expected a question; correct the row")
      if reason := room(model.network, len(prompt), rules["max_new_tokens"]):
        raise JaxsftError(f"{row.where}: {reason}")
      prompts.append(prompt)
    with jax.set_mesh(mesh):
      said = writing.written(model.network, params, model.tokenizer, prompts, **rules)
    whole = [not task.SOURCE or task.whole(row, model.context) for row in rows]
    return [
      {"text": best.text}
      | ({"cut": True} if best.full else {})
      | ({} if uncut else {"source_cut": True})
      for (best,), uncut in zip(said, whole, strict=True)
    ]

  return answer


def _blocks(rows):
  rows = iter(rows)
  while block := list(itertools.islice(rows, BLOCK)):
    yield block


def _unlabelled(row, task):
  """The row without its answer; raises JaxsftError where there is nothing to answer."""
  fields = {name: value for name, value in row.fields.items() if name not in task.GOLD}
  needed = [name for name in task.FIELDS if name not in task.GOLD]
  words = task.HEAD == "token" and fields.get("tokens") is not None
  if not needed and not words and not forms.has_turns(fields):
    needed = ["text"]
  for name in needed:
    if not str(fields.get(name, "")).strip():
      raise JaxsftError(
        f"{row.where}: has no {name}, found the fields {', '.join(row.fields)}; name the "
        f"column with --columns='{{\"{name}\": …}}'"
      )
  for name in clean.TEXT_FIELDS:
    if not isinstance(fields.get(name, ""), str):
      raise JaxsftError(
        f"{row.where}: the field {name!r} is {fields[name]!r}, expected text; correct "
        "the row or name another column with --columns"
      )
  return row._replace(fields=fields)


def _plan(lengths, batch_size, limit, mesh):
  """An order.Plan of a few sizes, so that one block's programs serve the next."""
  shards = sharding.row_shards(mesh)
  plan = order.plan_evaluation(
    lengths,
    batch_size=batch_size,
    batch_unit="examples",
    packing="pack",
    max_length=int(lengths.max()),
    row_multiple=shards,
  )
  up = lambda n: batches.bucket(n) if n > 1 else 1
  return dataclasses.replace(
    plan,
    row_length=max(plan.row_length, min(up(plan.row_length), limit)),
    segments=up(plan.segments),
    row_counts=tuple(shards * up(-(-n // shards)) for n in plan.row_counts),
  )


def _rows(flags, config):
  """(the rows of --data, text that names them) as a config's data keys say."""
  data = config_lib.Data() if config is None else config.data
  columns, kind = data.columns, dict[str, str | int]
  if flags["columns"]:
    columns = config_values.parse(flags["columns"], kind, "--columns")
    config_values.check(columns, kind, "--columns")
  settings = {"encoding": data.encoding, "header": data.header, "quoting": data.quoting}
  settings |= {"format": data.format, "columns": columns, "id": data.id}
  path = fetch.resolve(flags["data"], None, key="--data")
  rows = read.read_rows(path, **settings)
  first = next(rows, None)  # what is wrong with a file is said before the weights are read
  if first is None:
    raise JaxsftError(f"--data={flags['data']}: holds no row, expected at least one to answer")
  files = [str(path)]
  for file in read.files_of(path, data.format):
    files += [file, os.stat(file).st_size, os.stat(file).st_mtime_ns]
  return itertools.chain([first], rows), json.dumps([files, settings], sort_keys=True)


def _as_config_says(model, config):
  """The model with a config's lengths and windows, and its threshold of no answer."""
  found = prepare.make_context(config, model.base, model.context.labels)
  own = {name: getattr(found, name) for name in ("instruction", "chat_template")}
  own |= tasks.answering(found)
  return dataclasses.replace(model, context=dataclasses.replace(model.context, **own))


def _rules(flags, config):
  """How texts are written, as far as flags and config say."""
  wanted = config and config.evaluate
  most, found = flags["max_new_tokens"] or (wanted and wanted.max_new_tokens), {}
  if most:
    found["max_new_tokens"] = most
  if wanted and wanted.num_beams > 1:
    found |= {"num_beams": wanted.num_beams, "length_penalty": wanted.length_penalty}
  return found


def main(argv):
  flags = {"model": "", "data": "", "out": "", "columns": None, "batch_size": 64}
  flags |= {"sha256": None, "temperature": 1.0, "threshold": None, "max_new_tokens": 0}
  config, flags = command.parse(argv, flags, needs_config=False)
  start.quiet()
  if flags["batch_size"] < 1:
    raise UsageError(f"--batch_size={flags['batch_size']}: expected at least 1")
  threshold, kind = flags["threshold"], float | dict[str, float]
  if threshold is not None:
    threshold = config_values.parse(threshold, kind, "--threshold")
    config_values.check(threshold, kind, "--threshold")
  rows, named = _rows(flags, config)
  model = pretrained.load(flags["model"], flags["sha256"])
  if config is not None and config.task == model.base.task:
    model = _as_config_says(model, config)
  writes = hasattr(tasks.TASKS.get(model.base.task), "prompt")
  if flags["max_new_tokens"] and not writes:
    raise UsageError(
      f"--max_new_tokens={flags['max_new_tokens']}: the model writes no text; leave it out"
    )
  context = labels.scoring(model.context, flags["temperature"], threshold)
  model, rules = dataclasses.replace(model, context=context), _rules(flags, config)
  answer = predictor(model, flags["batch_size"], **rules)
  seen = hashlib.sha256(f"{named} {rules}".encode())
  seen.update(repr(dataclasses.replace(context, tokenizer=None)).encode())
  seen.update(model.base.identity().encode())
  out = row_file.RowFile(flags["out"], seen.hexdigest())
  try:
    if out.done:
      print(f"going on after {out.done} rows that are answered already")
    rest = itertools.islice(rows, out.done, None)
    with screen.counting("rows") as show:
      for block in _blocks(rest):
        said = zip(block, answer(block), strict=True)
        out.write([{"id": row.id, **row.fields, **words} for row, words in said])
        show(out.done)
    out.close()
  finally:
    out.leave()
  print(f"{out.done} predictions in {out.out}")


if __name__ == "__main__":
  command.run(main)
