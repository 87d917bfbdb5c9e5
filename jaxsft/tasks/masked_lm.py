"""Adapting an encoder to texts of a domain: tokens are hidden, and it says what they were.

Rows have `text`; one longer than data.max_length becomes several windows, which share nothing
and leave nothing out. What is hidden is drawn anew at every update, on the device.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsft import tasks
from jaxsft.data import control, scripts
from jaxsft.errors import JaxsftError
from jaxsft.models import heads, layers
from jaxsft.tasks import chat

FIELDS = ("text",)
GOLD = ()
TEXTS, AUGMENTED = ("text",), ()
HEAD, SOURCE, OUTPUTS = "masked_lm", False, "segment"
SEEDED = True
METRICS = {"loss": "min", "pseudo_perplexity": "min", "token_accuracy": "max"}
DEFAULT_METRIC = "loss"

row_loss = chat.row_loss  # `predict` finds what chat's does: nll, tokens, right

SHOWN = 300  # characters of a text in the report
SITES = {"hidden": 0x243F6A88, "fate": 0x85A308D3}  # digits of pi


@dataclass(frozen=True)
class Options:
  """What `loss` and `predict` need: settings, and what the tokenizer says."""

  label_smoothing: float
  z_loss: float
  weighting: str
  chunk: int
  rate: float
  """Share of the tokens, or words, that are hidden."""
  by_word: bool
  mask_id: int
  size: int
  """Ids of the tokenizer lie below it."""
  special: tuple[int, ...]
  """Those that no token is replaced by, sorted."""


def options(settings, context):
  """`Options` of the config's `loss` group and a context."""
  mask_id, size, special = _vocabulary(context.tokenizer, len(context.tokenizer))
  return Options(
    label_smoothing=settings.label_smoothing,
    z_loss=settings.z_loss,
    weighting=settings.weighting,
    chunk=settings.chunk,
    rate=context.mask_rate,
    by_word=context.whole_words,
    mask_id=mask_id,
    size=size,
    special=special,
  )


@lru_cache(maxsize=4)
def _vocabulary(tokenizer, tokens):
  """(id of the mask, size, ids below it that are special or no token at all).

  tokens: how many it has; part of the key, since tokens can be added.
  """
  del tokens
  if tokenizer.mask_token_id is None:
    raise JaxsftError(
      "the tokenizer has no mask token, by which task='masked_lm' hides a token; choose a "
      "checkpoint that was pretrained with one"
    )
  ids = set(tokenizer.get_vocab().values())
  usable, size = ids - set(tokenizer.all_special_ids), max(ids) + 1
  return tokenizer.mask_token_id, size, tuple(sorted(set(range(size)) - usable))


# --- rows to examples ------------------------------------------------------------------


def encode(row, context):
  """Encoded examples of one text: as many windows as it needs, each with its special tokens.

  inputs [T] int32; weights [T] float32, 1 where a token may be hidden: everywhere but at
  special tokens and those that the tokenizer does not know; with context.whole_words words [T]
  int32, the number of the word that a token is of. A window without such a token is left out.
  Raises JaxsftError with the row's place for a control token in the text, the mask's too.
  """
  tokenizer, text = context.tokenizer, row.fields["text"]
  try:
    control.refuse_in_read({"text": text}, tokenizer)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error
  _, size, special = _vocabulary(tokenizer, len(tokenizer))
  frame = tokenizer.num_special_tokens_to_add()
  if context.max_length <= frame:
    raise JaxsftError(
      f"{row.where}: config.data.max_length is {context.max_length}, which leaves no room "
      f"beside {frame} special tokens; raise it"
    )
  windows = tokenizer(
    text,
    truncation=True,
    max_length=context.max_length,
    return_overflowing_tokens=True,
    return_offsets_mapping=True,
  ).encodings
  named = np.zeros(size, bool)
  named[list(special)] = True
  examples = []
  for window in windows:
    ids = np.asarray(window.ids, np.int32)
    example = {"inputs": ids, "weights": (~named[ids]).astype(np.float32)}
    if context.whole_words:
      example["words"] = words_of(text, window.offsets, window.word_ids)
    examples.append(example)
  kept = tuple(example for example in examples if example["weights"].any())
  note = None
  if len(kept) < len(examples):
    note = "cut by windows that have no token to hide" if kept else "dropped: no token to hide"
  shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
  return tasks.Encoded(kept, note, shown, [(0, len(shown))], frozenset())


def words_of(text, offsets, word_ids):
  """[T] int32: for each token the number of its word, from 0.

  offsets: (start, end) of the tokens in characters; word_ids: the tokenizer's own division,
  which may put several words, or a whole sentence, into one. A word ends where that ends, at
  white space, and, in scripts that write none, with each token. Special tokens are words alone.
  """
  words, number, before, last = [], -1, None, 0
  for (start, end), word in zip(offsets, word_ids, strict=True):
    said = text[start:end].lstrip()
    begin = end - len(said)
    new = word is None or word != before or text[last:begin].strip() != text[last:begin]
    if (
      said and begin >= last and scripts.unspaced(said[0])
    ):  # not a further byte of a character
      new = True
    number += bool(new or number < 0)
    words.append(number)
    before, last = word, max(end, last)
  return np.asarray(words, np.int32)


