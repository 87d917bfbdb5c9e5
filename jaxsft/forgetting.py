"""What a model is worth on its task, and what it has forgotten; a compiled step for each."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxsft import config as config_lib
from jaxsft import evaluate, job, sharding, sources, tasks, weights
from jaxsft.errors import UsageError
from jaxsft.tuning import endpoints

TEXTS = {"chat": "perplexity", "masked_lm": "pseudo_perplexity", "seq2seq": "perplexity"}
"""Tasks that read a text, and the metric of it."""
LENGTH = 512  # tokens of a text that are read together


class Judge(NamedTuple):
  """What measures a model: one compiled step for all of them."""

  metric: str
  mode: str
  """"max" or "min"."""
  measure: Callable
  """Nested dict of parameters -> metrics."""


def numbers(judge, place):
  """{"value": the judge's metric or None, "metrics": all numbers} of parameters by path."""
  metrics = judge.measure(weights.params.nest(place))
  kept = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
  value = kept.get(judge.metric)
  finite = value is not None and math.isfinite(value)
  return {"value": float(value) if finite else None, "metrics": kept}


def share(first, value, mode):
  """Share of the pretrained model's value by which a general metric is worse."""
  if value is None or not first:
    return math.inf
  return (value - first if mode == "min" else first - value) / abs(first)


def of_task(config):
  """Function of the tuned pretrained.Model -> Judge, on the rows that `evaluate` measures."""
  rows = next(iter(evaluate.measured_on(config, tasks.TASKS[config.task]).values()))[0]

  def make(model):
    judged = evaluate.judging(model, config, rows)
    metric, mode = job.metric_of(config, tasks.TASKS[config.task], model.context)
    return Judge(metric, mode, lambda params: judged(params)[0])

  return make


def of_general(path, config_path, config, base):
  """Function of (tuned pretrained.Model, endpoints.Ends) -> Judge or None.

  A text is read by the pretrained checkpoint's own head, on the body of the model that is
  measured; leaves of that head which the tuned model has, too, are the measured ones.
  """
  if config_path is not None:
    make = of_task(config_lib.load_config(config_path))
    return lambda model, ends: make(model)
  if path is None:
    return lambda model, ends: None
  if base.task not in TEXTS:
    raise UsageError(
      f"--general: {base.path}, {base.config.get('architectures')}, has no language model's "
      "head to read a text with; give rows of another set by --general_config=configs/….py"
    )
  own = _general_config(base, path, config)
  task = tasks.TASKS[base.task]
  rows = sources.read_data(own.data, task, key="--general").train

  def make(model, ends):
    network = base.network_of(base.kind)
    reader = dataclasses.replace(
      model, base=base, network=network, context=tasks.Context(base.tokenizer, base.limit)
    )
    judged = evaluate.judging(reader, own, rows)
    names = endpoints.network_names(base, network)
    shared = {name.path for name in set(names) & set(ends.names)}
    shapes = network.shapes()
    shardings = weights.params.flatten(sharding.shardings_for(shapes, model.mesh))
    readers = endpoints.readers(base, network)
    kept = {
      p: jax.device_put(read(), shardings[p]) for p, read in readers.items() if p not in shared
    }

    def measured(params):
      flat = weights.params.flatten(params)
      return judged(weights.params.nest(kept | {path: flat[path] for path in shared}))[0]

    return Judge(TEXTS[base.task], "min", measured)

  return make


def _general_config(base, path, config):
  """The config by which a text is read: whole, in windows where it is long."""
  length = min(LENGTH, base.limit)
  windows = (
    {"too_long": "windows", "stride": min(128, length // 4)} if base.task == "chat" else {}
  )
  data = config_lib.Data(path=path, split=0.0, max_length=length, **windows)
  return config_lib.check(
    config_lib.Config(
      task=base.task,
      model=config.model,
      data=data,
      mesh=config.mesh,
      batch_size=config.batch_size,
      evaluate=config_lib.Evaluate(batch_size=config.evaluate.batch_size),
    )
  )
