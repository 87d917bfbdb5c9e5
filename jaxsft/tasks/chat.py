"""Answers in a conversation: causal language modelling on what the assistant says.

Rows have one of the forms of `data.forms`; plain text is learnt from its first to its last
token. The targets are shifted here and nowhere else.
"""

import itertools
import math

import numpy as np

from jaxsft import tasks
from jaxsft.data import chat, forms
from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError
from jaxsft.metrics import generated, statistics
from jaxsft.models import heads

FIELDS = ()  # those of one form or another: `encode` says what a row lacks
GOLD = ()
TEXTS = forms.FIELDS
HEAD, SOURCE, OUTPUTS = "lm", False, "segment"
TOKEN_METRICS = {"loss": "min", "perplexity": "min", "token_accuracy": "max"}
METRICS = TOKEN_METRICS | generated.DIRECTIONS  # these of generated answers
TEXT_METRICS = ("exact_match",)
DEFAULT_METRIC = "loss"


def encode(row, context):
  """Encoded example of one conversation, with inputs, targets and weights born together:

     text      <user> Hi <end> <assistant> Yes . <end>
     tokens      10   11   2       12      13  4   2      supervised: 13 4 2
     inputs      10   11   2       12      13  4          [T] int32
     targets     11    2  12       13       4  2          [T] int32
     weights      0    0   0        1       1  1          [T] float32

  What is longer than context.max_length (T counts) is an error, left out, or loses its
  oldest exchanges, by context.too_long; an answer is never cut, a plain text loses its end.
  Raises JaxsftError with the row's place for what cannot be trained on.
  """
  try:
    return _encode(row, context)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def _encode(row, context):
  plain = forms.form(row.fields) == "text"
  versions = (_texts if plain else _conversations)(row.fields, context)
  (rendered, tokens), note = next(versions), None
  length = len(tokens.ids) - 1
  if length > context.max_length and context.too_long == "error":
    raise JaxsftError(
      f"{length} tokens, the limit is {context.max_length}; raise config.data.max_length, "
      "or set config.data.too_long to 'truncate' or 'drop'"
    )
  if length > context.max_length and context.too_long == "truncate":
    note = "truncated"
    for version in versions:
      rendered, tokens = version
      if len(tokens.ids) - 1 <= context.max_length:
        break
  spans = [(start, end) for start, end, _ in rendered.spans]
  if len(tokens.ids) - 1 > context.max_length:
    return tasks.Encoded((), "dropped: too long", rendered.text, spans, frozenset())
  example = {
    "inputs": tokens.ids[:-1],
    "targets": tokens.ids[1:],
    "weights": tokens.supervised[1:].astype(np.float32),
  }
  return tasks.Encoded((example,), note, rendered.text, spans, tokens.stop_ids)


def _conversations(fields, context):
  """(Rendered, Tokens) of the conversation, then of ever shorter ones."""
  messages = conversations.conversation(fields, context.train_on)
  tools, template = forms.tools(fields), context.chat_template
  for shown in itertools.chain([messages], conversations.shorter(messages)):
    rendered = chat.render(shown, context.tokenizer, template, tools)
    yield rendered, chat.tokenize(rendered, context.tokenizer, template)


def _texts(fields, context):
  """(Rendered, Tokens) of the plain text, then of as much of it as fits."""
  for limit in (None, context.max_length + 1):
    yield chat.plain(forms.text(fields), context.tokenizer, limit)


def loss(network, params, batch, options, key=None):
  """Sums of the cross-entropy and of the right tokens over the supervised tokens.

  batch: token keys [R,T]. options: label_smoothing, z_loss and chunk. Without a key, in
  evaluation, it is the plain cross-entropy, so that exp(loss) is the perplexity.
  """
  x, auxiliary = network.hidden_and_auxiliary(params, batch, key)
  targets, weights = batch["targets"], batch["weights"]
  found = token_sums(network, params, x, targets, weights, options, key)
  if (
    key is not None and auxiliary is not None
  ):  # of the micro-batch, which counts by its tokens
    weight = found["loss"][1]
    found["auxiliary"] = (auxiliary * weight, weight)
  return found


