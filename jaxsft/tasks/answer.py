"""The answer to a question as a piece of a context, or that there is none (SQuAD 1.1 and 2.0).

Rows have `question`, `context` and `answers`. A context that does not fit is read in windows,
each an example of its own with its own start and end. The first token of a window says that
the answer is not in it (arXiv:1810.04805, section 4.3).
"""

import unicodedata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft import tasks
from jaxsft.data import control, squad, words
from jaxsft.errors import JaxsftError
from jaxsft.metrics import answers as scoring
from jaxsft.metrics import statistics

FIELDS = ("question", "context", "answers")
GOLD = ("answers", "impossible")
TEXTS, AUGMENTED = ("question", "context"), ("context",)
HEAD, SOURCE, OUTPUTS = "span", False, "token"
METRICS = scoring.DIRECTIONS | {"loss": "min"}
DEFAULT_METRIC = "f1"
OUTSIDE = -1  # start_char and end_char of tokens that are not of the context
LOW = -1e30  # a logit of no probability, finite so that its gradient is 0


def encode(row, context):
  """Encoded windows of one question; of several answers the first is learnt.

  inputs, token_types, start_char and end_char [T]: question, context and special tokens as
  the tokenizer pairs them, and where in the context a token stands (OUTSIDE: nowhere). Where
  the row has answers, 0-d `start` and `end`, the places of the answer's first and last token
  in the window, 0 and 0 where it is not whole in it, and `label_weight` 1.

  The question comes first whatever side the tokenizer pads: causal models see only backwards.
  Neighbouring windows share context.stride tokens of the context. Raises JaxsftError with the
  row's place for fields that do not fit, a question without answer where context.null_threshold
  is None, and a question that leaves no room.
  """
  try:
    return _encode(squad.question(row.fields), context)
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def _encode(fields, context):
  question, passage = fields["question"], fields["context"]
  labelled = "answers" in fields
  text, spans = f"{question} | {passage}", []
  control.refuse_in_read({"question": question, "context": passage}, context.tokenizer)
  if labelled and fields["answers"] is None:
    raise JaxsftError(
      "answers is null, expected a list, and an empty one where the question has no answer; "
      "correct the row"
    )
  if labelled and not fields["answers"] and context.null_threshold is None:
    raise JaxsftError(
      "the question has no answer, but config.evaluate.null_threshold is None, which always "
      "gives one; set it to the least odds at which none is given, for example 0, or leave "
      "such rows out with config.data.keep"
    )
  pair = _tokenize(question, passage, context.tokenizer)
  first, stop = pair.context
  room = context.max_length - (len(pair.inputs) - (stop - first))
  if stop - first > room and room <= context.stride:
    if context.too_long == "drop":
      return tasks.Encoded((), "dropped: question too long", text, spans, frozenset())
    raise JaxsftError(
      f"the question leaves room for {max(room, 0)} of {stop - first} tokens of the context in "
      f"a window of {context.max_length}, expected more than the {context.stride} that windows "
      "share (config.data.stride); lower that, raise config.data.max_length, or set "
      "config.data.too_long to 'drop'"
    )
  target, note = None, None
  if labelled and fields["answers"]:
    gold = fields["answers"][0]
    before, end = len(question) + 3, gold["start"] + len(gold["text"])
    spans = [(before + gold["start"], before + end)]
    target = _tokens_of(gold["start"], end, pair)
  parts = [(first + a, first + b) for a, b in words.windows(stop - first, room, context.stride)]
  if target and not any(a <= target[0] and target[1] < b for a, b in parts):
    note = "with an answer longer than what windows share, whole in none of them"
  examples = tuple(_window(pair, part, labelled, target) for part in parts)
  return tasks.Encoded(examples, note, text, spans, frozenset())


class _Pair(NamedTuple):
  """A question and its whole context, [T] each."""

  inputs: np.ndarray
  token_types: np.ndarray
  start_char: np.ndarray
  end_char: np.ndarray
  context: tuple[int, int]
  """First token of the context, and the one behind its last."""


def _tokenize(question, passage, tokenizer):
  tokens = tokenizer(
    question,
    passage,
    return_token_type_ids=True,
    return_offsets_mapping=True,
    verbose=False,  # of lengths: windows take care of them
  )
  mine = np.array([side == 1 for side in tokens.sequence_ids(0)])
  if not mine.any() or mine[0]:
    name, value = ("question", question) if mine.any() else ("context", passage)
    raise JaxsftError(
      f"the tokenizer makes no token of the {name} {value[:60]!r}; correct the row or leave it "
      "out with config.data.keep"
    )
  offsets = np.where(mine[:, None], np.asarray(tokens["offset_mapping"]), OUTSIDE)
  first = int(mine.argmax())
  return _Pair(
    np.asarray(tokens["input_ids"], np.int32),
    np.asarray(tokens["token_type_ids"], np.int32),
    offsets[:, 0].astype(np.int32),
    offsets[:, 1].astype(np.int32),
    (first, first + int(mine.sum())),
  )


