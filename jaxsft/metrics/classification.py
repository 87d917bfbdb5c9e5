"""Metrics of one label, of many labels, and of a number for each row, on the scale 0 to 1.

Averages over classes take those that occur in the gold or the predicted labels, as scikit-learn
does by default: a class that the rows never show neither helps nor hurts.
"""

from collections.abc import Sequence

import numpy as np

from jaxsft.errors import JaxsftError

SINGLE = {
  "accuracy": "max",
  "macro_f1": "max",
  "weighted_f1": "max",
  "macro_precision": "max",
  "macro_recall": "max",
  "mcc": "max",
  "auc": "max",
  "ece": "min",
}
MULTI = {
  "micro_f1": "max",
  "macro_f1": "max",
  "micro_precision": "max",
  "micro_recall": "max",
  "subset_accuracy": "max",
  "hamming_loss": "min",
  "auc": "max",
}
NUMBER = {
  "mse": "min",
  "mae": "min",
  "rmse": "min",
  "r2": "max",
  "pearson": "max",
  "spearman": "max",
}
DIRECTIONS = SINGLE | MULTI | NUMBER
BINS = 15


def single(logits, gold, names: Sequence[str]) -> dict:
  """Metrics where each row has one of `names`.

  logits: [n, C], unnormalised log-probabilities; gold: [n] ids below C. The prediction is the
  largest logit, the first of equal ones. Besides the numbers of SINGLE:
  `per_class` {name: precision, recall, f1, support (gold rows), predicted (rows)}, the first
  three None for a class that occurs nowhere; `confusion` [C, C], rows are gold, with `labels`;
  `calibration` (see `calibration`). AUC is the area under the ROC curve of the second of two
  classes, for more the mean over all classes of one against the rest. MCC is 0 where all
  predictions are one class, as in scikit-learn.
  """
  from sklearn import metrics as sk  # slow to import, needed only here

  logits, gold = _checked(logits, gold, names)
  predicted, ids = logits.argmax(-1), np.arange(len(names))
  table = sk.confusion_matrix(gold, predicted, labels=ids)
  per_class = _per_class(table.diagonal(), table.sum(0), table.sum(1), names)
  seen = [scores for scores in per_class.values() if scores["f1"] is not None]
  support = [scores["support"] for scores in seen]
  undefined = {}
  numbers = {
    "accuracy": float(np.mean(predicted == gold)),
    "macro_f1": float(np.mean([scores["f1"] for scores in seen])),
    "weighted_f1": float(np.average([scores["f1"] for scores in seen], weights=support)),
    "macro_precision": float(np.mean([scores["precision"] for scores in seen])),
    "macro_recall": float(np.mean([scores["recall"] for scores in seen])),
  }
  if len(np.unique(gold)) > 1:
    numbers["mcc"] = float(sk.matthews_corrcoef(gold, predicted))
  else:
    undefined["mcc"] = f"every gold label is {names[gold[0]]}"
  numbers |= _auc(logits, gold, names, undefined)
  calibrated = calibration(logits, gold)
  if "temperature" in calibrated.get("undefined", {}):
    undefined["temperature"] = calibrated["undefined"]["temperature"]
  return numbers | {
    "ece": calibrated["ece"],
    "calibration": calibrated,
    "per_class": per_class,
    "confusion": table.tolist(),
    "labels": list(names),
    "undefined": undefined,
  }


def calibration(logits, gold, bins: int = BINS) -> dict:
  """How far the probabilities softmax(logits) are to be believed (arXiv:1706.04599).

  `nll`: mean of -log p(gold) in nats. `ece`: expected calibration error of the top probability
  over `bins` intervals of equal width, each closed above. `temperature`: the T > 0 whose
  softmax(logits / T) has the least mean NLL on these same rows (`fitted_on`), and
  `nll_fitted`, `ece_fitted` after it: they flatter, for the rows to come expect a little more.
  There is none, with the reason under `undefined`, where ever sharper (T -> 0) or ever flatter
  (T -> infinity) probabilities fit best.
  """
  logits, gold = _checked(logits, gold)
  numbers = {
    "nll": _nll(logits, gold, 1.0),
    "ece": _ece(logits, gold, 1.0, bins),
    "bins": bins,
    "fitted_on": "the same rows",
  }
  temperature = _temperature(logits, gold)
  if isinstance(temperature, str):
    return numbers | {"undefined": {"temperature": temperature}}
  return numbers | {
    "temperature": temperature,
    "nll_fitted": _nll(logits, gold, temperature),
    "ece_fitted": _ece(logits, gold, temperature, bins),
  }


def chosen(logits, threshold: float | Sequence[float] = 0.5) -> np.ndarray:
  """[..., C] bool: the labels whose probability sigmoid(logit) is above the threshold.

  threshold: in (0, 1), one or one a label. Compared as logits, so that no probability rounds
  to 1; a logit of 0 is not above 0.5.
  """
  threshold = np.asarray(threshold, np.float64)
  if not np.all((threshold > 0) & (threshold < 1)):
    raise JaxsftError(f"threshold is {threshold.tolist()}, expected above 0 and below 1")
  return np.asarray(logits, np.float64) > np.log(threshold / (1 - threshold))