def token_sums(network, params, x, targets, weights, options, key=None):
  """Sums of the loss and of the right tokens, from hidden states x [R,T,D]; see `loss`."""
  training = key is not None
  x, kernel, bias, softcap = network.to_vocabulary(params, x, key)
  sums = heads.cross_entropy(
    x,
    kernel,
    targets,
    weights,
    bias=bias,
    softcap=softcap,
    label_smoothing=options.label_smoothing if training else 0.0,
    z_loss=options.z_loss if training else 0.0,
    chunk=options.chunk,
  )
  return {"loss": sums["loss"], "token_accuracy": sums["accuracy"]}


def predict(network, params, batch, options):
  """Of each segment [R,M] float32: nll, the summed loss of its supervised tokens; tokens,
  how many (the sum of their weights); right, how many are the likeliest.
  """
  x, weights = network.hidden(params, batch), batch["weights"]
  nll, right = token_losses(network, params, x, batch["targets"], weights, options)
  most = batch["example_ids"].shape[1]
  found = {"nll": nll * weights, "tokens": weights, "right": right}
  return heads.segment_sums(found, batch["segments"], most)


def token_losses(network, params, x, targets, weights, options):
  """heads.token_losses of hidden states x [R,T,D]."""
  x, kernel, bias, softcap = network.to_vocabulary(params, x)
  return heads.token_losses(
    x, kernel, targets, weights, bias=bias, softcap=softcap, chunk=options.chunk
  )


def decode(found, context):
  """{"text"}, the generated answer; {} where none was asked for."""
  return {"text": found.texts[0]} if found.texts else {}


def metrics(found, context):
  """`token_metrics`, and of the rows with a generated answer `text_metrics`."""
  return token_metrics(found) | text_metrics(found, references, context)


def token_metrics(found):
  """Means over all held-out tokens, and the perplexity exp(loss)."""
  nll, tokens, right = np.sum([row_sums(one) for one in found], 0).tolist()
  return {
    "loss": nll / tokens,
    "perplexity": perplexity(nll / tokens),
    "token_accuracy": right / tokens,
  }


def perplexity(loss):
  """exp(loss), finite in a float."""
  return math.exp(min(loss, 700.0))


def row_sums(one):
  """(nll, tokens, right) of all examples of a row, as `predict` finds them."""
  return [sum(float(o[name]) for o in one.outputs) for name in ("nll", "tokens", "right")]


def row_loss(one, context):
  """Mean loss of the supervised tokens of one row."""
  nll, tokens, _ = row_sums(one)
  return nll / tokens


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  return text_measured(found, references, context) + token_measured(found)


def token_measured(found):
  """Those of `token_metrics`."""
  nll, tokens, right = np.array([row_sums(one) for one in found]).T
  share = statistics.share("token_accuracy", right, tokens, unit="token")
  return [statistics.perplexity(nll, tokens), share]


def text_measured(found, references, context):
  """Those of `text_metrics`."""
  texts = [one.texts[0] if one.texts else None for one in found]
  if not any(one.texts for one in found):
    return []
  gold = [references(one.row) for one in found]
  return generated.measured(texts, gold, context.text_metrics, *_scoring(context))


def text_metrics(found, references, context):
  """metrics.generated.scores of the best answer of each row that has one; {}: there is none.

  references: function of a row.
  """
  pairs = [(one.texts[0], references(one.row)) for one in found if one.texts]
  if not pairs:
    return {}
  predicted, gold = zip(*pairs, strict=True)
  return generated.scores(predicted, gold, context.text_metrics, *_scoring(context))


def _scoring(context):
  return context.bleu_tokenizer, context.rouge_stemmer


def prompt(row, context):
  """Ids of the conversation up to its last answer, which ask for it; None for plain text.

  They are rendered and tokenised as in training.
  """
  try:
    messages, _ = conversations.question(row.fields)
    if messages is None:
      return None
    tools = forms.tools(conversations.answered(row.fields))
    ids = chat.prompt_ids(messages, context.tokenizer, context.chat_template, tools)
    return ids.tolist()
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def asked(row):
  """The message before the last answer."""
  return conversations.question(row.fields)[0][-1]["content"]


def own_answer(row):
  """The text of the last message, where that is the assistant's; None: there is no such."""
  try:
    return next(iter(references(row)), None)
  except JaxsftError:  # no conversation
    return None


def references(row):
  """The conversation's last answer; () where its last message is none, or has no text."""
  answer = conversations.question(row.fields)[1]
  return () if answer is None else (answer,)
