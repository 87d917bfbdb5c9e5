"""Measures a model on labelled rows, or compares several on the same.

  python -m jaxsft.evaluate --model=DIR_OR_NAME --config=configs/x.py [--config.a.b=v …]
  python -m jaxsft.evaluate --runs A B …        --config=configs/x.py  [--out=DIR]

Evaluates on the rows that the config holds out of training, and on those of evaluate.sets.
Every example counts exactly once, whatever the batch size, the packing and the number of
devices; "scored" says how many of the "rows", and what was "left_out" of their files, "dropped"
or "truncated" is counted by reason, and texts that config.clean has "changed". Into --out go
every prediction, the worst errors, and the numbers with intervals and slices (evaluate.slices).
Models of --runs (runs, exports, checkpoints of others) are compared with the first by paired
tests, into comparison.json. The numbers are printed as one JSON object; what they say of the
comparison is told on stderr.
"""

import contextlib
import json
import pathlib
import re
import sys

import jax
import numpy as np

from jaxsft import (
  answering,
  command,
  compare,
  encoding,
  labels,
  log,
  mixing,
  prepare,
  pretrained,
  results,
  sharding,
  sources,
  start,
  tasks,
)
from jaxsft.compiled import Compiled
from jaxsft.config.rules import OWN_SETS
from jaxsft.data import feed
from jaxsft.doctor import parts
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import stops


def make_eval_step(network, task, options, mesh):
  """Compiled (params, batch) -> what the task's `predict` finds, and where it belongs.

  No gradient, no dropout, nothing donated. options: of tasks.options_of.
  """
  where = (
    ("example_ids", "segments", "positions") if task.OUTPUTS == "token" else ("example_ids",)
  )

  def eval_step(params, batch):
    found = task.predict(network, params, batch, options)
    return found, {name: batch[name] for name in where}

  return Compiled(eval_step, out_shardings=sharding.replicated(mesh))  # every process reads all


def measure(eval_step, params, examples, plan, mesh, prefetch=2):
  """`tasks.Found` of every row that has an example, in their order.

  examples: encoding.Examples; plan: meets each of them once. Nothing is summed on the device:
  what is found does not depend on batches, rows and devices beyond the rounding of float32.
  """
  store = examples.store
  index, count = jax.process_index(), jax.process_count()

  def make(number):
    _, row_length, segments = plan.shape(number)
    rows = feed.rows_of_process(plan.batch(number), index, count)
    return feed.batch(store, rows, row_length=row_length, segments=segments)

  hosts = feed.batches(make, 0, plan.num_steps, prefetch)
  with jax.set_mesh(mesh):
    pending = [eval_step(params, batch) for batch in sharding.put_batches(hosts, mesh)]
  whole = {}
  for found, where in jax.device_get(pending):
    _collect(whole, found, where, store)
  return _by_row(examples, whole, by_token="positions" in where)


def scored(eval_step, params, examples, plan, mesh, *, network, task, context, rules=None):
  """([tasks.Found], metrics) of `measure`.

  rules: of `answering.answered`, which generates answers to some of the rows; None: no answers.
  """
  found, counts = measure(eval_step, params, examples, plan, mesh), {}
  if rules is not None:
    with jax.set_mesh(mesh):
      found, counts = answering.answered(found, network, params, task, context, **rules)
  return found, task.metrics(found, context) | counts


def _collect(whole, found, where, store):
  """Puts what one batch found into arrays [N, …], or [tokens, …], in the store's order."""
  ids = where["example_ids"]
  mine, size = ids >= 0, len(store)
  places = ids[mine]
  if "positions" in where:
    segments = where["segments"]
    mine, size = segments > 0, store.offsets[-1]
    rows = np.nonzero(mine)[0]
    places = store.offsets[ids[rows, segments[mine] - 1]] + where["positions"][mine]
  for name, values in found.items():
    if name not in whole:
      whole[name] = np.zeros((size, *values.shape[2:]), values.dtype)
    whole[name][places] = values[mine]


