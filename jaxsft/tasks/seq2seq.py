"""A text made of a text: translation, summaries, and whatever has a source and a target.

Rows have `source` and `target`, or `targets`: several references, of which the first trains
and all score. Encoder-decoders read the source and write the target.
"""

import numpy as np

from jaxsft import languages, tasks
from jaxsft.data import clean, control
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat

FIELDS = ("source", "target")
GOLD = ("target", "targets")
TEXTS, AUGMENTED = ("source", *GOLD), ("source",)
HEAD, SOURCE, OUTPUTS = "lm", True, "segment"
TEXT_METRICS = ("bleu", "chrf", "rougeL", "exact_match")
METRICS, DEFAULT_METRIC = chat.METRICS, chat.DEFAULT_METRIC

# All are of the target's tokens: the network reads the source out of the batch.
loss, predict, decode, row_loss = chat.loss, chat.predict, chat.decode, chat.row_loss


def encode(row, context):
  """Encoded example of one row; the target is shifted here and nowhere else.

     source   translate: the house </s>          [S] int32
     target   das Haus </s>                      all of it is supervised
     inputs   <start> das Haus                   [T] int32
     targets  das Haus </s>                      [T] int32
     weights    1  1   1                         [T] float32

  <start> is context.decoder_start, or where that is None the target's own last token (mBART's
  language). A source longer than context.max_length is an error, left out or cut at its end,
  by context.too_long. A target longer than context.max_target_length is never cut: it is left
  out, or an error where too_long is "error". Without a target, `inputs` is <start> alone.
  Raises JaxsftError with the row's place for a target in which the stop token is not once.
  """
  try:
    return _encode(row, context)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def _encode(row, context):
  text = _read(row, context)
  targets = references(row)
  for target in targets[:1]:
    control.refuse(target, context.tokenizer)
  spans = [(len(text) + 1, len(text) + 1 + len(targets[0]))] if targets else []
  shown = "\n".join([text, *targets[:1]])
  source, note = _source(text, context)
  if source is None:
    return tasks.Encoded((), note, shown, spans, frozenset())
  example = {"source": np.asarray(source, np.int32)}
  if not targets:
    start = 0 if context.decoder_start is None else context.decoder_start
    example["inputs"] = np.array([start], np.int32)
    return tasks.Encoded((example,), note, shown, spans, frozenset())
  target, stop = _target(targets[0], context)
  if len(target) > context.max_target_length:
    if context.too_long == "error":
      raise JaxsftError(
        f"the target has {len(target)} tokens, the limit is {context.max_target_length}; raise "
        "config.data.max_target_length, or set config.data.too_long to 'drop' or 'truncate', "
        "which leave such rows out (a target is never cut)"
      )
    return tasks.Encoded((), "dropped: target too long", shown, spans, frozenset())
  start = target[-1] if context.decoder_start is None else context.decoder_start
  example |= {
    "inputs": np.array([start, *target[:-1]], np.int32),
    "targets": np.array(target, np.int32),
    "weights": np.ones(len(target), np.float32),
  }
  return tasks.Encoded((example,), note, shown, spans, frozenset({stop}))


def _read(row, context):
  """The text that the network reads; raises JaxsftError for a control token in the row's."""
  text = asked(row)
  control.refuse(text, context.tokenizer)
  return context.instruction + text


def _source(text, context):
  """(ids, None or "truncated: source"), or (None, why the row is left out)."""
  ids = context.tokenizer(text)["input_ids"]
  if len(ids) <= context.max_length:
    return ids, None
  if context.too_long == "error":
    raise JaxsftError(
      f"the source has {len(ids)} tokens, the limit is {context.max_length}; set "
      "config.data.too_long to 'truncate' or 'drop', or raise config.data.max_length"
    )
  if context.too_long == "drop":
    return None, "dropped: source too long"
  cut = context.tokenizer(text, truncation=True, max_length=context.max_length)
  return cut["input_ids"], "truncated: source"


def _target(text, context):
  """(ids with the stop token, its id)."""
  tokenizer = context.tokenizer
  stop = tokenizer.eos_token_id
  if stop is None:
    raise JaxsftError(
      "the tokenizer has no eos_token, so the model would never learn to stop; use a "
      "checkpoint whose tokenizer_config.json names one"
    )
  if context.languages is None:
    ids = tokenizer(text_target=text)["input_ids"]
  else:
    ids = languages.with_language(tokenizer(text)["input_ids"], tokenizer, context.languages[1])
  ids = ids if stop in ids else [*ids, stop]
  if ids.count(stop) != 1:
    raise JaxsftError(
      f"the stop token {tokenizer.eos_token!r} is {ids.count(stop)} times in the target, "
      "expected once, at its end; correct the tokenizer"
    )
  return ids, stop


def metrics(found, context):
  """Of the targets' tokens, and of the rows with a generated answer context.text_metrics."""
  return chat.token_metrics(found) | chat.text_metrics(found, references, context)


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  return chat.text_measured(found, references, context) + chat.token_measured(found)


def prompt(row, context):
  """Ids that an answer is generated from: the source as training reads it."""
  try:
    return list(_source(_read(row, context), context)[0] or ()) or None
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def whole(row, context):
  """Whether `prompt` holds all of the row's source."""
  return _source(_read(row, context), context)[1] is None


def asked(row):
  """The source as one text, without the instruction; raises JaxsftError where it is none."""
  found = row.fields.get("source")
  texts = [found] if isinstance(found, str) else found if isinstance(found, list) else [None]
  if not all(isinstance(text, str) for text in texts) or not "".join(texts).strip():
    raise JaxsftError(
      f"source is {found!r:.60}, expected a text or a list of sentences; correct the row or "
      "map the right column"
    )
  return clean.joined(found)


def references(row):
  """Texts that an answer is compared with; () where the row has none."""
  if row.fields.get("targets") is not None:
    return tuple(row.fields["targets"])
  return (row.fields["target"],) if row.fields.get("target") is not None else ()
