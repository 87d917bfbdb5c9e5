"""Intervals, slices and tests of significance for metrics that are functions of sums over rows.

Such a metric is a vector of statistics for each row and a function of their sum, so that a
resample of the rows costs one product of counts and statistics.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.metrics import text

_BLOCK = 2**22  # rows times resamples that are held at once


@dataclass(frozen=True)
class Measured:
  """A metric of one system on n rows."""

  name: str
  direction: str
  """"max" or "min": which is better."""
  rows: np.ndarray
  """[n, k] statistics, float64."""
  value: Callable[[np.ndarray], np.ndarray]
  """[..., k] sums over rows -> [...] values, NaN where undefined."""
  at: np.ndarray | None = None
  """[n] places of the rows among those that were asked for, ascending; None: all of them."""
  classes: tuple[str, ...] = ()
  """Names of the C classes whose three counts are the k = 3 C statistics."""
  unit: str = ""
  """What the second statistic counts, where systems may count it differently (tokens)."""

  def __post_init__(self):
    if self.rows.ndim != 2 or not len(self.rows) or not np.isfinite(self.rows).all():
      raise JaxsftError(
        f"{self.name}: statistics of shape {self.rows.shape}, expected finite numbers for each "
        "of at least one row"
      )

  @property
  def places(self) -> np.ndarray:
    """[n], `at` or all."""
    return np.arange(len(self.rows)) if self.at is None else self.at

  def only(self, kept) -> "Measured":
    """The metric on those of its rows that `kept` [n], bool or indices, says."""
    return replace(self, rows=self.rows[kept], at=self.places[kept])

  @property
  def score(self) -> float:
    """The metric on all rows."""
    return float(self.value(self.rows.sum(0)))


def mean(name: str, values, direction: str = "max", scale: float = 1.0) -> Measured:
  """A mean over rows of values [n], times `scale` (100 for SQuAD's EM and F1)."""
  values = np.asarray(values, np.float64)
  rows = np.stack([values, np.ones_like(values)], axis=-1)
  return Measured(name, direction, rows, lambda s: scale * s[..., 0] / s[..., 1])


def share(name: str, part, whole, unit: str = "") -> Measured:
  """Summed `part` [n] over summed `whole` [n]."""
  rows = np.stack([np.asarray(part, np.float64), np.asarray(whole, np.float64)], axis=-1)
  return Measured(name, "max", rows, lambda s: _over(s[..., 0], s[..., 1]), unit=unit)


def accuracy(predicted, gold) -> Measured:
  """Share of rows [n] whose predicted label is the gold one."""
  _check_as_many(predicted, gold)
  return mean("accuracy", [a == b for a, b in zip(predicted, gold, strict=True)])


def perplexity(nll, tokens) -> Measured:
  """exp of the summed nll [n], in nats, over the summed tokens [n]."""
  _check_as_many(nll, tokens)
  rows = np.stack([np.asarray(nll, np.float64), np.asarray(tokens, np.float64)], axis=-1)
  value = lambda s: np.exp(_over(s[..., 0], s[..., 1]))
  return Measured("perplexity", "min", rows, value, unit="token")


def class_counts(predicted, gold, classes: int) -> np.ndarray:
  """[n, 3, C] of one label a row, ids [n]: right, predicted and gold, each in its class."""
  _check_as_many(predicted, gold)
  predicted, gold = (np.eye(classes)[np.asarray(ids)] for ids in (predicted, gold))
  return np.stack([predicted * gold, predicted, gold], axis=1)


def type_counts(rows: Sequence[dict], types: Sequence[str]) -> np.ndarray:
  """[n, 3, C] of `tagging.counts`: right, predicted and gold entities of each of `types`.

  Raises JaxsftError for a type that is missing.
  """
  column = {kind: index for index, kind in enumerate(types)}
  counts = np.zeros((len(rows), 3, len(column)))
  for index, row in enumerate(rows):
    for kind, triple in row.items():
      if kind not in column:
        raise JaxsftError(f"row {index} has the type {kind!r}, expected one of {list(column)}")
      counts[index, :, column[kind]] = triple
  return counts


def micro_f1(counts, name: str = "micro_f1") -> Measured:
  """2 right / (predicted + gold) of counts [n, 3, C] or [n, 3] over all classes together."""
  counts = np.asarray(counts, np.float64)
  rows = counts if counts.ndim == 2 else counts.sum(-1)
  return Measured(name, "max", rows, lambda s: _over(2 * s[..., 0], s[..., 1] + s[..., 2]))


def macro_f1(counts, classes: Sequence[str], name: str = "macro_f1") -> Measured:
  """The mean F1 of the C classes of counts [n, 3, C] that occur, predicted or gold."""
  counts = np.asarray(counts, np.float64)

  def value(sums):
    right, predicted, gold = _thirds(sums)
    occurs = predicted + gold > 0
    f1 = np.where(occurs, 2 * right / np.maximum(predicted + gold, 1), 0.0)
    return _over(f1.sum(-1), occurs.sum(-1))

  rows = counts.reshape(len(counts), -1)
  return Measured(name, "max", rows, value, classes=tuple(classes))


def mcc(counts, classes: Sequence[str]) -> Measured:
  """Matthews' correlation of counts [n, 3, C] of single labels (Gorodkin 2004, R_K).

  0 where one class alone is predicted, as in scikit-learn; NaN where all gold labels are one.
  """
  counts = np.asarray(counts, np.float64)

  def value(sums):
    right, predicted, gold = _thirds(sums)
    right, n = right.sum(-1), gold.sum(-1)
    both = right * n - (predicted * gold).sum(-1)
    spread = n**2 - (gold**2).sum(-1)
    squares = (n**2 - (predicted**2).sum(-1)) * spread
    found = both / np.sqrt(np.where(squares > 0, squares, 1.0))  # 0 / 1 with one class
    return np.where(spread > 0, found, np.nan)

  return Measured("mcc", "max", counts.reshape(len(counts), -1), value, classes=tuple(classes))


def pearson(predicted, gold) -> Measured:
  """Pearson's correlation of two vectors [n]; NaN where a side is constant."""
  _check_as_many(predicted, gold)
  x, y = (np.asarray(v, np.float64) for v in (predicted, gold))
  x, y = x - x.mean(), y - y.mean()  # a shift changes nothing but the rounding
  rows = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)

  def value(sums):
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    defined = (spread_x > 1e-12 * xx) & (spread_y > 1e-12 * yy)
    product = np.where(defined, spread_x * spread_y, 1.0)
    return np.where(defined, (xy - x * y / n) / np.sqrt(product), np.nan)

  return Measured("pearson", "max", rows, value)


