"""Answers in a conversation: causal language modelling on what the assistant says.

Rows have one of the forms of `data.forms`; plain text is learnt from its first to its last
token. The targets are shifted here and nowhere else.
"""

import functools
import itertools
import math

import numpy as np

from jaxsft import tasks
from jaxsft.data import chat, forms, words
from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError
from jaxsft.metrics import generated, statistics
from jaxsft.models import heads

FIELDS = ()  # those of one form or another: `encode` says what a row lacks
GOLD = ()
TEXTS, AUGMENTED = forms.FIELDS, ()
HEAD, SOURCE, OUTPUTS = "lm", False, "segment"
TOKEN_METRICS = {"loss": "min", "perplexity": "min", "token_accuracy": "max"}
METRICS = TOKEN_METRICS | generated.DIRECTIONS  # these of generated answers
TEXT_METRICS = ("exact_match",)
DEFAULT_METRIC = "loss"


def encode(row, context):
  """Encoded examples of one row, with inputs, targets and weights born together:

     text      <user> Hi <end> <assistant> Yes . <end>
     tokens      10   11   2       12      13  4   2      supervised: 13 4 2
     inputs      10   11   2       12      13  4          [T] int32
     targets     11    2  12       13       4  2          [T] int32
     weights      0    0   0        1       1  1          [T] float32

  One, or one of each answer (context.train_on "each"). What is longer than context.max_length
  (T counts) is an error, left out, loses its oldest exchanges or is divided between them, by
  context.too_long; an answer is never cut. A plain text loses its end or is read in windows.
  Raises JaxsftError with the row's place for what cannot be trained on.
  """
  try:
    return _encode(row.fields, context)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def _encode(fields, context):
  made = _of_text if forms.form(fields) == "text" else _of_conversation
  parts, examples, notes = made(fields, context)
  rendered = parts[0][0]
  if any(part.hidden for part, _ in parts):
    notes.append("with control tokens escaped")
  stop_ids = frozenset().union(*(tokens.stop_ids for _, tokens in parts)) if examples else ()
  spans = [(start, end) for start, end, _ in rendered.spans]
  note = tasks.joined(*notes)
  return tasks.Encoded(tuple(examples), note, rendered.text, spans, frozenset(stop_ids))


def _of_conversation(fields, context):
  """([(Rendered, Tokens)], their examples, notes) of a row's conversation.

  Of one that is dropped the first part is what is shown of it.
  """
  messages = conversations.conversation(fields, context.train_on, context.train_on_tools)
  whole, tools = [messages], forms.tools(fields)
  make = functools.partial(_tokenized, tools=tools, context=context)
  if context.train_on == "each":
    trained = [i for i, message in enumerate(messages) if message["train"]]
    whole = [_alone(messages[: i + 1]) for i in trained]
  parts, cut, lost, silent = [], False, 0, 0
  for one in whole:
    kept, left_out, without = _fitting(one, make, context)
    cut |= bool(kept) and not kept[0][2]
    lost, silent = lost + left_out, silent + without
    parts += [part[:2] for part in kept]
  if not parts:
    return [make(whole[0])], [], ["dropped: too long"]
  notes = []
  if lost:
    what = "answers" if context.train_on == "each" else "exchanges"
    notes.append(f"truncated: without {lost} {what} that are too long")
  if cut:
    notes.append({"truncate": "truncated", "turns": "divided by turns"}[context.too_long])
  if silent:
    notes.append(tasks.without_parts(silent))
  notes += dict.fromkeys(odd for part, _ in parts for odd in part.odd)
  return parts, [_example(tokens) for _, tokens in parts], notes


def _alone(messages):
  """The messages of which only the last trains."""
  return [message | {"train": message is messages[-1]} for message in messages]


def _tokenized(messages, tools, context):
  """(Rendered, Tokens)."""
  tokenizer, template = context.tokenizer, context.chat_template
  rendered = chat.render(messages, tokenizer, template, tools, **_settings(context))
  return rendered, chat.tokenize(rendered, tokenizer, template)