def _by_row(examples, whole, by_token):
  """[tasks.Found] of arrays in the store's order."""
  store, found = examples.store, {}
  for i, row in enumerate(store.values["row"].tolist()):
    part = slice(store.offsets[i], store.offsets[i + 1]) if by_token else i
    one = found.setdefault(row, tasks.Found(examples.rows[row], [], []))
    one.examples.append(store.example(i))
    one.outputs.append({name: values[part] for name, values in whole.items()})
  return list(found.values())


def evaluate(model, config):
  """Final metrics (a dict) of a `pretrained.Model` on the held-out rows of a config.

  Where the config holds nothing out (data.split=0), on all its rows.
  """
  rows = sources.read_data(config.data, tasks.TASKS[config.task], cleaning=config.clean)
  return judge(model, config, rows.held_out or rows.train)[0]


def judge(model, config, rows):
  """(metrics, [tasks.Found], tasks.Context) of a `pretrained.Model` on cleaned rows."""
  return judging(model, config, rows)(model.params)


def judging(model, config, rows):
  """`judge` as a function of parameters, for many of one network: rows are encoded and the step
  is compiled once. Those of the model are not looked at.
  """
  _check_model(model.base, config)
  task = tasks.TASKS[config.task]
  names = model.context.labels
  context = prepare.make_context(config, model.base, names)
  rows = labels.named(rows, names, config)
  examples = encoding.encode(rows, task, context)
  mesh = model.mesh or start.mesh_of(config.mesh)
  limit = prepare.row_limit(config, context, examples)
  plan = prepare.evaluation_plan(config, examples.store, limit, mesh)
  options = tasks.options_of(task, config.loss, context)
  eval_step = make_eval_step(model.network, task, options, mesh)
  rules = None
  if config.evaluate.generate:
    rules = answering.settings(config, model.base)
    supervised = examples.counts["stop_ids"]
    rules["stop_ids"] = stops.stop_ids(model.base, context.chat_template, supervised)
    rules["frame"] = answering.frame_of(model.base, context)
  notes = {kind: why for kind, why in parts.by_kind(examples.counts["notes"]).items() if why}

  def judged(params):
    params = jax.device_put(params, sharding.shardings_for(params, mesh))
    found, metrics = scored(
      eval_step, params, examples, plan, mesh,
      network=model.network, task=task, context=context, rules=rules,
    )  # fmt: skip
    counted = {"rows": len(rows), "scored": len(found), "examples": len(examples.store)}
    by_part = mixing.by_part(found, task, context)
    return metrics | counted | notes | by_part, found, context

  return judged


def _check_model(base, config):
  """Raises UsageError where the config measures what the model's head does not say."""
  if base.task != config.task:
    raise UsageError(
      f"config.task is {config.task!r}, but {base.path} is a "
      f"{base.config['architectures'][0]}, which is for {base.task!r}; use a config of that "
      "task, or another --model"
    )
  if base.task == "classify" and base.label_type != config.data.label_type:
    raise UsageError(
      f"config.data.label_type is {config.data.label_type!r}, but the head of {base.path} was "
      f"trained with {base.label_type!r}; use the config of its training, or another --model"
    )
  check_texts(base, config)


def check_texts(base, config):
  """Raises UsageError where the config changes texts in another way than those were that a
  `pretrained.Pretrained` was exported with. One that says nothing of it follows the config.
  """
  own, asked = base.answering["text_steps"], sources.text_steps(config.clean)
  if own and own != asked:
    shown = lambda steps: ", ".join(s if len(s) <= 40 else f"{s[:40]}…" for s in steps)
    here = f"texts by {shown(asked)}" if asked else "no text"
    raise UsageError(
      f"config.clean changes {here}, but {base.path} was trained on texts changed by "
      f"{shown(own)}; set config.clean.text, config.clean.secrets and config.clean.personal as "
      "in its training, or use another --model"
    )


