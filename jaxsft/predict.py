"""Answers for rows without labels.

  python -m jaxsft.predict --model=DIR_OR_NAME --data=rows.jsonl --out=predictions.jsonl
                           [--columns='{"text": "review"}'] [--part=NAME] [--batch_size=64]
                           [--config=configs/x.py] [--temperature=1.0] [--threshold=0.5]
                           [--sha256=…] [--revision=…] [--fsdp=1] [--tensor=1]

Reads what training reads: --config says how (format, columns, prompt, …), else the file's
suffix does; of a mixture (data.mix) as its set --part is. Lengths, windows and what is answered
"" are the config's too, where its task is the model's; what its config.clean does to texts must
then be what was done to those that the model was trained on. Writes one row for each, in their
order: its id, its fields, and what the model says of it, as JSON objects or, where --out ends
with .csv or .tsv, as a table. Stopped on the way, the same command goes on. A row's own answer
stands under "gold". A row that cannot be answered has an "error" instead, and is counted.
--fsdp and --tensor split the weights over so many devices each, as config.mesh does in
training; what devices are left hold copies. Where the model was trained on texts that
config.clean changed, "read" has the fields of a row that it changes, and places count their
characters.

What --temperature means goes by the model. Of a classifier it divides the logits before they
become scores (1 leaves them; an evaluation fits one); --threshold, a number or a JSON object
{label: number}, says above which score a label is given where a row may have many. "cut" says
that the model saw but a part of the row.

Models that write texts answer in "text", as `generate` does, and draw with a --temperature
above 0; "cut" says that max_new_tokens may have ended the text, "source_cut" that the model saw
only the beginning of a source. With num_return above 1 "texts" has the best, each with "text"
and "score".
"""

import dataclasses
import hashlib
import itertools

import jax
import numpy as np

from jaxsft import (
  answering,
  command,
  encoding,
  evaluate,
  labels,
  prepare,
  pretrained,
  row_file,
  screen,
  sharding,
  start,
  tasks,
  unlabelled,
)
from jaxsft import config as config_lib
from jaxsft.config import values
from jaxsft.data import forms, order, read, store
from jaxsft.data.cleaning import fields as cleaning
from jaxsft.data.cleaning import values as cleaning_values
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import batches, choices, defaults, sampling, stops, writing
from jaxsft.generation.prompts import room

__doc__ += choices.HELP
BLOCK = 4096  # rows that are tokenised, sorted by length and answered together
WRITTEN = 8  # batches of rows together, and saved, where answers are written


def predict(model, rows, batch_size=64, **settings):
  """What the task decodes for each of `rows` (dicts with the task's fields), in their order.

  settings: for models that write texts those of choices.CHOICES (temperature, num_beams,
  num_return, …), and what is not given is the checkpoint's; for others temperature and
  threshold of labels.scoring. Raises JaxsftError for a row without what the task needs,
  UsageError for a setting that the model has no use for.
  """
  scores, rules = by_task(model.base, {k: v for k, v in settings.items() if v is not None})
  context = labels.scoring(model.context, **scores)
  model = dataclasses.replace(model, context=context)
  named = [
    read.Row(str(i), f"row {i}", cleaning_values.plain(dict(row))) for i, row in enumerate(rows)
  ]
  answer = predictor(model, batch_size, **rules)
  found = []
  for block in _blocks(named):
    for said in answer(block):
      if set(said) == {"error"}:
        raise JaxsftError(said["error"])
      found.append(said)
  return found


def by_task(base, given, flag=""):
  """(arguments of labels.scoring, choices of how texts are written) of the settings given.

  A temperature is of what is drawn where the model writes texts, and of scores elsewhere.
  flag: what stands before a name in a sentence. Raises UsageError for a setting that has no
  meaning, or none for the task of a `pretrained.Pretrained`.
  """
  scores = ("temperature", "threshold")
  sampling.check_names(given, (*choices.CHOICES, *scores))
  own, what = scores, "writes no text"
  if writes(base):
    own, what = choices.CHOICES, "writes texts and gives no labels"
  for name, value in given.items():
    if name not in own:
      raise UsageError(f"{flag}{name}={value}: the model {what}; leave it out")
  if not writes(base):
    return given, {}
  choices.check(given)
  return {}, given


def writes(base):
  """Whether the answers of a `pretrained.Pretrained` are texts."""
  return hasattr(tasks.TASKS.get(base.task), "prompt")


