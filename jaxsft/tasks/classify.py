"""One label of a set, any of them, or a number, for a text, a pair of texts or a conversation.

Rows have `label`, and `text`, maybe with `text_pair`, or one of the forms of data.forms. Many
short texts share a row of a batch as segments; the head reads each at its own position.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import tasks
from jaxsft.data import chat, clean, control, forms
from jaxsft.data import messages as conversations
from jaxsft.data.read import near
from jaxsft.errors import JaxsftError
from jaxsft.metrics import classification, statistics

FIELDS = ("label",)  # and text or messages: `encode` says what a row lacks
GOLD = ("label",)
AUGMENTED = ("text", "text_pair")
TEXTS = ("text_pair", *forms.FIELDS)
HEAD, SOURCE, OUTPUTS = "sequence", False, "segment"
METRICS = {
  "single": {**classification.SINGLE, "loss": "min"},
  "multi": {**classification.MULTI, "loss": "min"},
  "number": {**classification.NUMBER, "loss": "min"},
}
DEFAULT_METRIC = {"single": "accuracy", "multi": "micro_f1", "number": "mse"}


def options(settings, context):
  """The config's `loss` group with the class weights in label order, or None."""
  return dataclasses.replace(settings, class_weights=context.class_weights)


def label_names(rows, own=()):
  """The labels of rows in id order: `own`, those of a trained head, if they are among these."""
  names = clean.label_names(rows)
  return own if set(names) <= set(own) else names


def encode(row, context):
  """Encoded example of one row.

  inputs [T], token_types [T], and, where the row has a label, `label` (an id or a number, 0-d;
  yes or no of every label, [1,C]) and `label_weight` 1. Longer than context.max_length is an
  error, left out, or cut: a text at its end, a conversation by its oldest exchanges. Raises
  JaxsftError with the row's place for what cannot be read, and for a label that is not in
  context.labels.
  """
  read = _text if row.fields.get("text") is not None else _conversation
  try:
    text, tokens, note = read(row.fields, context)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error
  if tokens is None:
    return tasks.Encoded((), "dropped: too long", text, [], frozenset())
  example = {name: np.asarray(values, np.int32) for name, values in tokens.items()}
  if "label" in row.fields:
    example["label"] = label_of(row, context)
    example["label_weight"] = np.float32(1)
  return tasks.Encoded((example,), note, text, [], frozenset())


def _text(fields, context):
  """(text, its tokens, note) of a text, or of a pair; tokens None: left out."""
  pair = fields.get("text_pair")
  texts = {"text": fields["text"]} | ({} if pair is None else {"text_pair": pair})
  control.refuse_in_read(texts, context.tokenizer)
  text = fields["text"] if pair is None else f"{fields['text']} | {pair}"
  encode = lambda **cut: context.tokenizer(
    fields["text"],
    pair,
    return_token_type_ids=True,
    return_attention_mask=False,
    verbose=False,  # it would say that a text is too long, which we count
    **cut,
  )
  tokens, note = encode(), None
  if _too_long(tokens, context):
    if context.too_long == "drop":
      return text, None, None
    tokens, note = encode(truncation=True, max_length=context.max_length), "truncated"
  return text, _arrays(tokens), note


def _conversation(fields, context):
  """(text, its tokens, note) of a conversation as the chat template writes it."""
  if not forms.has_turns(fields):
    raise JaxsftError(
      f"no field 'text' and no conversation, which the task needs{near('text', fields)}; map a "
      'column to it: data.columns={"text": …}'
    )
  messages, tools = conversations.checked(fields), forms.tools(fields)
  text, tokens, odd = _rendered(messages, tools, context)
  notes = [*odd]
  if _too_long(tokens, context) and context.too_long == "truncate":
    notes.insert(0, "truncated")
    last = [m | {"train": m is messages[-1]} for m in messages]  # which has to stay
    for rest in conversations.shorter(last):
      text, tokens, _ = _rendered(rest, tools, context)
      if len(tokens["input_ids"]) <= context.max_length:
        break
  if len(tokens["input_ids"]) > context.max_length:
    return text, None, None
  return text, _arrays(tokens), ", ".join(notes) or None


