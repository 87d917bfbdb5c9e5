"""The preflight report of a run about to start, from what `prepare` made."""

import collections

import numpy as np

from jaxsft import labels, optim
from jaxsft.data import audit, forms, store
from jaxsft.tuning import select


def report(prepared, shapes, chosen, schedule):
  """audit.Audit of a run about to start; raises JaxsftError for what must not run.

  shapes: the network's parameter shapes; chosen: the paths that train.
  """
  train, held_out, plan = prepared.train, prepared.held_out, prepared.plan
  rows = audit.Rows(
    prepared.rows.read,
    len(prepared.rows.train) + len(prepared.rows.held_out),
    prepared.rows.left_out,
    prepared.rows.split,
  )
  leaves = tuple(
    audit.Leaf(path, leaf.shape, path in chosen, optim.kind(path) in ("matrix", "embedding"))
    for path, leaf in select.paths(shapes)
  )
  rates = [float(schedule(i)) for i in range(plan.num_steps)] if plan.num_steps < 10**5 else []
  ends = [float(schedule(0)), max(rates, default=0.0), float(schedule(plan.num_steps - 1))]
  samples = []
  for sample in train.counts["samples"]:
    label = sample.get("label", "")
    label = ", ".join(label) or "(none)" if isinstance(label, list) else label
    label = "" if label == "" else f"  → {label}"
    samples.append(audit.mark(sample["text"], [tuple(s) for s in sample["spans"]]) + label)
  return audit.audit(
    rows,
    _described(train, prepared),
    None if held_out is None else _described(held_out, prepared),
    _with_notes(prepared),
    rates=dict(zip(("start", "peak", "end"), ends, strict=True)),
    leaves=leaves,
    samples=samples,
  )


def _with_notes(prepared):
  """The plan's summary with what else is to be known before it runs."""
  summary, context, notes = prepared.plan.summary(), prepared.context, []
  if context.class_weights is not None:
    pairs = zip(context.labels, context.class_weights, strict=True)
    notes.append("class weights: " + ", ".join(f"{name} {w:.3g}" for name, w in pairs))
  if prepared.task.HEAD == "masked_lm":
    unit = "words" if context.whole_words else "supervised tokens"
    notes.append(f"every update hides {context.mask_rate:.3g} of its {unit}, others each time")
  return summary | {"notes": (*summary.get("notes", ()), *notes)}


def _described(part, prepared):
  """audit.Examples of one part."""
  task, context = prepared.task, prepared.context
  values, counted, unit = part.store.values, {}, "tokens"
  if "label" in values or task.HEAD == "token":
    unit = "labels" if "label" in values else "words"
    if context.label_type != "number":
      counts = labels.counts(part.store, len(context.labels)).tolist()
      counted = {name: n for name, n in zip(context.labels, counts, strict=True) if n}
    if none := labels.unlabelled(part.store):
      counted["(none)"] = none
  if "start" in values:  # windows: their first token stands for no answer
    none, unit = int(np.sum(np.asarray(values["start"]) == 0)), "windows"
    counted = {"answer": len(part.store) - none, "no answer": none}
  content = ("text_pair", "question", "context", "source", "target", "targets", "tokens")
  content = (*forms.FIELDS, *content)
  texts = [repr([row.fields.get(name) for name in content]) for row in part.rows]
  written = {}
  if task.HEAD == "lm" and not task.SOURCE:
    written = dict(collections.Counter(forms.form(row.fields) for row in part.rows))
  return audit.Examples(
    ids=part.store.ids,
    lengths=part.store.lengths,
    supervised=store.supervised(part.store),
    texts=texts,
    unit=unit,
    rows=len(np.unique(values["row"])),
    labels=counted,
    forms=written,
    **by_kind(part.counts["notes"]),
  )


def by_kind(notes):
  """{"dropped", "truncated", "noted": {note: rows}} of the notes of `Examples.counts`."""
  kinds = {"dropped": {}, "truncated": {}, "noted": {}}
  for note, n in notes.items():
    kinds[next((kind for kind in kinds if note.startswith(kind)), "noted")][note] = n
  return kinds