def main(argv):
  config, flags = command.parse(argv, {"model": None, "runs": (), "out": None})
  names = [flags["model"], *flags["runs"]] if flags["model"] else list(flags["runs"])
  if not names or len({same(name) for name in names}) < len(names):
    raise UsageError(
      f"found the models {', '.join(names) or '(none)'}, expected --model=DIR_OR_NAME, or "
      "several different ones as --runs A B …"
    )
  start.quiet()
  start.compilation_cache()
  task = tasks.TASKS[config.task]
  sets = measured_on(config, task)
  directories = _directories(flags["out"], sets, names)
  said, systems = {place: {} for place in sets}, {place: {} for place in sets}
  bases = {
    name: open_model(name, config) for name in names
  }  # all of them fit, or none is measured
  for name, base in bases.items():
    model = pretrained.model_of(base, start.mesh_of(config.mesh))
    for place, (rows, counted) in sets.items():
      metrics, found, context = judge(model, config, rows)
      metrics |= counted
      systems[place][name] = (found, context)
      directory = directories[place, name]
      said[place][name] = _summary(directory, found, task, context, metrics, config)
    del model  # before the next one is read
  for place in sets if len(names) > 1 else ():
    said[place]["comparison"] = compared = compare.compare(systems[place], task)
    with _writing(flags["out"]):
      if flags["out"] is not None:
        log.write_json(_folder(flags["out"], place, sets) / "comparison.json", compared)
    where = f"{place}:" if len(sets) > 1 else ""
    print("\n".join([where, *compare.table(compared)]), file=sys.stderr)
  shown = said if len(sets) > 1 else next(iter(said.values()))
  print(json.dumps(shown if len(names) > 1 or len(sets) > 1 else shown[names[0]], indent=2))


def measured_on(config, task):
  """{place: (cleaned rows, {"left_out": why others of their files are none of them, "changed":
  what config.clean did to texts, with counts})}: of those held out, or all where none are, and
  of config.evaluate.sets.
  """
  rows = sources.read_data(config.data, task, cleaning=config.clean)
  held_out, everything = OWN_SETS
  first, called = (held_out, "held-out rows") if rows.held_out else (everything, "rows")
  found, names = {first: (rows.held_out or rows.train, rows.counted())}, {first: called}
  for name, more in sources.further_sets(config).items():
    found[name], names[name] = (more.train, more.counted()), sources.called(name)
  parts = {names[place]: rows for place, (rows, _) in found.items()}
  results.check_slices(config.evaluate.slices, parts)
  return found


def open_model(name, config):
  """pretrained.Pretrained of a name; one that the config begins with is checked as the config
  says.
  """
  own = config.model
  pins = (own.sha256, own.revision) if name == own.path else ()
  base = pretrained.open_pretrained(name, *pins)
  _check_model(base, config)
  return base


def same(name):
  """What two spellings of one model's directory share."""
  path = pathlib.Path(name)
  return str(path.resolve()) if path.exists() else name


def _directories(out, places, names):
  """{(place, name): where the files of one model on one data set go, or None: nowhere}."""
  below = {}
  for name in names:  # one alone needs no directory of its own
    own = re.sub(r"[^\w.=-]+", "_", name).strip("_") if len(names) > 1 else ""
    count = sum(other == own or other.startswith(f"{own}~") for other in below.values())
    below[name] = f"{own}~{count + 1}" if count and own else own
  return {
    (place, name): None if out is None else _folder(out, place, places) / below[name]
    for place in places
    for name in names
  }


def _folder(out, place, places):
  """Where the files on one of several data sets go."""
  return pathlib.Path(out, place if len(places) > 1 else "")


def _summary(directory, found, task, context, metrics, config):
  slices = config.evaluate.slices
  if directory is None:
    return results.summary(found, task, context, metrics, slices)
  with _writing(directory):
    return results.write(directory, found, task, context, metrics, slices)


@contextlib.contextmanager
def _writing(directory):
  """Raises JaxsftError where files cannot be written into a directory of --out."""
  try:
    yield
  except OSError as error:
    raise JaxsftError(
      f"--out={directory}: cannot be written ({error.strerror}); choose another place"
    ) from error


if __name__ == "__main__":
  command.run(main)
