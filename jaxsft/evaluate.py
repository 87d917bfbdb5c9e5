"""Measures a model on labelled rows.

  python -m jaxsft.evaluate --model=DIR_OR_NAME --config=configs/x.py [--config.a.b=v …]

Evaluates on the rows that the config holds out of training. Every example counts exactly
once, whatever the batch size, the packing and the number of devices.
"""

import json
from functools import partial

import jax
import numpy as np

from jaxsft import command, log, prepare, pretrained, sharding, start, step
from jaxsft.compiled import Compiled
from jaxsft.data import feed
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tasks import TASKS


def make_eval_step(network, task, options, mesh):
  """Compiled (params, batch) -> (sums, outputs); no gradient, no dropout, nothing donated."""
  loss = lambda params, batch, key: task.loss(network, params, batch, options, key)
  return _compiled(loss, network, task, mesh)


def make_predict_step(network, task, mesh):
  """The same for batches without labels: there are no sums."""
  return _compiled(lambda params, batch, key: {}, network, task, mesh)


def _compiled(loss, network, task, mesh):
  def predict(params, batch):
    return task.predict(network, params, batch) | {"example_ids": batch["example_ids"]}

  whole = sharding.replicated(mesh)  # every process reads all outputs
  return Compiled(partial(step.eval_step, loss=loss, predict=predict), out_shardings=whole)


def measure(eval_step, params, store, plan, mesh, prefetch=2):
  """(means, outputs) over every example of `store`, each once.

  means: {"loss", …} as Python floats, summed in float64 over batches and divided once;
  outputs: {name: [N, …]} in the order of the store.
  """
  index, count = jax.process_index(), jax.process_count()

  def make(number):
    _, row_length, segments = plan.shape(number)
    rows = feed.rows_of_process(plan.batch(number), index, count)
    return feed.batch(store, rows, row_length=row_length, segments=segments)

  hosts = feed.batches(make, 0, plan.num_steps, prefetch)
  with jax.set_mesh(mesh):
    pending = [eval_step(params, batch) for batch in sharding.put_batches(hosts, mesh)]
  totals, outputs = {}, {}
  for sums, found in jax.device_get(pending):
    for name, pair in sums.items():
      totals[name] = totals.get(name, 0) + np.asarray(pair, np.float64)
    ids = found.pop("example_ids")
    for name, values in found.items():
      whole = outputs.setdefault(name, np.zeros((len(store), *values.shape[2:]), values.dtype))
      whole[ids[ids >= 0]] = values[ids >= 0]
  means = {name: float(total / max(weight, 1e-9)) for name, (total, weight) in totals.items()}
  return means, outputs


def evaluate(model, config):
  """Final metrics (a dict) of a `pretrained.Model` on the held-out rows of a config.

  Where the config holds nothing out (data.split=0), on all its rows.
  """
  _check_model(model.base, config)
  task = TASKS[config.task]
  context = prepare.make_context(config, model.base, model.context.labels)
  rows = prepare.read_data(config.data, task)
  examples = prepare.encode(rows.held_out or rows.train, task, context)
  mesh = start.mesh_of(config.mesh)
  limit = prepare.row_limit(config, context, examples)
  plan = prepare.evaluation_plan(config, examples.store, limit, mesh)
  params = jax.device_put(model.params, sharding.shardings_for(model.params, mesh))
  eval_step = make_eval_step(model.network, task, config.loss, mesh)
  means, outputs = measure(eval_step, params, examples.store, plan, mesh)
  metrics = task.metrics(means, outputs, examples.store.values.get("label"), context)
  return metrics | {"examples": len(examples.store)}


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


def main(argv):
  config, flags = command.parse(argv, {"model": "", "out": None})
  start.quiet()
  model = pretrained.load(flags["model"])
  metrics = evaluate(model, config)
  text = json.dumps(metrics, indent=2)
  print(text)
  if flags["out"]:
    try:
      log.write_json(flags["out"], metrics)
    except OSError as error:
      raise JaxsftError(
        f"--out={flags['out']}: cannot be written ({error.strerror}); choose another place"
      ) from error


if __name__ == "__main__":
  command.run(main)