def predictor(model, batch_size, **rules):
  """A function [read.Row] -> [what the task decodes, or {"error": why the row has no answer}];
  its calls share weights and programs. "cut" says that the model saw but a part of the row.
  """
  task = tasks.TASKS.get(model.base.task)
  if task is None:
    raise JaxsftError(
      f"the model is a {model.base.config['architectures'][0]}, whose head no task here has; "
      "fine-tune it first"
    )
  mesh = model.mesh or sharding.make_mesh()
  params = jax.device_put(model.params, sharding.shardings_for(model.params, mesh))
  if writes(model.base):
    return _writer(model, task, params, mesh, {"batch_size": batch_size, **rules})
  options = tasks.options_of(task, config_lib.Loss(), model.context)
  eval_step = evaluate.make_eval_step(model.network, task, options, mesh)

  def answer(rows):
    rows, changed = cleaning.as_trained(rows, task, model.context.text_steps)
    read_rows, said = _each(rows, lambda row: _encoded(row, task, model.context))
    if not read_rows:
      return said
    kept = [row for row, _ in read_rows.values()]
    parts = (
      (f"{row.id}#{k}", example | {"row": np.int32(n)})
      for n, (row, encoded) in enumerate(read_rows.values())
      for k, example in enumerate(encoded.examples)
    )
    examples = encoding.Examples(kept, store.in_memory(parts))
    plan = _plan(examples.store.lengths, batch_size, model.base.limit, mesh)
    found = evaluate.measure(eval_step, params, examples, plan, mesh)
    for (i, (_, encoded)), one in zip(read_rows.items(), found, strict=True):
      cut = {"cut": True} if (encoded.note or "").startswith("truncated") else {}
      said[i] = task.decode(one, model.context) | cut | changed.get(i, {})
    return said

  return answer


def _each(rows, read_row):
  """({index: read_row(row)}, a list with {"error"} of each row for which that raises)."""
  found, said = {}, [None] * len(rows)
  for i, row in enumerate(rows):
    try:
      found[i] = read_row(row)
    except JaxsftError as error:
      said[i] = {"error": str(error)}
  return found, said


def _encoded(row, task, context):
  """(the row without its answer, tasks.Encoded); raises JaxsftError where it has no example."""
  row = _unlabelled(row, task, context)
  encoded = task.encode(row, context)
  if encoded.examples:
    return row, encoded
  why = (encoded.note or "").removeprefix("dropped: ")
  if why == "too long":
    why = f"is too long for the model's {context.max_length} tokens and cannot be cut"
  else:
    why = f"cannot be answered: {why}"
  raise JaxsftError(f"{row.where}: {why}; correct or leave out the row")


def _writer(model, task, params, mesh, given):
  """A `predictor` of texts: {"text"}, with "cut" where max_new_tokens may have ended it and
  "source_cut" where the model was shown but the beginning of a source; "texts", where
  num_return asks for several.

  given: of `writing.written`; what is not is the checkpoint's, as in `writing.answer`.
  """
  most = min(choices.LIMIT, model.network.arch.max_positions - 1)
  rules = {"max_new_tokens": most} | defaults.followed(model.base, given) | given
  rules["stop_ids"] = stops.stop_ids(model.base, model.context.chat_template)
  rules["frame"] = answering.frame_of(model.base, model.context)

  def prompt_of(row):
    prompt = task.prompt(row, model.context)
    if prompt is None:
      raise JaxsftError(f"{row.where}: asks nothing, expected a question; correct the row")
    if reason := room(model.network, len(prompt), rules["max_new_tokens"]):
      raise JaxsftError(f"{row.where}: {reason}")
    return prompt

  def answer(rows):
    rows, changed = cleaning.as_trained(rows, task, model.context.text_steps)
    prompts, said = _each(rows, prompt_of)
    if not prompts:
      return said
    with jax.set_mesh(mesh):
      texts = writing.written(
        model.network, params, model.tokenizer, list(prompts.values()), **rules
      )
    for i, found in zip(prompts, texts, strict=True):
      whole = not task.SOURCE or task.whole(rows[i], model.context)
      said[i] = {"text": found[0].text} | ({"cut": True} if found[0].full else {})
      said[i] |= ({} if whole else {"source_cut": True}) | changed.get(i, {})
      if rules.get("num_return", 1) > 1:
        said[i]["texts"] = [{"text": one.text, "score": one.score} for one in found]
    return said

  return answer


def _blocks(rows, size=BLOCK):
  rows = iter(rows)
  while block := list(itertools.islice(rows, size)):
    yield block


def _unlabelled(row, task, context):
  """The row without its answer; raises JaxsftError where there is nothing to answer."""
  fields = {name: value for name, value in row.fields.items() if name not in task.GOLD}
  needed = [name for name in task.FIELDS if name not in task.GOLD]
  words = task.HEAD == "token" and fields.get("tokens") is not None
  if not needed and not words and not forms.has_turns(fields):
    needed = ["text"]
  if context.pairs and not forms.has_turns(fields):
    needed.append("text_pair")
  for name in needed:
    if not str(fields.get(name, "")).strip():
      raise JaxsftError(
        f"{row.where}: has no {name}, found the fields {', '.join(row.fields)}; name the "
        f"column with --columns='{{\"{name}\": …}}'"
      )
  maybe = ("text", "text_pair") if task.HEAD == "sequence" else ()
  for name in (*needed, *maybe):
    nothing = name not in needed and fields.get(name) is None
    if not nothing and not isinstance(fields[name], str):
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


