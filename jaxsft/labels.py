"""The labels of a run: their names and order, settled between config, checkpoint and rows, how
often they occur, and what goes by them.
"""

import dataclasses

import numpy as np

from jaxsft import tasks
from jaxsft.data import clean, spool
from jaxsft.errors import JaxsftError, UsageError


def settle(config, base, rows):
  """(label names in id order, the rows with these names) of a task's sources.Rows."""
  names = trained(config, base)
  train, held_out = (named(part, names, config) for part in (rows.train, rows.held_out))
  rows = rows._replace(train=train, held_out=held_out)
  return label_names(config, base, rows.train), rows


def trained(config, base):
  """The labels of the checkpoint's own head where the rows have to mean these; else ()."""
  if config.task != "classify" or config.model.new_head or config.data.labels is not None:
    return ()
  return base.labels if base.label_type == config.data.label_type else ()


def named(rows, names, config):
  """The cleaned rows, whose labels are no longer ids of `names` but the names themselves."""
  if config.task != "classify" or not names or config.data.label_type == "number":
    return rows
  return spool.Spool(clean.with_names(row, names) for row in rows)


def label_names(config, base, train_rows):
  """Label names in id order: the config's, else the checkpoint's, else the rows' own, sorted.

  Raises UsageError where they contradict a checkpoint with a trained head: a head is only
  replaced where model.new_head says so.
  """
  data, task = config.data, tasks.TASKS[config.task]
  if not hasattr(task, "label_names"):
    return ()
  own = () if config.model.new_head else base.labels
  if own and base.label_type != data.label_type:
    raise UsageError(
      f"config.data.label_type: found {data.label_type!r}, the head of {base.path} was trained "
      f"with {base.label_type!r}; set it to that, or config.model.new_head=True to replace "
      "the head"
    )
  if data.label_type == "number":
    return ("number",)
  names = tuple(data.labels or task.label_names(train_rows, own))
  if own:
    if names != own:
      _refuse(names, own, base.path)
    return names
  fewest = 1 if data.label_type == "multi" else 2
  if data.labels is None and len(names) < fewest:
    found = f"the label {', '.join(names)} only" if names else "no label at all"
    raise JaxsftError(
      f"the training rows have {found}, expected at least {('one', 'two')[fewest - 1]}; "
      "check config.data.columns and config.data.labels"
    )
  return names


def _refuse(names, trained, path):
  """Says how labels would fit a trained head: in its order, by its names, or with a new one."""
  if sorted(names) == sorted(trained):
    fix = f"write them in its order, config.data.labels={trained}"
  else:
    fix = (
      "rename the labels of the rows with rules, such as "
      f"config.data.labels={{{trained[0]!r}: \"label == '{names[0]}'\", …}}, or set "
      "config.model.new_head=True to replace the head"
    )
  raise UsageError(
    f"config.data.labels: found {names}, the head of {path} was trained with {trained}; {fix}"
  )


def counts(store, classes):
  """[C] int: how many examples have each label, or how many supervised tokens have it."""
  if "label" in store.values:
    found = np.asarray(store.values["label"])
    return found.sum(0) if found.ndim == 2 else np.bincount(found, minlength=classes)
  supervised = store.tokens["weights"] > 0
  return np.bincount(store.tokens["targets"][supervised], minlength=classes)


def unlabelled(store):
  """How many examples that may have many labels have none."""
  found = store.values.get("label")
  return int((found.sum(-1) == 0).sum()) if found is not None and found.ndim == 2 else 0


def class_weights(setting, names, store):
  """Weight of each label in the loss, of config.loss.class_weights; None: 1 for all.

  "balanced" is n / (C n_c) of n supervised labels, n_c of them this one, and C labels that
  occur (scikit-learn's compute_class_weight); one that never occurs has 1. Where an example
  has many labels it is the weight of a yes beside a no: (n - n_c) / n_c of n examples.
  Raises UsageError for a label that is not in `names`.
  """
  if setting == "none":
    return None
  if setting != "balanced":
    return _by_label(setting, names, 1.0, "config.loss.class_weights")
  found = counts(store, len(names)).astype(np.float64)
  here = np.maximum(found, 1)
  label = store.values.get("label")
  if label is not None and label.ndim == 2:
    weights = (len(store) - found) / here
    if missing := [name for name, w in zip(names, weights, strict=True) if w == 0]:
      raise JaxsftError(
        f"config.loss.class_weights: every training row has the label {missing[0]!r}, expected "
        "some without it; give the weights as {label: weight}, or leave the label out"
      )
  else:
    weights = found.sum() / (np.count_nonzero(found) * here)
  return tuple(np.where(found > 0, weights, 1.0).tolist())


def thresholds(setting, names, key="config.evaluate.threshold"):
  """A threshold as one number, or one a label in the order of `names`."""
  if isinstance(setting, dict):
    return _by_label(setting, names, 0.5, key)
  return setting


def scoring(context, temperature=1.0, threshold=None):
  """The tasks.Context by which `decode` makes scores and decides.

  temperature: of the scores of one label; threshold: of many labels, a number or {label:
  number}, None: the context's own. Raises UsageError for what has no meaning or no effect.
  """
  if not 0 < temperature < np.inf:
    raise UsageError(f"temperature is {temperature}, expected a number above 0")
  if temperature != 1 and (context.label_type != "single" or not context.labels):
    raise UsageError(
      f"temperature is {temperature}, but the model does not choose one of several labels, "
      "whose scores it would change; leave it at 1"
    )
  if threshold is None:
    return dataclasses.replace(context, temperature=temperature)
  if context.label_type != "multi":
    raise UsageError(
      f"threshold is {threshold}, but the model does not give many labels; leave it out"
    )
  if isinstance(threshold, dict):
    own = context.threshold
    every = own if isinstance(own, tuple) else (own,) * len(context.labels)
    threshold = dict(zip(context.labels, every, strict=True)) | threshold
  found = thresholds(threshold, context.labels, "threshold")
  if not all(0 < one < 1 for one in (found if isinstance(found, tuple) else (found,))):
    raise UsageError(f"threshold is {threshold}, expected above 0 and below 1")
  return dataclasses.replace(context, temperature=temperature, threshold=found)


def _by_label(setting, names, usual, key):
  if unknown := [name for name in setting if name not in names]:
    raise UsageError(
      f"{key}: found the label {unknown[0]!r}, expected some of {', '.join(names)}"
    )
  return tuple(float(setting.get(name, usual)) for name in names)