def _settings(context):
  """How conversations are read, in training and in prompts."""
  return {"escape": context.control_tokens == "escape", "unwritten": context.unwritten}


def _fitting(messages, make, context):
  """([(Rendered, Tokens, whether it is all)] of a conversation that fit, how much that would
  train is left out, how many parts that would not).

  make: function of messages -> (Rendered, Tokens).
  """
  made = make(messages)
  if _fits(made, context):
    return [(*made, True)], 0, 0
  if context.too_long == "error":
    _refuse_length(made[1], context, "'truncate', 'turns' or 'drop'")
  if context.too_long == "windows":
    _refuse_length(made[1], context, "'turns': windows are of plain text, not of conversations")
  if context.too_long == "turns":
    parts, lost, silent = _by_turns(messages, make, context)
    return [(*part, False) for part in parts], lost, silent
  shorter = conversations.shorter(messages) if context.too_long == "truncate" else ()
  for rest in shorter:
    made = make(rest)
    if _fits(made, context):
      return [(*made, False)], 0, 0
  return [], 1, 0


def _by_turns(messages, make, context):
  """([(Rendered, Tokens)] of parts as long as fit, exchanges that are too long alone, parts
  that are left out because nothing in them trains).

  Every part begins with the system messages.
  """
  lead, rest = conversations.exchanges(messages)
  parts, lost, silent = [], 0, 0
  while rest:
    best, taken = None, 0
    for count in range(1, len(rest) + 1):
      part = [*lead, *itertools.chain(*rest[:count])]
      made = make(part)
      if not _fits(made, context):
        break
      best, taken = made if any(m["train"] for m in part) else best, count
    trains = best is not None or any(message["train"] for message in rest[0])
    parts += [best] if best else []
    lost += trains and not taken
    silent += not trains
    rest = rest[max(taken, 1) :]
  return parts, lost, silent


def _fits(made, context):
  return len(made[1].ids) - 1 <= context.max_length


def _refuse_length(tokens, context, ways):
  raise JaxsftError(
    f"{len(tokens.ids) - 1} tokens, the limit is {context.max_length}; raise "
    f"config.data.max_length, or set config.data.too_long to {ways}"
  )


def _example(tokens):
  """The arrays of all tokens."""
  return {
    "inputs": tokens.ids[:-1],
    "targets": tokens.ids[1:],
    "weights": tokens.supervised[1:].astype(np.float32),
  }


def _of_text(fields, context):
  """([(Rendered, Tokens)], its examples, notes) of a plain text."""
  text, escape = forms.text(fields), context.control_tokens == "escape"
  made = chat.plain(text, context.tokenizer, escape=escape)
  if _fits(made, context):
    return [made], [_example(made[1])], []
  if context.too_long == "drop":
    return [made], [], ["dropped: too long"]
  if context.too_long == "truncate":
    made = chat.plain(text, context.tokenizer, context.max_length + 1, escape)
    return [made], [_example(made[1])], ["truncated"]
  if context.too_long == "windows":
    return [made], _windows(_example(made[1]), context), ["read in windows"]
  ways = "'windows', 'truncate' or 'drop'"
  ways += ": plain text has no turns" * (context.too_long == "turns")
  return _refuse_length(made[1], context, ways)


def _windows(example, context):
  """Windows of the arrays of a text; what two share is only read in the second."""
  count, found = len(example["inputs"]), []
  for start, stop in words.windows(count, context.max_length, context.stride):
    part = {name: values[start:stop] for name, values in example.items()}
    if start:
      part["weights"] = part["weights"].copy()
      part["weights"][: context.stride] = 0
    found.append(part)
  return found


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
    how = (context.tokenizer, context.chat_template, tools)
    return chat.prompt_ids(messages, *how, **_settings(context)).tolist()
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