def multi(logits, gold, names: Sequence[str], threshold: float | Sequence[float] = 0.5) -> dict:
  """Metrics where each row has any number of `names`.

  logits: [n, C], one sigmoid a label; gold: [n, C] of 0 and 1; threshold as in `chosen`.
  Besides the numbers of MULTI: `per_label` {name: precision, recall, f1, support, predicted,
  auc}, None where undefined. `auc` is the mean over the labels that have one; the others
  are listed under `undefined`. subset_accuracy: rows with every label right; hamming_loss: the
  share of the n * C decisions that are wrong.
  """
  logits, gold = np.asarray(logits, np.float64), np.asarray(gold)
  _check_rows(logits, names)
  if gold.shape != logits.shape or not np.isin(gold, (0, 1)).all():
    raise JaxsftError(
      f"gold labels of shape {gold.shape} for logits of shape {logits.shape}, expected 0 or 1 "
      "for each logit"
    )
  gold, predicted = gold.astype(bool), chosen(logits, threshold)
  hits = (gold & predicted).sum(0)
  per_label = _per_class(hits, predicted.sum(0), gold.sum(0), names)
  undefined = {}
  for index, name in enumerate(names):
    per_label[name] |= _label_auc(logits[:, index], gold[:, index], name, undefined)
  numbers = {
    "subset_accuracy": float(np.mean((gold == predicted).all(-1))),
    "hamming_loss": float(np.mean(gold != predicted)),
  }
  seen = [scores["f1"] for scores in per_label.values() if scores["f1"] is not None]
  if seen:
    numbers |= {
      f"micro_{k}": v for k, v in _prf(hits.sum(), predicted.sum(), gold.sum()).items()
    }
    numbers["macro_f1"] = float(np.mean(seen))
  else:
    why = "no row has a label, gold or predicted"
    undefined |= dict.fromkeys(("micro_f1", "macro_f1", "micro_precision", "micro_recall"), why)
  areas = [scores["auc"] for scores in per_label.values() if scores["auc"] is not None]
  if areas:
    numbers["auc"] = float(np.mean(areas))
  else:
    undefined["auc"] = "no label has rows with and rows without it"
  return numbers | {"per_label": per_label, "undefined": undefined}


def number(predicted, gold) -> dict:
  """Errors and correlations of two vectors [n], in float64.

  r2 is 1 - sum (g - p)^2 / sum (g - mean g)^2. Spearman is Pearson of the ranks, equal numbers
  sharing their mean rank.
  """
  from scipy import stats  # slow to import, needed only here

  predicted, gold = np.asarray(predicted, np.float64), np.asarray(gold, np.float64)
  if predicted.ndim != 1 or predicted.shape != gold.shape:
    raise JaxsftError(
      f"predicted numbers of shape {predicted.shape} for gold ones of shape {gold.shape}, "
      "expected one for each row"
    )
  _check_rows(predicted[:, None])
  _check_rows(gold[:, None])
  error = predicted - gold
  numbers = {
    "mse": float(np.mean(error**2)),
    "mae": float(np.mean(np.abs(error))),
    "rmse": float(np.sqrt(np.mean(error**2))),
  }
  constant = [side for side, x in (("gold", gold), ("predicted", predicted)) if _spread(x) == 0]
  undefined = {}
  if "gold" in constant:
    undefined["r2"] = "every gold number is the same"
  else:
    numbers["r2"] = float(1 - np.sum(error**2) / np.sum((gold - gold.mean()) ** 2))
  if constant:
    why = f"every {' and every '.join(constant)} number is the same"
    return numbers | {"undefined": undefined | {"pearson": why, "spearman": why}}
  numbers["pearson"] = _pearson(predicted, gold)
  numbers["spearman"] = _pearson(stats.rankdata(predicted), stats.rankdata(gold))
  return numbers | {"undefined": undefined}


def _checked(logits, gold, names=None):
  """Logits [n, C] as float64 and gold ids [n], or an error that says what is wrong."""
  logits, gold = np.asarray(logits, np.float64), np.asarray(gold)
  _check_rows(logits, names)
  classes = logits.shape[1]
  if gold.shape != logits.shape[:1] or not np.issubdtype(gold.dtype, np.integer):
    raise JaxsftError(
      f"gold labels of shape {gold.shape} and type {gold.dtype} for logits of shape "
      f"{logits.shape}, expected one whole number for each row"
    )
  bad = np.flatnonzero((gold < 0) | (gold >= classes))
  if len(bad):
    raise JaxsftError(f"row {bad[0]} has the gold label {gold[bad[0]]} of {classes} classes")
  return logits, gold


