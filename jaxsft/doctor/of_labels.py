"""Findings by labels: which occur, how often, and in which set."""

import numpy as np

from jaxsft import tasks
from jaxsft.data.nearest import some
from jaxsft.doctor import parts
from jaxsft.doctor.codes import found

RATIO = 20
"""Times as many rows of the most frequent label as of the rarest: then it is said."""
RARE = 10
"""Training rows of a label, below which it is said."""
FEW = 50
"""Held-out rows, below which it is said."""
FAR = 6.0
"""Standard deviations from the mean of a number that is far away."""


def check(prepared, config, described):
  """What labels and the held-out rows give reason to say."""
  if prepared.held_out is None:
    if not prepared.sets:
      yield found(
        "no-held-out",
        "no row is held out, so no number will say what the run has learnt; set data.split or "
        "data.eval_path",
      )
  elif (count := len(prepared.held_out.rows)) < FEW:
    yield found(
      "few-held-out",
      f"{count} rows are held out: a share of right answers measured on them is known to about "
      f"±{1.96 * 0.5 / count**0.5:.0%}; hold out more with data.split",
    )
  yield from _unseen(described)
  if prepared.task is tasks.TASKS["classify"]:
    if prepared.context.label_type == "number":
      yield from _numbers(prepared)
    else:
      yield from _classes(prepared, config, described)


def _unseen(described):
  train = described["train"].labels
  for name, examples in described.items():
    unseen = [label for label in examples.labels if not train.get(label)]
    if unseen and name != "train" and set(unseen) != {"(none)"}:
      yield found(
        "unseen-labels",
        f"{parts.called(name)} have labels that training never shows: {some(unseen)}; choose "
        "another data.split, or leave such rows out with data.keep",
      )


def _classes(prepared, config, described):
  names, train = prepared.context.labels, described["train"].labels
  there = {name for examples in described.values() for name in examples.labels}
  if unused := [name for name in names if name not in there]:
    yield found(
      "unused-labels",
      f"{len(unused)} of {len(names)} labels occur in no row: {some(unused)}; remove them from "
      "data.labels, or are they spelt otherwise in the rows?",
    )
  counts = {name: train[name] for name in names if name in train}
  rare = {name: n for name, n in counts.items() if n < RARE}
  if rare:
    few = sorted(rare, key=rare.get)
    yield found(
      "rare-labels",
      f"{len(rare)} labels have fewer than {RARE} training rows: "
      f"{some([f'{name} {rare[name]}' for name in few])}; their scores will be poor: add rows, "
      "or join labels with rules in data.labels",
    )
  alike = prepared.context.class_weights is None and config.data.balance == "none"
  if len(counts) > 1 and alike:
    most, least = max(counts, key=counts.get), min(counts, key=counts.get)
    if counts[most] >= RATIO * counts[least]:
      share = counts[most] / len(prepared.train.store)
      yield found(
        "imbalance",
        f"{most} has {counts[most]:,} training rows, {least} {counts[least]:,}: always "
        f"answering {most} is right in {share:.0%}; set loss.class_weights='balanced' or "
        "data.balance='classes', and judge by a metric such as evaluate.metric='macro_f1'",
      )
  held = described["held out"].labels if "held out" in described else {}
  if len(held) == 1 and len(names) > 1 and prepared.context.label_type == "single":
    yield found(
      "one-label-held-out",
      f"all held-out rows have the label {next(iter(held))}, which says nothing of the others; "
      "choose another data.split, or rows of your own with data.eval_path",
    )


def _numbers(prepared):
  store = prepared.train.store
  values = np.asarray(store.values["label"], np.float64)
  spread = values.std()
  if spread == 0:
    yield found(
      "constant-number",
      f"every training row has the label {values[0]:g}, so there is nothing to tell apart; map "
      "another column to it: data.columns={'label': …}",
    )
  elif (far := np.flatnonzero(np.abs(values - values.mean()) > FAR * spread)).size:
    ids = [store.ids[i] for i in far[:20]]
    shown = some([f"{store.ids[i]} {values[i]:g}" for i in far[:3]], far.size)
    yield found(
      "number-outliers",
      f"{far.size:,} labels are more than {FAR:g} standard deviations from their mean "
      f"{values.mean():.3g}: {shown}; correct them, or leave them out with data.keep",
      ids,
    )