def _as_config_says(model, config):
  """The model with a config's lengths and windows, and its threshold of no answer."""
  found = prepare.make_context(config, model.base, model.context.labels)
  own = ("instruction", "languages", "chat_template")
  own = {name: getattr(found, name) for name in own}
  own |= tasks.answering(found) | {"pairs": model.context.pairs}
  return dataclasses.replace(model, context=dataclasses.replace(model.context, **own))


def _given(flags, named):
  """The settings that flags name, by their names."""
  given = choices.of_flags(flags, named)
  if flags["threshold"] is not None:
    kind = float | dict[str, float]
    given["threshold"] = values.parse(flags["threshold"], kind, "--threshold")
    values.check(given["threshold"], kind, "--threshold")
  return given


def main(argv):
  known = command.MODEL | {"data": "", "out": "", "columns": None, "batch_size": 64}
  known |= {"threshold": None, "part": None} | choices.FLAGS
  config, flags = command.parse(argv, known, needs_config=False)
  start.quiet()
  start.compilation_cache()
  if flags["batch_size"] < 1:
    raise UsageError(f"--batch_size={flags['batch_size']}: expected at least 1")
  given = _given(flags, command.named(argv, known))
  mesh = start.mesh_of_flags(flags["fsdp"], flags["tensor"])
  rows, named, make = unlabelled.rows_of(flags, config)
  base = pretrained.open_pretrained(flags["model"], flags["sha256"], flags["revision"])
  if config is not None and config.task != base.task:
    config = None  # of its rows alone
  if config is not None:
    evaluate.check_texts(base, config)
  if config is not None and writes(base):
    given = answering.rules_of(config) | given
  scores, rules = by_task(base, given, flag="--")  # before the weights are read
  model = pretrained.model_of(base, mesh)
  if config is not None:
    model = _as_config_says(model, config)
  context = labels.scoring(model.context, **scores)
  model = dataclasses.replace(model, context=context)
  answer = predictor(model, flags["batch_size"], **rules)
  seen = hashlib.sha256(f"{named} {sorted(rules.items())}".encode())
  seen.update(repr(dataclasses.replace(context, tokenizer=None)).encode())
  seen.update(base.identity().encode() + _small_files(base.path))
  out = row_file.RowFile(flags["out"], seen.hexdigest())
  try:
    if out.done:
      print(f"going on after {out.done} rows that are answered already")
    size = WRITTEN * flags["batch_size"] if writes(base) else BLOCK
    blocks = _blocks(itertools.islice(rows, out.done, None), size)
    errors = _answer_all(blocks, make, answer, out, tasks.TASKS[base.task])
    out.close()
  finally:
    out.leave()
  print(f"{out.done} rows in {out.out}")
  if errors:
    print(f'{len(errors)} rows read now have no answer, as their "error" says: {errors[0]}')


def _small_files(path):
  """Hash of what a directory has beside weights: tokenizer, template, generation's settings."""
  digest = hashlib.sha256()
  for file in sorted(path.iterdir()) if path.is_dir() else ():
    if file.suffix in (".json", ".jinja", ".txt", ".model"):
      digest.update(f"{file.name} ".encode() + file.read_bytes())
  return digest.digest()


def _answer_all(blocks, make, answer, out, task):
  """Writes every row, as `make` makes it, with what is said of it; returns the sentences of
  those without answer.

  Raises JaxsftError where the first rows have none at all: then it is not for the rows.
  """
  errors = []
  with screen.counting("rows") as show:
    for block in blocks:
      made, said = _each(block, make)
      block = [made.get(i, row) for i, row in enumerate(block)]
      for i, words in zip(made, answer(list(made.values())), strict=True):
        said[i] = words
      errors += [words["error"] for words in said if set(words) == {"error"}]
      if not out.done and len(errors) == len(block):
        raise JaxsftError(errors[0])
      out.write([_line(row, words, task) for row, words in zip(block, said, strict=True)])
      show(out.done)
  return errors


def _line(row, words, task):
  """The row as it is written; raises UsageError where an answer would hide a field of it."""
  given, gold = tasks.given_and_gold(row, task)
  if hidden := sorted({*given, *gold} & {*words} | ({"gold"} & {*given} if gold else set())):
    name = hidden[0]
    raise UsageError(
      f"{row.where}: the row has a field {name!r}, and predictions have one too; give the "
      f'row\'s another name, as in --columns=\'{{"input_{name}": "{name}"}}\''
    )
  return {"id": row.id, **given, **gold, **words}


if __name__ == "__main__":
  command.run(main)