def _tokens_of(start, end, pair):
  """(first, last) token that has any of the characters start to end of the context."""
  first, stop = pair.context
  here = np.arange(first, stop)
  touch = here[(pair.end_char[here] > start) & (pair.start_char[here] < end)]
  if not len(touch):
    raise JaxsftError(
      f"the tokenizer makes no token of the answer at characters {start} to {end} of the "
      "context; correct the row or leave it out with config.data.keep"
    )
  return int(touch[0]), int(touch[-1])


def _window(pair, part, labelled, target):
  """The example with only `part` of the context."""
  (first, _), (start, end) = pair.context, part
  columns = pair._asdict()
  del columns["context"]
  example = words.window(columns, pair.context, part)
  if labelled:
    whole = target is not None and start <= target[0] and target[1] < end
    places = (target[0] - start + first, target[1] - start + first) if whole else (0, 0)
    example["start"], example["end"] = map(np.int32, places)
    example["label_weight"] = np.float32(1)
  return example


def loss(network, params, batch, options, key=None):
  """Sums over the windows of a batch: the mean of the start's and the end's cross-entropy.

  batch: token keys [R,T]; starts, ends and label_weights [R,M]. Each cross-entropy is over
  the tokens of the window's own segment, all of them. accuracy: both places are the
  likeliest. Label smoothing (spread over the segment) and the z-loss belong to training.
  """
  logits = network.logits(params, batch, key)  # R T 2
  weights = batch["label_weights"]
  segments, positions = batch["segments"][:, None], batch["positions"][:, None]
  mine = segments == jnp.arange(1, weights.shape[1] + 1)[:, None]  # R M T
  smooth = 0.0 if key is None else options.label_smoothing
  nll, right = 0.0, 1.0
  for side, name in enumerate(("starts", "ends")):
    scores = jnp.where(mine, logits[:, None, :, side], LOW)
    target = mine & (positions == batch[name][..., None])
    log_z = jax.nn.logsumexp(scores, -1)  # R M
    gold = jnp.sum(jnp.where(target, scores, 0), -1)
    one = log_z - gold
    if smooth:
      size = jnp.maximum(jnp.sum(mine, -1), 1)
      mean = jnp.sum(jnp.where(mine, scores, 0), -1) / size
      one = log_z - (1 - smooth) * gold - smooth * mean
    if options.z_loss and key is not None:
      one = one + options.z_loss * jnp.square(log_z)
    nll = nll + one / 2
    right = right * (gold >= jnp.max(scores, -1))
  total = jnp.sum(weights)
  add = lambda x: jnp.sum(jnp.where(weights > 0, x * weights, 0))
  return {"loss": (add(nll), total), "accuracy": (add(right), total)}


def predict(network, params, batch, options):
  """{"logits": [R,T,2]} float32: of each token as the start and as the end."""
  return {"logits": network.logits(params, batch)}


class Answer(NamedTuple):
  """A piece of the context, or "" for none."""

  text: str
  start: int | None
  end: int | None
  """Characters of the context."""
  logit: float
  """Sum of the start's and the end's logits."""


def ranking(found, context):
  """(answers, the best first; logit of there being none) of one row.

  As the SQuAD reference of BERT decodes (run_squad.py, write_predictions): of every window
  the context.n_best likeliest starts with as many ends, of at most context.max_answer_length
  tokens, all of the context; equal texts count once. None is as likely as in the window that
  believes it least. Where this leaves nothing, all starts and ends are tried.
  """
  passage, best = found.row.fields["context"], {}
  logits = [np.asarray(output["logits"], np.float64) for output in found.outputs]
  for most in (context.n_best, None):
    parts = [
      _spans(example, one, most, context.max_answer_length)
      for example, one in zip(found.examples, logits, strict=True)
    ]
    scores, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    for i in np.argsort(-scores, kind="stable").tolist():  # of equals the earlier
      start, text = _piece(passage, int(starts[i]), int(ends[i]))
      if text and text not in best:
        best[text] = Answer(text, start, start + len(text), float(scores[i]))
      if len(best) == context.n_best:
        break
    if best:
      break
  return list(best.values()), min(float(one[0].sum()) for one in logits)


