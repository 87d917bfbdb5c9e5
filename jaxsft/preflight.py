"""The preflight report of a run about to start, from what `prepare` made."""

import numpy as np

from jaxsft import job as jobs
from jaxsft import optim
from jaxsft.data import audit
from jaxsft.doctor import findings, parts
from jaxsft.errors import JaxsftError
from jaxsft.tuning import select

SAID = ("batch-larger-than-data",)
"""Codes of findings that are among the notes."""


def report(prepared, config, shapes, chosen, rule):
  """audit.Audit of a run about to start; raises JaxsftError for what must not run.

  shapes: the network's parameter shapes; chosen: select.Choice; rule: optim.Rule.
  """
  train, plan = prepared.train, prepared.plan
  check_starts(rule, plan.num_steps)
  sets = parts.all_described(prepared)
  found = findings.findings(prepared, config, sets)
  findings.refuse(found)
  rates = (
    [float(rule.schedule(i)) for i in range(plan.num_steps)] if plan.num_steps < 10**5 else []
  )
  ends = [
    float(rule.schedule(0)),
    max(rates, default=0.0),
    float(rule.schedule(plan.num_steps - 1)),
  ]
  leaves = leaves_of(shapes, chosen, rule, config.tune.base_dtype)
  warnings = [one.text for one in found if one.grade == "warns" and one.code not in SAID]
  samples = []
  for sample in train.counts["samples"]:
    label = sample.get("label", "")
    label = ", ".join(label) or "(none)" if isinstance(label, list) else label
    label = "" if label == "" else f"  → {label}"
    samples.append(audit.mark(sample["text"], [tuple(s) for s in sample["spans"]]) + label)
  return audit.audit(
    rows_of(prepared),
    sets["train"],
    sets.get("held out"),
    plan_of(prepared, config),
    further={name: sets[name] for name in prepared.sets},
    rates=dict(zip(("start", "peak", "end"), ends, strict=True)),
    leaves=leaves,
    samples=samples,
    warnings=[*warnings, *without_effect(config.optim, leaves)],
  )


def without_effect(settings, leaves):
  """Sentences on what `optim` says of decay where nothing that trains decays."""
  if any(leaf.trained and leaf.decays for leaf in leaves):
    return
  usual = type(settings)()
  for key in ("weight_decay", "penalty_weight"):
    value = getattr(settings, key)
    if value not in (0, getattr(usual, key)):
      yield (
        f"config.optim.{key} is {value:g}, but nothing that trains decays (adapters, biases "
        "and norms do not), so it has no effect"
      )


def check_starts(rule, total):
  """Raises JaxsftError where something starts to train after the last update."""
  for path, start in rule.starts.items():
    if np.max(start) >= total:
      raise JaxsftError(
        f"{path}: would train from update {np.max(start)} on, but the run has {total}; lower "
        "config.tune.unfreeze or config.tune.unfreeze_every, or train longer"
      )


def leaves_of(shapes, chosen, rule, held):
  """The audit.Leaf of every parameter, in order; held: type of matrices that do not train."""

  def one(path, leaf):
    rows = leaf.shape[0] if leaf.shape else 1
    mask = chosen.masks.get(path, [n >= chosen.first.get(path, 0) for n in range(rows)])
    below = path.startswith("later/")  # the first layer, which has no such row
    part = [n + below for n in range(rows) if mask[n]]
    part = None if path not in chosen or all(mask) else part
    rate = np.asarray(rule.rates.get(path, 1.0)).tolist()
    start = np.asarray(rule.starts.get(path, 0)).tolist()
    trained = chosen.trained(path, leaf)
    dtype = str(leaf.dtype)
    if path.endswith(jobs.HELD) and held != dtype and (not trained or chosen.first.get(path)):
      dtype = f"{dtype}, frozen layers {held}" if trained else held
    return audit.Leaf(
      path, leaf.shape, dtype, trained, part, optim.decays_at(path), rate, start
    )

  return tuple(one(path, leaf) for path, leaf in select.paths(shapes))


def rows_of(prepared):
  """audit.Rows of a `prepare.Prepared`."""
  rows = prepared.rows
  kept = len(rows.train) + len(rows.held_out) - rows.copies
  return audit.Rows(rows.read, kept, rows.left_out, rows.split, rows.changes, rows.sources)


def plan_of(prepared, config):
  """The plan's summary with what else is to be known before it runs."""
  summary, context, notes = prepared.plan.summary(), prepared.context, []
  if context.class_weights is not None:
    pairs = zip(context.labels, context.class_weights, strict=True)
    notes.append("class weights: " + ", ".join(f"{name} {w:.3g}" for name, w in pairs))
  if prepared.task.HEAD == "masked_lm":
    unit = "words" if context.whole_words else "supervised tokens"
    notes.append(f"every update hides {context.mask_rate:.3g} of its {unit}, others each time")
  if prepared.task.HEAD == "lm" and not prepared.task.SOURCE and context.train_on == "each":
    found = prepared.train.store
    rows = len(set(found.values["row"].tolist()))
    notes.append(f"{rows:,} rows unrolled into {len(found):,} examples, one of every answer")
  if config.data.template_date is not None:
    notes.append(f"the chat template is told that it is {config.data.template_date}")
  return summary | {"notes": (*summary.get("notes", ()), *notes)}
