"""One label, or one number, for a text or a pair of texts.

Rows have `text`, maybe `text_pair`, and `label`. Many short texts share a row of a batch as
segments; the head reads each at its own position.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import tasks
from jaxsft.errors import JaxsftError
from jaxsft.metrics import statistics

FIELDS = ("text", "label")
GOLD = ("label",)
HEAD, SOURCE, OUTPUTS = "sequence", False, "segment"
METRICS = {
  "single": {"accuracy": "max", "macro_f1": "max", "mcc": "max", "loss": "min"},
  "number": {"mse": "min", "mae": "min", "pearson": "max", "spearman": "max", "loss": "min"},
}
DEFAULT_METRIC = {"single": "accuracy", "number": "mse"}


def encode(row, context):
  """Encoded example of one row.

  inputs [T], token_types [T], and, where the row has a label, 0-d `label` (id or number)
  and `label_weight` 1. Raises JaxsftError for a label that is not in context.labels.
  """
  pair = row.fields.get("text_pair")
  tokens = context.tokenizer(row.fields["text"], pair, return_token_type_ids=True)
  length, note = len(tokens["input_ids"]), None
  if length > context.max_length:
    if context.too_long == "error":
      raise JaxsftError(
        f"{row.where}: {length} tokens, the limit is {context.max_length}; set "
        "config.data.too_long to 'truncate' or 'drop', or raise config.data.max_length"
      )
    if context.too_long == "drop":
      return tasks.Encoded((), "dropped: too long", row.fields["text"], [], frozenset())
    note = "truncated"
    tokens = context.tokenizer(
      row.fields["text"],
      pair,
      truncation=True,
      max_length=context.max_length,
      return_token_type_ids=True,
    )
  example = {
    "inputs": np.asarray(tokens["input_ids"], np.int32),
    "token_types": np.asarray(tokens["token_type_ids"], np.int32),
  }
  if "label" in row.fields:
    example["label"] = label_of(row, context)
    example["label_weight"] = np.float32(1)
  text = row.fields["text"] if pair is None else f"{row.fields['text']} | {pair}"
  return tasks.Encoded((example,), note, text, [], frozenset())


def label_of(row, context):
  """The row's label as an int32 id, or as a float32 number."""
  if context.label_type == "number":
    return np.float32(row.fields["label"])
  try:
    return np.int32(context.labels.index(row.fields["label"]))
  except ValueError:
    raise JaxsftError(
      f"{row.where}: label {row.fields['label']!r} is unknown, expected one of "
      f"{', '.join(context.labels)}; correct the row or set config.data.labels"
    ) from None


def loss(network, params, batch, options, key=None):
  """Sums of the cross-entropy (or the squared error) over the labelled segments of a batch.

  batch: token keys [R,T], labels and label_weights [R,M]. Label smoothing mixes the target
  with the uniform distribution (arXiv:1512.00567). It and the z-loss belong to training: an
  evaluation (key None) gives the plain cross-entropy.
  """
  logits = network.logits(params, batch, key)  # R M C
  labels, weights = batch["labels"], batch["label_weights"]
  if jnp.issubdtype(labels.dtype, jnp.floating):
    error = jnp.square(logits[..., 0] - labels)
    return {"loss": (jnp.sum(error * weights), jnp.sum(weights))}
  log_p = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
  smooth = 0.0 if key is None else options.label_smoothing
  if smooth:
    nll = (1 - smooth) * nll - smooth * jnp.mean(log_p, -1)
  if options.z_loss and key is not None:
    nll = nll + options.z_loss * jnp.square(jax.nn.logsumexp(logits, -1))
  right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
  total = jnp.sum(weights)
  return {
    "loss": (jnp.sum(nll * weights), total),
    "accuracy": (jnp.sum(right * weights), total),
  }


def predict(network, params, batch, options):
  """{"logits": [R,M,C]} float32; segment m of a row stands at [row, m - 1]."""
  return {"logits": network.logits(params, batch)}


def decode(found, context):
  """{"label", "score", "scores"} or {"number"} of one row."""
  logits = np.asarray(found.outputs[0]["logits"], np.float64)
  if context.label_type == "number":
    return {"number": float(logits[0])}
  scores = np.exp(logits - logits.max())
  scores /= scores.sum()
  best = int(scores.argmax())
  return {
    "label": context.labels[best],
    "score": float(scores[best]),
    "scores": {name: float(s) for name, s in zip(context.labels, scores, strict=True)},
  }


def metrics(found, context):
  """Final numbers of all held-out rows, each counted once.

  Pearson and Spearman are absent where a side is constant (they are undefined there).
  """
  logits = np.stack([f.outputs[0]["logits"] for f in found]).astype(np.float64)
  labels = np.array([f.examples[0]["label"] for f in found])
  if context.label_type == "number":
    numbers = _regression(logits[:, 0], labels)
    return {"loss": numbers["mse"], **numbers}
  top = logits.max(-1)
  log_z = top + np.log(np.exp(logits - top[:, None]).sum(-1))
  nll = log_z - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
  from sklearn import metrics as sk  # slow to import, needed only here

  predicted, ids = logits.argmax(-1), list(range(len(context.labels)))
  return {
    "loss": float(nll.mean()),
    "accuracy": float(np.mean(predicted == labels)),
    "macro_f1": float(sk.f1_score(labels, predicted, average="macro", zero_division=0)),
    "mcc": float(sk.matthews_corrcoef(labels, predicted)),
    "confusion": sk.confusion_matrix(labels, predicted, labels=ids).tolist(),
    "labels": list(context.labels),
  }


def _regression(predicted, labels):
  """Errors and correlations, computed with scipy in float64."""
  from scipy import stats  # slow to import, needed only here

  error = predicted.astype(np.float64) - labels
  numbers = {"mse": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}
  if len(labels) > 1 and np.ptp(predicted) > 0 and np.ptp(labels) > 0:
    numbers["pearson"] = float(stats.pearsonr(predicted, labels).statistic)
    numbers["spearman"] = float(stats.spearmanr(predicted, labels).statistic)
  return numbers


def row_loss(one, context):
  """How wrong the answer to one row is: its cross-entropy, or its squared error."""
  logits, label = np.float64(one.outputs[0]["logits"]), one.examples[0]["label"]
  if context.label_type == "number":
    return float((logits[0] - label) ** 2)
  return float(np.logaddexp.reduce(logits) - logits[label])


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  labels = [f.examples[0]["label"] for f in found]
  logits = np.stack([f.outputs[0]["logits"] for f in found]).astype(np.float64)
  if context.label_type == "number":
    error = np.square(logits[:, 0] - labels)
    return [statistics.mean("mse", error, "min"), statistics.pearson(logits[:, 0], labels)]
  predicted = logits.argmax(-1)
  counts = statistics.class_counts(predicted, labels, len(context.labels))
  return [
    statistics.accuracy(predicted, labels),
    statistics.macro_f1(counts),
    statistics.mcc(counts),
  ]