def _spans(example, logits, most, longest):
  """(logits, first characters, ends) of a window's candidates, [n] each."""
  inside = example["end_char"] != OUTSIDE
  first, last = (np.argsort(-logits[:, side], kind="stable")[:most] for side in (0, 1))
  i, j = (grid.ravel() for grid in np.meshgrid(first, last, indexing="ij"))
  good = inside[i] & inside[j] & (i <= j) & (j - i < longest)
  i, j = i[good], j[good]
  return logits[i, 0] + logits[j, 1], example["start_char"][i], example["end_char"][j]


def _piece(passage, start, end):
  """(start, text) without spaces around, which some tokens have, and with all its accents.

  Marks on the last letter belong to it, though a tokenizer may have removed them.
  """
  while end < len(passage) and unicodedata.category(passage[end]).startswith("M"):
    end += 1
  piece = passage[start:end]
  return start + len(piece) - len(piece.lstrip()), piece.strip()


def n_best(found, context):
  """([(Answer, probability)], the best first; odds of no answer) of one row.

  At most context.n_best, of which no answer, Answer("", None, None, …), is one unless
  context.null_threshold is None (and one more where it is behind the others).
  """
  ranked, null = ranking(found, context)
  odds = null - ranked[0].logit
  if context.null_threshold is not None:
    place = sum(one.logit >= null for one in ranked)
    if place < context.n_best:
      ranked = ranked[: max(1, context.n_best - 1)]
    ranked.insert(place, Answer("", None, None, null))
  logits = np.array([one.logit for one in ranked])
  scores = np.exp(logits - logits.max())
  return list(zip(ranked, (scores / scores.sum()).tolist(), strict=True)), odds


def decode(found, context):
  """{"answer", "start", "end", "score", "null_odds"} of one row.

  start and end are characters of the context, score is the answer's probability among the n
  best. null_odds: logit of no answer less the best answer's; above context.null_threshold the
  answer is "", and start and end are None.
  """
  ranked, odds = n_best(found, context)
  silent = context.null_threshold is not None and odds > context.null_threshold
  said, score = next((one, p) for one, p in ranked if (one.start is None) == silent)
  return {
    "answer": said.text,
    "start": said.start,
    "end": said.end,
    "score": score,
    "null_odds": odds,
  }


def metrics(found, context):
  """The official numbers (metrics.answers, from 0 to 100), and the mean loss of the windows.

  With context.null_threshold those of SQuAD 2.0: also for the questions with an answer and
  without, and the best that any threshold reaches, with that threshold, chosen on these rows.
  """
  texts, said, odds, gold = _answers(found, context)
  losses = [row_loss(one, context) for one in found]
  counts = [len(one.examples) for one in found]
  loss = {"loss": float(np.average(losses, weights=counts))}
  if context.null_threshold is None:
    return loss | scoring.scores(said, gold, version="1.1")
  return loss | scoring.scores(said, gold) | _best(texts, gold, odds)


def row_loss(one, context):
  """Mean loss of the windows of one row."""
  return float(np.mean([_nll(*pair) for pair in zip(one.examples, one.outputs, strict=True)]))


def measured(found, context):
  """statistics.Measured of the metrics that intervals and comparisons are made of."""
  _, said, _, gold = _answers(found, context)
  numbers = scoring.rows(said, gold, "1.1" if context.null_threshold is None else "2.0")
  return [statistics.mean(name, numbers[name], scale=100) for name in ("f1", "exact_match")]


def _answers(found, context):
  """(best answers, what is said of them or "", odds of no answer [n], gold answers) of rows."""
  gold = [[a["text"] for a in squad.question(f.row.fields)["answers"]] for f in found]
  ranked = [ranking(one, context) for one in found]
  texts = [answers[0].text for answers, _ in ranked]
  odds = np.array([null - answers[0].logit for answers, null in ranked])
  limit = np.inf if context.null_threshold is None else context.null_threshold
  said = [text if one <= limit else "" for text, one in zip(texts, odds, strict=True)]
  return texts, said, odds, gold


def _best(texts, gold, odds):
  """Best scores over all thresholds of the odds, and these thresholds."""
  levels, rank = np.unique(odds, return_inverse=True)
  answerable = np.array([len(accepted) > 0 for accepted in gold])
  found = {}
  for name, values in scoring.rows(texts, gold).items():
    given = np.ones(len(texts), bool)
    best, at = scoring.best_threshold(values, given, answerable, rank + 1.0)
    found[f"best_{name}"] = best
    # 0: better to answer nothing, with a threshold below all odds
    found[f"best_{name}_threshold"] = float(levels[int(at) - 1] if at else levels[0] - 1)
  return found


def _nll(example, output):
  logits = np.asarray(output["logits"], np.float64)  # T 2
  top = logits.max(0)
  log_z = top + np.log(np.exp(logits - top).sum(0))
  return np.mean(log_z - logits[[example["start"], example["end"]], [0, 1]])
