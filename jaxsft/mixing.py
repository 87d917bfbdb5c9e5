"""Data sets of a mixture and labels: how often each is drawn, what it counts, how it does."""

import numpy as np

from jaxsft.data import mixture


def draw(config, examples, labels):
  """mixture.Draw of the training encoding.Examples; None where an epoch holds each once.

  labels: names in id order.
  """
  mix = config.data.mix
  if config.data.balance == "classes":
    found, members = np.unique(examples.store.values["label"], return_inverse=True)
    return mixture.make([labels[i] for i in found], members, mixture.as_the_largest)
  if mix is None:
    return None
  members = of_examples(examples, list(mix))
  weights = [part.weight for part in mix.values()]
  epochs = [1 if part.epochs is None else part.epochs for part in mix.values()]
  count = lambda sizes: mixture.by_epochs(sizes, epochs)
  if None not in weights:
    count = lambda sizes: mixture.by_weights(sizes, weights)
  elif config.data.mix_temperature != 1:
    count = lambda sizes: mixture.by_temperature(sizes, config.data.mix_temperature)
  return mixture.make(list(mix), members, count)


def of_examples(examples, names):
  """[N] int: which of the data sets `names` each example is of."""
  number = {name: k for k, name in enumerate(names)}
  rows = np.array([number[row.part] for row in examples.rows])
  return rows[examples.store.values["row"]]


def loss_weights(config, examples):
  """[N] float32, Part.loss_weight of each training example; None where all count the same."""
  mix = config.data.mix or {}
  weights = np.array([part.loss_weight for part in mix.values()], np.float32)
  return None if (weights == 1).all() else weights[of_examples(examples, list(mix))]


def by_part(found, task, context):
  """{"NAME/metric": value} of the rows of each data set, of one evaluation's [tasks.Found]."""
  parts = {}
  for one in found:
    if one.row.part:
      parts.setdefault(one.row.part, []).append(one)
  numbers = {}
  for name, part in parts.items():
    metrics = task.metrics(part, context)
    numbers |= {f"{name}/{k}": v for k, v in metrics.items() if isinstance(v, float)}
  return numbers
