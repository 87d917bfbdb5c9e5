"""Numbers of prepared data: lengths, labels, and what packing makes of them."""

import dataclasses

import numpy as np

from jaxsft import labels

BINS = 40
QUANTILES = {
  "shortest": 0.0,
  "25%": 0.25,
  "median": 0.5,
  "90%": 0.9,
  "99%": 0.99,
  "longest": 1.0,
}


def histogram(lengths, limit):
  """{"edges" [n+1], "counts" [n], "quantiles", "limit"} of whole numbers."""
  lengths = np.asarray(lengths)
  low, high = int(lengths.min()), int(lengths.max()) + 1
  width = max(1, -(-(high - low) // BINS))
  edges = np.arange(low, high + width, width)
  counts = np.histogram(lengths, edges)[0]
  at = np.quantile(lengths, list(QUANTILES.values()), method="higher")
  return {
    "edges": edges.tolist(),
    "counts": counts.tolist(),
    "quantiles": dict(zip(QUANTILES, map(int, at), strict=True)),
    "limit": limit,
  }


def lengths(part, prepared):
  """{stream: `histogram`} of an `encoding.Examples`."""
  context, found = prepared.context, np.asarray(part.store.lengths)
  if found.ndim == 1:
    return {"tokens": histogram(found, context.max_length)}
  return {
    "source": histogram(found[:, 0], context.max_length),
    "target": histogram(found[:, 1], context.max_target_length),
  }


def of_parts(part, prepared):
  """{data set of a mixture: {"rows", "examples", "histogram", "labels"}}; {} where none is."""
  store, found = part.store, {}
  sets = np.array([row.part for row in part.rows])
  members = sets[np.asarray(store.values["row"])]
  lengths = np.asarray(store.lengths).reshape(len(store), -1).sum(1)
  for name in filter(None, dict.fromkeys(sets.tolist())):
    own = np.flatnonzero(members == name)
    if len(own):
      found[name] = {
        "rows": int(np.sum(sets == name)),
        "examples": len(own),
        "histogram": histogram(lengths[own], None),
        "labels": _labels(store, own, prepared.context),
      }
  return found


def _labels(store, own, context):
  """{label: examples} of some examples; {} where they have none, or numbers."""
  if "label" not in store.values or context.label_type == "number":
    return {}
  some = dataclasses.replace(store, values={"label": store.values["label"][own]})
  counts = labels.counts(some, len(context.labels)).tolist()
  return {name: n for name, n in zip(context.labels, counts, strict=True) if n}


def numbers(part, prepared):
  """`histogram` of labels that are numbers, in 40 equal steps; None: they are names."""
  values = part.store.values.get("label")
  if values is None or prepared.context.label_type != "number":
    return None
  counts, edges = np.histogram(np.asarray(values, np.float64), BINS)
  at = np.quantile(values, list(QUANTILES.values()))
  names = ("least", "25%", "median", "90%", "99%", "most")
  quantiles = dict(zip(names, map(float, at), strict=True))
  return {"edges": edges.tolist(), "counts": counts.tolist(), "quantiles": quantiles}