def _check_rows(logits, names=None):
  if logits.ndim != 2 or (names is not None and logits.shape[1] != len(names)):
    wanted = "[rows, classes]" if names is None else f"[rows, {len(names)}]"
    raise JaxsftError(f"logits have shape {logits.shape}, expected {wanted}")
  if not len(logits):
    raise JaxsftError("there is no row to score; give a held-out set that has rows")
  bad = np.flatnonzero(~np.isfinite(logits).all(-1))
  if len(bad):
    raise JaxsftError(
      f"{len(bad)} of {len(logits)} rows have numbers that are not finite, the first is row "
      f"{bad[0]}; the model diverged or its weights are damaged"
    )


def _prf(hits, predicted, gold):
  """Precision, recall and F1 of counts; 0 where one has nothing to divide by."""
  return {
    "precision": float(hits / predicted) if predicted else 0.0,
    "recall": float(hits / gold) if gold else 0.0,
    "f1": float(2 * hits / (predicted + gold)),
  }


def _per_class(hits, predicted, gold, names):
  """{name: scores} of counts [C]; the scores of a class that occurs nowhere are None."""
  nothing = dict.fromkeys(("precision", "recall", "f1"))
  return {
    name: (_prf(h, p, g) if p + g else nothing) | {"support": int(g), "predicted": int(p)}
    for name, h, p, g in zip(names, hits, predicted, gold, strict=True)
  }


def _auc(logits, gold, names, undefined):
  """{"auc"} of a single label, or {} and the reason in `undefined`."""
  from sklearn import metrics as sk

  present = np.isin(np.arange(len(names)), gold)
  if not present.all() or len(names) < 2:
    missing = [name for name, here in zip(names, present, strict=True) if not here]
    undefined["auc"] = (
      f"no gold row of {', '.join(map(str, missing))}" if missing else "there is one class"
    )
    return {}
  odds = _log_odds(logits)
  if len(names) == 2:
    return {"auc": float(sk.roc_auc_score(gold == 1, odds[:, 1]))}
  areas = [sk.roc_auc_score(gold == c, odds[:, c]) for c in range(len(names))]
  return {"auc": float(np.mean(areas))}


def _label_auc(logits, gold, name, undefined):
  from sklearn import metrics as sk

  if gold.all() or not gold.any():
    undefined[f"auc of {name}"] = f"{'every' if gold.all() else 'no'} gold row has it"
    return {"auc": None}
  return {"auc": float(sk.roc_auc_score(gold, logits))}


def _log_odds(logits):
  """log p / (1 - p) [n, C] of p = softmax(logits): the order of p, but it never saturates."""
  log_p, rows = _log_softmax(logits), np.arange(len(logits))
  top = logits.argmax(-1)
  others = logits.copy()
  others[rows, top] = -np.inf
  log_p[rows, top] = -1.0  # only there can p round to 1; replaced below
  odds = log_p - np.log1p(-np.exp(log_p))
  odds[rows, top] = logits[rows, top] - np.logaddexp.reduce(others, axis=1)
  return odds


def _log_softmax(logits):
  return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _nll(logits, gold, temperature):
  log_p = _log_softmax(logits / temperature)
  return float(-np.mean(log_p[np.arange(len(gold)), gold]))


def _ece(logits, gold, temperature, bins):
  """sum over bins of |rows right - sum of top probabilities| / n; bin m is ((m-1)/M, m/M]."""
  top = np.exp(_log_softmax(logits / temperature).max(-1))
  right = logits.argmax(-1) == gold
  edges = np.linspace(0, 1, bins + 1)
  bin_of = np.digitize(top, edges[1:-1], right=True)
  gap = np.bincount(bin_of, right, bins) - np.bincount(bin_of, top, bins)
  return float(np.abs(gap).sum() / len(gold))


def _temperature(logits, gold):
  """The T of least mean NLL, or why there is none.

  In b = 1 / T the NLL is convex; its slope is the mean over rows of E_p[logit] - logit of gold,
  which rises from (mean logit - gold's) at b = 0 to (largest - gold's) at b = infinity.
  """
  from scipy import optimize  # slow to import, needed only here

  logits = logits - logits.max(-1, keepdims=True)
  true = logits[np.arange(len(gold)), gold]

  def slope(log_b):
    p = np.exp(_log_softmax(np.exp(log_b) * logits))
    return np.mean((p * logits).sum(-1) - true)

  low, high = -30.0, 30.0
  if slope(high) <= 0:
    return "every row is right: ever sharper probabilities fit better"
  if slope(low) >= 0:
    return "gold logits are no higher than the others: ever flatter probabilities fit better"
  return float(np.exp(-optimize.brentq(slope, low, high, xtol=1e-10)))


def _spread(x):
  """The standard deviation, 0 where it is no more than the rounding of the numbers."""
  deviation = float(np.std(x))
  return deviation if deviation > 1e-13 * abs(float(np.mean(x))) else 0.0


def _pearson(x, y):
  x, y = x - x.mean(), y - y.mean()
  r = np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y))
  return float(np.clip(r, -1, 1))