def _rendered(messages, tools, context):
  """(text, tokens, what is odd) of messages; an encoder's tokenizer adds its own first and last
  token.
  """
  tokenizer, template = context.tokenizer, context.chat_template
  silent = [message | {"train": False} for message in messages]
  rendered = chat.render(silent, tokenizer, template, tools, unwritten=context.unwritten)
  if tokenizer.cls_token and not rendered.text.startswith(tokenizer.cls_token):
    tokens = tokenizer(rendered.text, return_token_type_ids=True, verbose=False)
    return rendered.text, tokens, rendered.odd
  ids = chat.tokenize(rendered, tokenizer, template).ids
  tokens = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
  return rendered.text, tokens, rendered.odd


def _too_long(tokens, context):
  """Raises JaxsftError where that is an error."""
  length = len(tokens["input_ids"])
  if length > context.max_length and context.too_long == "error":
    raise JaxsftError(
      f"{length} tokens, the limit is {context.max_length}; set config.data.too_long to "
      "'truncate' or 'drop', or raise config.data.max_length"
    )
  return length > context.max_length


def _arrays(tokens):
  return {"inputs": tokens["input_ids"], "token_types": tokens["token_type_ids"]}


def label_of(row, context):
  """The row's label: an int32 id, int32 [1,C] of 0 and 1, or a float32 number."""
  label = row.fields["label"]
  if context.label_type == "number":
    return np.float32(label)
  names = label if context.label_type == "multi" else [label]
  if unknown := [name for name in names if name not in context.labels]:
    raise JaxsftError(
      f"{row.where}: label {unknown[0]!r} is unknown, expected one of "
      f"{', '.join(context.labels)}; correct the row or set config.data.labels"
    )
  if context.label_type == "multi":
    return np.array([[name in names for name in context.labels]], np.int32)
  return np.int32(context.labels.index(label))


def loss(network, params, batch, options, key=None):
  """Sums over the labelled segments of a batch: the objective, and how much is right.

  batch: token keys [R,T]; labels [R,M] (ids or numbers) or [R,M,C] (0 or 1); label_weights
  [R,M]. options: label_smoothing, z_loss, focal and class_weights, which belong to training:
  without a key it is the plain cross-entropy, or the squared error.
  """
  logits = network.logits(params, batch, key)  # R M C
  labels, weights = batch["labels"], batch["label_weights"]
  terms = PLAIN if key is None else options
  if jnp.issubdtype(labels.dtype, jnp.floating):
    error = jnp.square(logits[..., 0] - labels)
    return {"loss": (jnp.sum(error * weights), jnp.sum(weights))}
  if labels.ndim == logits.ndim:
    return _many_labels(logits, labels, weights, terms)
  return cross_entropy(logits, labels, weights, terms)


@dataclasses.dataclass(frozen=True)
class _Plain:
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  focal: float = 0.0
  class_weights: None = None


PLAIN = _Plain()
"""The terms of an evaluation."""


def cross_entropy(logits, labels, weights, terms):
  """Sums of the cross-entropy, and of what is right, of logits [...,C] and labels [...].

  Smoothing mixes the target with the uniform one (arXiv:1512.00567). With class weights w it
  is sum_n sum_c w[c] q[n,c] -log p[n,c] over sum_n w[label n], as torch's
  CrossEntropyLoss(weight, label_smoothing) has it; the focal loss takes each term
  (1 - p[n,c])^gamma times (arXiv:1708.02002). The z-loss goes by the weight of the label.
  """
  classes, smooth = logits.shape[-1], terms.label_smoothing
  by_class = _by_class(terms, classes)
  log_p, target = jax.nn.log_softmax(logits), jax.nn.one_hot(labels, classes)
  each = -((1 - smooth) * target + smooth / classes) * log_p
  if terms.focal:
    least = np.finfo(np.float32).eps  # a root has no slope at 0
    others = jnp.maximum(-jnp.expm1(log_p), least)
    each = each * others**terms.focal
  nll, share = jnp.sum(each * by_class, -1), by_class[labels]
  if terms.z_loss:
    nll = nll + terms.z_loss * share * jnp.square(jax.nn.logsumexp(logits, -1))
  right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
  return {
    "loss": (jnp.sum(nll * weights), jnp.sum(weights * share)),
    "accuracy": (jnp.sum(right * weights), jnp.sum(weights)),
  }


