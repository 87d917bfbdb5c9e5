"""Several models on the same held-out rows: which is better, and whether it could be chance."""

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.metrics import significance

LEVEL = 0.05


def compare(systems, task):
  """{"metrics": {system: {metric: …}}, "pairs": […], "rows", "left_out"} of several systems.

  systems: {name: ([tasks.Found], tasks.Context)}, the first is what the others are compared
  with. Rows that one of them could not take (too long) are left out for all, and counted; so
  are, for metrics of generated answers, those that one of a pair did not answer ("n" rows are
  compared). A pair has what `significance.compare` says of the task's main metrics, and for
  accuracies the exact test of McNemar.
  """
  by_id = {name: {one.row.id: one for one in found} for name, (found, _) in systems.items()}
  shared = [i for i in next(iter(by_id.values())) if all(i in rows for rows in by_id.values())]
  if not shared:
    raise JaxsftError("the models have no held-out row in common, expected the same data")
  left_out = max(len(rows) for rows in by_id.values()) - len(shared)
  measured = {}
  for name, (_, context) in systems.items():
    rows = [by_id[name][i] for i in shared]
    measured[name] = {one.name: one for one in task.measured(rows, context)}
  first, *others = systems
  pairs = []
  for other in others:
    for metric, one in measured[other].items():
      if metric in measured[first]:
        pair = significance.compare(measured[first][metric], one) | _mcnemar(
          measured[first][metric], one
        )
        pairs.append({"models": [first, other]} | pair)
  scores = {
    name: {metric: significance.interval(one) for metric, one in ones.items()}
    for name, ones in measured.items()
  }
  return {"metrics": scores, "pairs": pairs, "rows": len(shared), "left_out": left_out}


def _mcnemar(baseline, system):
  a_row_each = all((one.rows[:, 1:] == 1).all() for one in (baseline, system))
  if system.name != "accuracy" or system.rows.shape[1] != 2 or not a_row_each:
    return {}
  right = [np.isclose(one.rows[:, 0], one.rows[:, 1]) for one in (baseline, system)]
  return significance.mcnemar(*right)


def table(result):
  """Lines for people."""
  shown = [
    f"{result['rows']} rows" + f", {result['left_out']} left out" * bool(result["left_out"])
  ]
  for name, metrics in result["metrics"].items():
    words = [
      f"{metric} {one['value']:.4g} ({one['low']:.4g} to {one['high']:.4g})"
      for metric, one in metrics.items()
      if one["value"] is not None and one["low"] is not None
    ]
    shown.append(f"{name}: {', '.join(words)}")
  for pair in result["pairs"]:
    first, other = pair["models"]
    if why := pair.get("not_compared"):
      shown.append(f"{other} - {first}: {pair['metric']} is not compared: {why}")
      continue
    if pair["difference"] is None:
      shown.append(f"{other} - {first}: {pair['metric']} is undefined on these rows")
      continue
    p = pair["p_randomisation"]
    verdict = (
      "no difference"
      if pair["better"] is None
      else (
        f"{other if pair['better'] == 'system' else first} is better, "
        + ("beyond chance" if p is not None and p < LEVEL else "which may be chance")
      )
    )
    shown.append(
      f"{other} - {first}: {pair['metric']} {pair['difference']:+.4g} "
      f"({pair['low']:.4g} to {pair['high']:.4g}), p = {p:.4g} on {pair['n']} rows: {verdict}"
    )
  return shown