def bleu(predicted, references, tokenizer: str = "13a", lowercase: bool = False) -> Measured:
  """Corpus BLEU, 0 to 100, through sacrebleu's statistics; see `text.bleu_rows`."""
  rows, metric = text.bleu_rows(predicted, references, tokenizer, lowercase)
  return _corpus("bleu", metric, rows, text.bleu_is_defined(metric, references))


def chrf(predicted, references, word_order: int = 0) -> Measured:
  """Corpus chrF, 0 to 100, through sacrebleu's statistics; see `text.chrf_rows`."""
  rows, metric = text.chrf_rows(predicted, references, word_order)
  return _corpus("chrf", metric, rows, text.chrf_is_defined(references))


def _corpus(name, metric, rows, defined) -> Measured:
  """sacrebleu's metric of summed rows [n, k], NaN where none of them is `defined` [n]."""
  rows = np.concatenate([rows, np.asarray(defined, np.float64)[:, None]], -1)

  def value(sums):
    flat = sums.reshape(-1, sums.shape[-1])
    each = [text.score_of(metric, s[:-1]) if s[-1] else np.nan for s in flat]
    return np.array(each).reshape(sums.shape[:-1])

  return Measured(name, "max", rows, value)


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
  _check_as_many(baseline_right, system_right)
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


def _thirds(sums):
  return np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)


def _over(a, b):
  """a / b, NaN where b is 0."""
  return np.where(b == 0, np.nan, a / np.where(b == 0, 1, b))


def _check_pair(baseline, system):
  if baseline.rows.shape != system.rows.shape or baseline.name != system.name:
    raise JaxsftError(
      f"{baseline.name} of shape {baseline.rows.shape} against {system.name} of shape "
      f"{system.rows.shape}, expected one metric on the same rows"
    )


def _check_as_many(predicted, gold):
  if len(predicted) != len(gold):
    raise JaxsftError(f"{len(predicted)} predictions for {len(gold)} rows, expected as many")