def _many_labels(logits, labels, weights, terms):
  """Mean over the labels of the binary cross-entropy of each.

  Class weights are those of a yes, as torch's BCEWithLogitsLoss(pos_weight); smoothing mixes
  yes and no with one half; the focal loss is that of torchvision's sigmoid_focal_loss.
  """
  yes, no = jax.nn.softplus(-logits), jax.nn.softplus(logits)  # -log p, -log(1 - p)
  smooth, gamma = terms.label_smoothing, terms.focal
  target = (1 - smooth) * labels.astype(jnp.float32) + smooth / 2
  each = _by_class(terms, logits.shape[-1]) * target * yes * jnp.exp(-gamma * no)
  each = each + (1 - target) * no * jnp.exp(-gamma * yes)
  wrong = ((logits > 0) != (labels > 0)).astype(jnp.float32)
  total = jnp.sum(weights)
  return {
    "loss": (jnp.sum(jnp.mean(each, -1) * weights), total),
    "hamming_loss": (jnp.sum(jnp.mean(wrong, -1) * weights), total),
  }


def _by_class(terms, classes):
  """[C] float32."""
  if terms.class_weights is None:
    return jnp.ones(classes, jnp.float32)
  return jnp.asarray(terms.class_weights, jnp.float32)


def predict(network, params, batch, options):
  """{"logits": [R,M,C]} float32; segment m of a row stands at [row, m - 1]."""
  return {"logits": network.logits(params, batch)}


def decode(found, context):
  """What the model says of one row: {"label", "score", "scores"}, {"labels", "scores"} with
  those above context.threshold, or {"number"}.
  """
  logits = np.asarray(found.outputs[0]["logits"], np.float64)
  if context.label_type == "number":
    return {"number": float(logits[0])}
  if context.label_type == "multi":
    chosen = classification.chosen(logits, context.threshold)
    scores = np.exp(-np.logaddexp(0, -logits))
    return {
      "labels": [name for name, said in zip(context.labels, chosen, strict=True) if said],
      "scores": dict(zip(context.labels, scores.tolist(), strict=True)),
    }
  logits = logits / context.temperature
  scores = np.exp(logits - logits.max())
  scores /= scores.sum()
  best = int(scores.argmax())
  return {
    "label": context.labels[best],
    "score": float(scores[best]),
    "scores": dict(zip(context.labels, scores.tolist(), strict=True)),
  }


def metrics(found, context):
  """Final numbers of all held-out rows, each counted once, by jaxsft.metrics.classification.

  The loss is the plain one: no class weights, no smoothing. `temperature`, by which one would
  divide the logits to make their scores those of the held-out rows, is not applied to anything.
  """
  logits = np.stack([f.outputs[0]["logits"] for f in found]).astype(np.float64)
  gold = np.stack([f.examples[0]["label"] for f in found])
  if context.label_type == "number":
    numbers = classification.number(logits[:, 0], gold)
    return {"loss": numbers["mse"], **numbers}
  if context.label_type == "multi":
    numbers = classification.multi(logits, gold, context.labels, context.threshold)
    return {"loss": float(np.mean(np.logaddexp(0, logits) - gold * logits)), **numbers}
  numbers = classification.single(logits, gold, context.labels)
  fitted = {k: v for k, v in numbers["calibration"].items() if k == "temperature"}
  return {"loss": numbers["calibration"]["nll"], **fitted, **numbers}


def row_loss(one, context):
  """How wrong the answer to one row is: its cross-entropy, or its squared error."""
  logits, label = np.float64(one.outputs[0]["logits"]), one.examples[0]["label"]
  if context.label_type == "number":
    return float((logits[0] - label) ** 2)
  if context.label_type == "multi":
    return float(np.mean(np.logaddexp(0, logits) - label * logits))
  return float(np.logaddexp.reduce(logits) - logits[label])


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  gold = np.stack([f.examples[0]["label"] for f in found])
  logits = np.stack([f.outputs[0]["logits"] for f in found]).astype(np.float64)
  if context.label_type == "number":
    error = np.square(logits[:, 0] - gold)
    return [statistics.mean("mse", error, "min"), statistics.pearson(logits[:, 0], gold)]
  if context.label_type == "multi":
    chosen, gold = classification.chosen(logits, context.threshold), gold > 0
    counts = np.stack([chosen & gold, chosen, gold], 1)
    wrong = np.mean(chosen != gold, -1)
    return [
      statistics.micro_f1(counts),
      statistics.macro_f1(counts, context.labels),
      statistics.mean("subset_accuracy", wrong == 0),
      statistics.mean("hamming_loss", wrong, "min"),
    ]
  predicted = logits.argmax(-1)
  counts = statistics.class_counts(predicted, gold, len(context.labels))
  return [
    statistics.accuracy(predicted, gold),
    statistics.macro_f1(counts, context.labels),
    statistics.mcc(counts, context.labels),
  ]
