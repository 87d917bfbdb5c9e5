"""A tag for every word of a text: named entities, parts of speech.

Rows have `tokens` and `tags`, or `text` and `entities`, spans of its characters that become
tags of the tokenizer's own words. Characters of rows with tokens are those of " ".join(tokens),
which is also what the model reads, as it would read a plain text. A word is read, and learnt,
at its first sub-token. A head on a causal model sees no more than that there.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import tasks
from jaxsft.data import spelling, words
from jaxsft.errors import JaxsftError
from jaxsft.metrics import statistics, tagging
from jaxsft.tasks import classify

FIELDS = ()  # tokens or text: `words.read` says what a row lacks
GOLD = ("tags", "entities")
AUGMENTED = TEXTS = ("text", "tokens")
HEAD, SOURCE, OUTPUTS = "token", False, "token"
_OF_TAGS = {
  k: v for k, v in tagging.DIRECTIONS.items() if k not in ("precision", "recall", "f1")
}
METRICS = {
  "entities": {**tagging.DIRECTIONS, "loss": "min"},
  "plain": {**_OF_TAGS, "loss": "min"},
}
DEFAULT_METRIC = {"entities": "f1", "plain": "accuracy"}
NO_TOKEN = "with words that the tokenizer maps to nothing"


def kind(context):
  """ "entities", or "plain" where the labels are no scheme's: a key of METRICS."""
  return "plain" if spelling.scheme(context.labels) == "plain" else "entities"


def options(settings, context):
  """The config's `loss` group with the class weights in label order, or None."""
  return dataclasses.replace(settings, class_weights=context.class_weights)


def label_names(rows, own=()):
  """The labels of rows in id order; see spelling.label_names."""
  return spelling.label_names(rows, own)


def settled(rows, context):
  """Labelled rows with their tags spelt as context.labels; see spelling.settled."""
  return spelling.settled(rows, context.labels)


def encode(row, context):
  """Encoded example of one row, or several windows of it.

     words        EU  rejects      Germans
     inputs   [CLS]  EU  reject ##s  German ##s  [SEP]     [T] int32
     word       -1    0     1    -1     2    -1    -1      [T] int32: the word that is read here
     targets     0    3     0     0     1     0     0      [T] int32: its label
     weights     0    1     1     0     1     0     0      [T] float32

  and token_types [T]; targets and weights where the row has tags. Longer than
  context.max_length is, by context.too_long, an error, left out, cut at its end, or read in
  windows that share context.stride tokens: there every word is read once, where it has most
  around it. Raises JaxsftError with the row's place for what cannot be read, and for a tag
  that is not in context.labels.
  """
  try:
    return _encode(row.fields, context)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def _encode(fields, context):
  if fields.get("tokens") in ([], ()) and fields.get("tags") in ([], ()):
    return tasks.Encoded((), "dropped: no words", "", [], frozenset())
  read = words.read(fields, context.tokenizer)
  tags = gold_tags(fields, read.words, read.text, context)
  spans = [] if tags is None else _learnt(tags, read, context)
  first, stop = read.inside
  parts, note = _parts(stop - first, len(read.inputs) - (stop - first), context)
  ids = None if tags is None else _ids(tags, read, context)
  owner = words.shared_out(stop - first, parts) if parts else ()
  examples = [_example(read, part, owner == n, ids) for n, part in enumerate(parts)]
  reading = [example for example in examples if (example["word"] >= 0).any()]
  if parts and not reading and tags is not None:
    note = "dropped: no word that the tokenizer knows"
  elif parts and read.lost:
    note = f"{note}, {NO_TOKEN}" if note else NO_TOKEN
  examples = reading if tags is not None else reading or examples[:1]
  said = "" if tags is None else ", ".join(_said_of(tags, context))
  return tasks.Encoded(tuple(examples), note, read.text, spans, frozenset(), said)