# --- on the device ---------------------------------------------------------------------


def loss(network, params, batch, options, key=None):
  """Sums of the cross-entropy and of the right tokens over those that are hidden.

  batch: token keys [R,T], weights those of its example where a token may be
  hidden, 0 elsewhere; seeds [R,M] uint32, of each segment: what is hidden is a function of
  seed and position alone, whatever the layout of the batch. Of the tokens (or words) a share
  options.rate, and at least one of each segment; four fifths become the mask, a tenth another
  token, a tenth stays (BERT, arXiv:1810.04805).
  """
  masked, inputs = hide(batch, options)
  hidden = masked.astype(jnp.float32)
  weights = hidden * batch["weights"]
  if options.weighting == "example":
    most = batch["seeds"].shape[1]
    count = heads.segment_sums({"hidden": hidden}, batch["segments"], most)["hidden"]
    weights = weights / jnp.maximum(_of_segment(count, batch["segments"]), 1)
  x = network.hidden(params, batch | {"inputs": inputs}, key)
  return chat.token_sums(network, params, x, batch["inputs"], weights, options, key)


def hide(batch, options):
  """(masked [R,T] bool, inputs [R,T] with what stands for the masked tokens)."""
  inputs, segments = batch["inputs"], batch["segments"]
  seeds = _of_segment(batch["seeds"], segments)
  able, units = batch["weights"] > 0, batch["words" if options.by_word else "positions"]
  draw = _draw(seeds, units, "hidden")
  mine = segments[:, None] == jnp.arange(1, batch["seeds"].shape[1] + 1)[None, :, None]
  most = np.uint32(2**32 - 1)
  least = jnp.min(jnp.where(mine & able[:, None], draw[:, None], most), -1)
  masked = able & ((draw < _share(options.rate)) | (draw == _of_segment(least, segments)))
  fate = _draw(seeds, batch["positions"], "fate")
  replaced = jnp.where(fate < _share(0.9), _ordinary(fate, options), inputs)
  hidden = jnp.where(fate < _share(0.8), options.mask_id, replaced)
  return masked, jnp.where(masked, hidden, inputs)


def _of_segment(values, segments):
  """values [R,M] -> [R,T], each token's own; padding has that of the first segment."""
  return jnp.take_along_axis(values, jnp.maximum(segments - 1, 0), 1)


def _draw(seeds, units, site):
  """uint32 [R,T] by seed and unit, independent of those of another site."""
  units = units.astype(jnp.uint32) * np.uint32(0x9E3779B9)
  return layers.mix(layers.mix(seeds ^ np.uint32(SITES[site])) + units)


def _share(rate):
  return np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _ordinary(draw, options):
  """Ids of ordinary tokens, one as likely as the other, by draws [R,T]."""
  ids = (draw % np.uint32(options.size - len(options.special))).astype(jnp.int32)
  for special in options.special if len(options.special) <= 32 else ():
    ids = ids + (ids >= special)
  if len(options.special) > 32:
    usable = np.setdiff1d(np.arange(options.size), options.special)
    ids = jnp.asarray(usable, jnp.int32)[ids]
  return ids


def predict(network, params, batch, options):
  """Of each segment [R,M] float32: nll, the summed loss of its tokens; tokens, how many; right,
  how many are the likeliest.

  Every token is hidden once, behind the mask: in pass k of ceil(1 / rate) those whose position
  (or word) is k more than a multiple of it, so that nothing depends on the batch.
  """
  able, units = batch["weights"] > 0, batch["words" if options.by_word else "positions"]
  passes = math.ceil(1 / options.rate)

  def add(total, k):
    masked = able & (units % passes == k)
    inputs = jnp.where(masked, options.mask_id, batch["inputs"])
    x = network.hidden(params, batch | {"inputs": inputs})
    weights = masked.astype(jnp.float32)
    found = chat.token_losses(network, params, x, batch["inputs"], weights, options)
    return jax.tree.map(jnp.add, total, found), None

  zeros = jnp.zeros(batch["inputs"].shape, jnp.float32)
  (nll, right), _ = lax.scan(add, (zeros, zeros), jnp.arange(passes))
  found = {"nll": nll, "tokens": able.astype(jnp.float32), "right": right}
  return heads.segment_sums(found, batch["segments"], batch["example_ids"].shape[1])


# --- what is said of texts ---------------------------------------------------------------


def decode(found, context):
  """{"pseudo_perplexity", "tokens"} of one text."""
  nll, tokens, _ = chat.row_sums(found)
  return {"pseudo_perplexity": chat.perplexity(nll / tokens), "tokens": int(tokens)}


def metrics(found, context):
  """Means over all held-out tokens, and the pseudo-perplexity exp(loss).

  That of Salazar et al. 2020 (arXiv:1910.14659) hides one token at a time. Here the tokens of a
  pass are hidden together, so that each is told from fewer, and the number is a little higher;
  it is the same for both where no text is longer than 1 / rate.
  """
  means = chat.token_metrics(found)
  return {("pseudo_" if k == "perplexity" else "") + k: value for k, value in means.items()}


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  perplexity, share = chat.token_measured(found)
  return [replace(perplexity, name="pseudo_perplexity"), share]
