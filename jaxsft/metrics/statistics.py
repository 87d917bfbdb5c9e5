"""Metrics that are functions of sums over rows; significance.py says how sure they are.

Such a metric is a vector of statistics for each row and a function of their sum, so that a
resample of the rows costs one product of counts and statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxsft.errors import JaxsftError
from jaxsft.metrics import text


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
  check_as_many(predicted, gold)
  return mean("accuracy", [a == b for a, b in zip(predicted, gold, strict=True)])


def perplexity(nll, tokens) -> Measured:
  """exp of the summed nll [n], in nats, over the summed tokens [n]."""
  check_as_many(nll, tokens)
  rows = np.stack([np.asarray(nll, np.float64), np.asarray(tokens, np.float64)], axis=-1)
  value = lambda s: np.exp(_over(s[..., 0], s[..., 1]))
  return Measured("perplexity", "min", rows, value, unit="token")


def class_counts(predicted, gold, classes: int) -> np.ndarray:
  """[n, 3, C] of one label a row, ids [n]: right, predicted and gold, each in its class."""
  check_as_many(predicted, gold)
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
  check_as_many(predicted, gold)
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


def bleu(predicted, references, tokenizer: str = "13a") -> Measured:
  """Corpus BLEU, 0 to 100, through sacrebleu's statistics; see `text.bleu_rows`."""
  rows, metric = text.bleu_rows(predicted, references, tokenizer)
  return _corpus("bleu", metric, rows, text.bleu_is_defined(metric, references))


def chrf(predicted, references, name: str = "chrf") -> Measured:
  """Corpus chrF or chrF++, 0 to 100, through sacrebleu's statistics; see `text.chrf_rows`."""
  rows, metric = text.chrf_rows(predicted, references, name)
  return _corpus(name, metric, rows, text.chrf_is_defined(references))


def _corpus(name, metric, rows, defined) -> Measured:
  """sacrebleu's metric of summed rows [n, k], NaN where none of them is `defined` [n]."""
  rows = np.concatenate([rows, np.asarray(defined, np.float64)[:, None]], -1)

  def value(sums):
    flat = sums.reshape(-1, sums.shape[-1])
    each = [text.score_of(metric, s[:-1]) if s[-1] else np.nan for s in flat]
    return np.array(each).reshape(sums.shape[:-1])

  return Measured(name, "max", rows, value)


def _thirds(sums):
  return np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)


def _over(a, b):
  """a / b, NaN where b is 0."""
  return np.where(b == 0, np.nan, a / np.where(b == 0, 1, b))


def check_as_many(predicted, gold):
  """Raises JaxsftError where two lists are not of the same rows."""
  if len(predicted) != len(gold):
    raise JaxsftError(f"{len(predicted)} predictions for {len(gold)} rows, expected as many")