def _parts(count, special, context):
  """([(start, stop)] of a text's tokens that examples hold, note); none: left out.

  special: tokens that stand around those of the text.
  """
  room = context.max_length - special
  if count <= room:
    return [(0, count)], None
  if context.too_long == "drop":
    return [], "dropped: too long"
  if context.too_long == "windows" and room > context.stride:
    return words.windows(count, room, context.stride), None
  if context.too_long == "truncate" and room > 0:
    return [(0, room)], "truncated"
  found = f"{count + special} tokens, the limit is {context.max_length}"
  if context.too_long == "error":
    raise JaxsftError(
      f"{found}; set config.data.too_long to 'windows', 'truncate' or 'drop', or raise "
      "config.data.max_length"
    )
  raise JaxsftError(
    f"{found}, of which {special} stand around the text"
    f"{f' and {context.stride} are what windows share' * (context.too_long == 'windows')}; "
    "raise config.data.max_length"
  )


def _example(read, part, mine, ids):
  """The arrays of one part of a text.

  mine: [tokens of the text] bool, where words are read in this part. ids: labels of all words.
  """
  first, stop = read.inside
  word = read.word.copy()
  word[first:stop][~mine] = -1
  columns = {"inputs": read.inputs, "token_types": read.token_types, "word": word}
  example = words.window(columns, read.inside, (first + part[0], first + part[1]))
  if ids is not None:
    here = example["word"] >= 0
    example["targets"] = np.where(here, ids[example["word"]], 0).astype(np.int32)
    example["weights"] = here.astype(np.float32)
  return example


def gold_tags(fields, places, text, context):
  """The tags of all words of a row, by their (start, end) in the text; None: it has none.

  Raises JaxsftError for as many tags as there are no words, and for entities that are not
  made of whole words.
  """
  found = words.entities(fields)
  if found is not None:
    spans = [tagging.Span(*span) for span in words.words_of(found, places, text)]
    return tagging.tags_of(spans, len(places), spelling.scheme(context.labels))
  tags = fields.get("tags")
  if tags is None:
    return None
  if fields.get("tokens") is None:
    raise JaxsftError(
      "found tags but no tokens that they are of; map a column to them: "
      'data.columns={"tokens": …}'
    )
  if len(tags) != len(places):
    raise JaxsftError(
      f"found {len(tags)} tags for {len(places)} tokens, expected one for each; correct the row"
    )
  return tags


def _ids(tags, read, context):
  """[W] ids of tags among the labels."""
  known = {label: n for n, label in enumerate(context.labels)}
  for (start, end), tag in zip(read.words, tags, strict=True):
    if tag not in known:
      raise JaxsftError(
        f"the tag {tag!r} of {read.text[start:end]!r} is unknown, expected one of "
        f"{', '.join(context.labels)}; correct the row or set config.data.labels"
      )
  return np.array([known[tag] for tag in tags], np.int32)


def _learnt(tags, read, context):
  """(start, end) in characters of the entities, or of all words where tags are plain."""
  if spelling.scheme(context.labels) == "plain":
    return read.words
  return [(e["start"], e["end"]) for e in _entities(tags, read.text, read.words, context)]


def _said_of(tags, context):
  """What is learnt at each of the characters of `_learnt`."""
  known = spelling.scheme(context.labels)
  return tags if known == "plain" else [span.type for span in tagging.spans(tags, known)]


def _entities(tags, text, places, context, scores=None):
  """[{"text", "label", "start", "end"}] of tags, with "score" where words have scores."""
  result = []
  for name, first, stop in tagging.spans(tags, spelling.scheme(context.labels)):
    start, end = places[first][0], places[stop - 1][1]
    result.append({"text": text[start:end], "label": name, "start": start, "end": end})
    if scores is not None:
      result[-1]["score"] = float(np.mean(scores[first:stop]))
  return result


def loss(network, params, batch, options, key=None):
  """Sums over the words of a batch: the cross-entropy, and how many are right.

  batch: token keys [R,T], targets and weights among them. options: label_smoothing, z_loss
  and class_weights, which belong to training: without a key it is the plain cross-entropy.
  """
  logits = network.logits(params, batch, key)  # R T C
  terms = classify.PLAIN if key is None else options
  return classify.cross_entropy(logits, batch["targets"], batch["weights"], terms)


