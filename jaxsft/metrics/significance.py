"""How sure a number is: intervals, slices of the rows, two systems on the same rows."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.metrics.statistics import Measured, check_as_many

_BLOCK = 2**22  # rows times resamples that are held at once


def interval(
  metric: Measured, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict:
  """{"n", "value", "low", "high"}: the metric and its percentile bootstrap interval.

  Rows are drawn with replacement, n of n, `resamples` times (Efron 1979); low and high are the
  quantiles (1 -+ level) / 2 of the values. Resamples that leave the metric undefined are left
  out and counted in "undefined_resamples", where there are any. None: one row has no interval.
  Where all rows score alike, the interval has no width, which says little of a small slice.
  """
  n, value = len(metric.rows), metric.score
  result = {"n": n, "value": None if np.isnan(value) else value, "low": None, "high": None}
  if n < 2:
    return result
  values = _resampled(metric, n, resamples, seed)
  return result | _quantiles(values, level)


def slices(
  metric: Measured,
  groups: Sequence[Hashable],
  resamples: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> list[dict]:
  """For each group of rows {"slice": group} and what `interval` says of its rows.

  groups: the group of each row that was asked for; those that the metric has no row of
  (`Measured.at`) count for nothing. In ascending order (whole numbers in texts by their value:
  "5 to 9" before "10 to 20"), or by first row where the groups cannot be compared; together
  they hold every row once.
  """
  if metric.places[-1] >= len(groups) or (metric.at is None and len(groups) > len(metric.rows)):
    raise JaxsftError(
      f"{len(groups)} groups for {len(metric.rows)} rows, expected one for each"
    )
  members: dict[Hashable, list[int]] = {group: [] for group in groups}
  for index, place in enumerate(metric.places):
    members[groups[place]].append(index)
  try:
    order = sorted(members, key=_natural)
  except TypeError:
    order = list(members)
  found = []
  for group in order:
    nothing = {"n": 0, "value": None, "low": None, "high": None}
    mine = members[group]
    said = interval(metric.only(mine), resamples, level, seed) if mine else nothing
    found.append({"slice": group} | said)
  return found


def value_buckets(values: Sequence[float], buckets: int = 4) -> list[tuple[float, float]]:
  """For each row the (least, greatest) value of its bucket; buckets are near equal in rows.

  Rows of one value share a bucket, so that there may be fewer.
  """
  values = np.asarray(values)
  inner = np.quantile(values, np.arange(1, buckets) / buckets, method="lower")
  bucket = np.searchsorted(np.unique(inner), values, side="left")
  ends = {}
  for b in np.unique(bucket):
    inside = values[bucket == b]
    ends[b] = (inside.min().item(), inside.max().item())
  return [ends[b] for b in bucket]


def compare(
  baseline: Measured,
  system: Measured,
  resamples: int = 1000,
  trials: int = 10000,
  level: float = 0.95,
  seed: int = 0,
) -> dict:
  """Two systems on the same rows: values, their difference, and how likely it is chance.

  Rows that one of them has no answer to are left out; classes are told by their names.
  {"metric", "not_compared": why} where their numbers mean different things.
  "baseline", "system" and "difference" (system - baseline) are values of the metric, None where
  undefined; "better" names the better one by the metric's direction, None if they are equal.
  The rest is that of `paired_bootstrap` and `approximate_randomisation`.
  """
  baseline, system, why = _aligned(baseline, system)
  if why:
    return {"metric": system.name, "not_compared": why}
  a, b = baseline.score, system.score
  gain = (b - a) if system.direction == "max" else (a - b)
  better = None if gain == 0 or np.isnan(gain) else "system" if gain > 0 else "baseline"
  values = {"baseline": a, "system": b, "difference": b - a}
  return (
    {"metric": system.name, "n": len(system.rows), "better": better}
    | {name: None if np.isnan(one) else one for name, one in values.items()}
    | paired_bootstrap(baseline, system, resamples, level, seed)
    | approximate_randomisation(baseline, system, trials, seed)
  )


def _aligned(baseline, system):
  """Both on the rows and classes of both, and why they cannot be compared, or None."""
  if baseline.at is None and system.at is None and len(baseline.rows) != len(system.rows):
    _check_pair(baseline, system)  # says so
  shared = np.intersect1d(baseline.places, system.places)
  if not len(shared):
    return baseline, system, "no row has an answer of both"
  baseline, system = (one.only(np.isin(one.places, shared)) for one in (baseline, system))
  if (baseline.unit or system.unit) and (baseline.rows[:, 1] != system.rows[:, 1]).any():
    counts = [f"{one.rows[:, 1].sum():,.0f}" for one in (baseline, system)]
    return baseline, system, f"they count {system.unit}s differently ({' and '.join(counts)})"
  if baseline.classes != system.classes:
    names = sorted({*baseline.classes, *system.classes})
    baseline, system = (_by_class(one, names) for one in (baseline, system))
  return baseline, system, None


def _by_class(metric, names):
  """The metric with its statistics in the order of the class names, 0 for those it lacks."""
  counts = metric.rows.reshape(len(metric.rows), 3, len(metric.classes))
  spread = np.zeros((len(counts), 3, len(names)))
  spread[..., [names.index(name) for name in metric.classes]] = counts
  return replace(metric, rows=spread.reshape(len(counts), -1), classes=tuple(names))


def paired_bootstrap(
  baseline: Measured,
  system: Measured,
  resamples: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> dict:
  """{"low", "high", "wins", "p_bootstrap"} of system - baseline, both on the same resamples.

  low, high: percentile interval of the difference. wins: share of resamples in which the
  system is strictly better (Koehn 2004). p_bootstrap: how often the absolute difference, less
  its mean, is at least the one observed (Riezler & Maxwell 2005; one is added to both counts).
  """
  _check_pair(baseline, system)
  n = len(system.rows)
  difference = _resampled(system, n, resamples, seed) - _resampled(baseline, n, resamples, seed)
  defined = difference[~np.isnan(difference)]
  gain = defined if system.direction == "max" else -defined
  size = np.abs(defined)
  chance = size - size.mean() if len(size) else size
  return _quantiles(difference, level) | {
    "wins": float(np.mean(gain > 0)) if len(gain) else None,
    "p_bootstrap": _p_value(chance, system.score - baseline.score),
  }


def approximate_randomisation(
  baseline: Measured, system: Measured, trials: int = 10000, seed: int = 0
) -> dict:
  """{"p_randomisation"}: two-sided p of the observed difference if systems were exchangeable.

  Each trial swaps the two systems on a random half of the rows; p counts the trials whose
  absolute difference is at least the one observed (Riezler & Maxwell 2005; one is added to both
  counts). sacrebleu counts only larger ones, which for metrics with few values is too bold.
  """
  _check_pair(baseline, system)
  n, rng = len(system.rows), np.random.default_rng(seed)
  total = baseline.rows.sum(0) + system.rows.sum(0)
  change = baseline.rows - system.rows
  differences = []
  for count in _blocks(n, trials):
    swapped = rng.integers(2, size=(count, n), dtype=bool)
    one = system.rows.sum(0) + swapped @ change
    differences.append(np.abs(system.value(one) - system.value(total - one)))
  differences = np.concatenate(differences)
  observed = system.score - baseline.score
  return {"p_randomisation": _p_value(differences[~np.isnan(differences)], observed)}


def mcnemar(baseline_right: Sequence[bool], system_right: Sequence[bool]) -> dict:
  """{"only_baseline", "only_system", "p_mcnemar"}: exact two-sided test of two accuracies.

  Of the rows that one system alone gets right, each is as likely to be either's (McNemar 1947;
  the binomial test of 1/2).
  """
  check_as_many(baseline_right, system_right)
  a, b = np.asarray(baseline_right, bool), np.asarray(system_right, bool)
  only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
  n, tail, ways = only_a + only_b, 0, 1  # ways: n over k
  for k in range(min(only_a, only_b) + 1):
    tail += ways
    ways = ways * (n - k) // (k + 1)
  p = min(1.0, 2 * tail / 2**n)
  return {"only_baseline": only_a, "only_system": only_b, "p_mcnemar": p}


def _resampled(metric, n, resamples, seed):
  """[resamples] values on rows drawn with replacement; the draws depend on n and seed alone."""
  rng, values = np.random.default_rng(seed), []
  for count in _blocks(n, resamples):
    drawn = rng.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
    times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
    values.append(metric.value(times.astype(np.float64) @ metric.rows))
  return np.concatenate(values)


def _natural(group):
  """A key of sorting: for texts [text, number, text, ...], else the group."""
  if not isinstance(group, str):
    return group
  parts = re.split("([0-9]+)", group)
  return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _blocks(n, repeats):
  size = max(1, _BLOCK // n)
  return [min(size, repeats - start) for start in range(0, repeats, size)]


def _quantiles(values, level):
  defined = values[~np.isnan(values)]
  result = {"low": None, "high": None}
  if len(defined):
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    result = {"low": float(low), "high": float(high)}
  if len(defined) < len(values):
    result["undefined_resamples"] = len(values) - len(defined)
  return result


def _p_value(chance, observed):
  if np.isnan(observed):
    return None
  at_least = np.sum(chance >= abs(observed) - 1e-12 * max(1.0, abs(observed)))
  return float((at_least + 1) / (len(chance) + 1))


def _check_pair(baseline, system):
  if baseline.rows.shape != system.rows.shape or baseline.name != system.name:
    raise JaxsftError(
      f"{baseline.name} of shape {baseline.rows.shape} against {system.name} of shape "
      f"{system.rows.shape}, expected one metric on the same rows"
    )