def predict(network, params, batch, options):
  """Of each token [R,T]: label, the likeliest (the first of equals), its score, which is its
  probability, and, where there are targets, their nll.
  """
  log_p = jax.nn.log_softmax(network.logits(params, batch))  # R T C
  label = jnp.argmax(log_p, -1).astype(jnp.int32)
  found = {"label": label, "score": jnp.exp(jnp.max(log_p, -1))}
  if "targets" in batch:
    found["nll"] = -jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
  return found


def _said(one, count, context):
  """(tags, scores) of `count` words; one that was not read has "O" and no score."""
  tags, scores = ["O"] * count, [None] * count
  for example, output in zip(one.examples, one.outputs, strict=True):
    for t in np.flatnonzero(example["word"] >= 0).tolist():
      word = int(example["word"][t])
      tags[word] = context.labels[int(output["label"][t])]
      scores[word] = float(output["score"][t])
  return tags, scores


def decode(found, context):
  """What the model says of one row: {"entities", "tags"}, or {"tags", "scores"} where tags are
  plain; and "tokens", the words that the tags are of, where the row has none.

  An entity is {"text", "label", "start", "end", "score"}: characters of the row's text, of
  " ".join(tokens) where it has tokens; the mean probability of its words' tags.
  """
  fields = found.row.fields
  text, places = words.spans(fields, context.tokenizer)
  tags, scores = _said(found, len(places), context)
  said = {"tags": tags}
  if spelling.scheme(context.labels) == "plain":
    said["scores"] = scores
  else:
    said = {"entities": _entities(tags, text, places, context, scores)} | said
  if fields.get("tokens") is None:
    said["tokens"] = [text[start:end] for start, end in places]
  return said


def _pairs(found, context):
  """[(predicted tags, gold tags)] of the rows, all their words."""
  pairs = []
  for one in found:
    text, places = words.spans(one.row.fields, context.tokenizer)
    gold = gold_tags(one.row.fields, places, text, context)
    pairs.append((_said(one, len(places), context)[0], gold))
  return pairs


def metrics(found, context):
  """Final numbers of all held-out rows, each word once, by metrics.tagging.

  Words that were not read count with the tag "O": `words` says how many were "cut" by
  data.too_long and of how many there is "no token". `entities` are counts. The loss is that
  of the words that were read, and the plain one: no class weights, no smoothing.
  """
  predicted, gold = zip(*_pairs(found, context), strict=True)
  counts = {"all": sum(map(len, gold)), "cut": 0, "no token": 0}
  losses = [_losses(one) for one in found]
  for one, tags, nll in zip(found, gold, losses, strict=True):
    if missing := len(tags) - len(nll):
      lost = words.read(one.row.fields, context.tokenizer).lost
      counts["cut"] += missing - lost
      counts["no token"] += lost
  numbers = tagging.scores(predicted, gold, spelling.scheme(context.labels))
  del numbers["strict"]
  # Where there is no entity, gold or predicted, there are no counts of them either.
  of_entities = {name: numbers.pop(name, 0) for name in ("right", "predicted", "support")}
  if kind(context) == "entities":
    numbers["entities"] = of_entities
  return {"loss": float(np.concatenate(losses).mean()), **numbers, "words": counts}


def _losses(one):
  """[words that were read] float64, the nll of each."""
  pairs = zip(one.examples, one.outputs, strict=True)
  return np.concatenate([np.float64(o["nll"])[e["weights"] > 0] for e, o in pairs])


def row_loss(one, context):
  """Mean loss of the words of one row."""
  return float(_losses(one).mean())


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  predicted, gold = zip(*_pairs(found, context), strict=True)
  own = spelling.scheme(context.labels)
  types = {*context.labels, "O"} if own == "plain" else spelling.types(context.labels)
  types = sorted(types)
  counts = statistics.type_counts(tagging.counts(predicted, gold, own), types)
  hits = [sum(map(str.__eq__, *pair)) for pair in zip(predicted, gold, strict=True)]
  share = statistics.share("accuracy", hits, [len(tags) for tags in gold])
  macro = statistics.macro_f1(counts, types)
  return [share, macro] if own == "plain" else [statistics.micro_f1(counts, "f1"), macro, share]
