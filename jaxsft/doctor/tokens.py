"""Examples as the model will see them: every token with its id, place and fate."""

import hashlib
from typing import NamedTuple

import numpy as np

from jaxsft.data import feed

CHOSEN = 2
"""Examples that are shown of each kind."""
MOST = 400
"""Tokens of an example that are shown, and places of a batch row."""


class Token(NamedTuple):
  """One place of one row."""

  id: int
  text: str
  kind: str
  """"supervised" (its weight is above 0), "context" or "padding"."""
  position: int
  segment: int
  """1, 2 … within a row of a batch; 0: padding."""
  special: bool
  said: str = ""
  """What is learnt there, where the token does not say it: a tag, the next token."""


class Shown(NamedTuple):
  """One example, or one row of a batch."""

  why: str
  """"first", "random", "longest", "shortest", "truncated" or "batch row"."""
  id: str
  streams: dict[str, tuple[Token, ...]]
  """Its tokens by name: "tokens", or "source" and "target"."""
  answer: str = ""
  """The label, the span or the number; "" where the tokens say it."""
  left: int = 0
  """Tokens that are not shown."""


def examples(part, prepared):
  """`Shown` of an `encoding.Examples`: the first, some by hash, the extremes, those cut."""
  store = part.store
  lengths = np.asarray(store.lengths).reshape(len(store), -1).sum(1)
  order = np.argsort(lengths, kind="stable")
  noted = {
    i for note, ids in part.counts["noted"].items() if note.startswith("truncated") for i in ids
  }
  kinds = {
    "first": range(len(store)),
    "random": sorted(range(len(store)), key=lambda i: _hash(store.ids[i])),
    "longest": order[::-1],
    "shortest": order,
    "truncated": [i for i, id in enumerate(store.ids) if id in noted] if noted else [],
  }
  taken, result = set(), []
  for why, found in kinds.items():
    for i in [int(i) for i in found if int(i) not in taken][:CHOSEN]:
      taken.add(i)
      result.append(_shown(why, i, part, prepared))
  return result


def batch_rows(prepared, config, count=2):
  """`Shown` of the first rows of the first update, as they lie in the batch."""
  store, plan, found = prepared.train.store, prepared.plan, []
  rows = plan.batch(0)[:count]
  _, row_length, segments = plan.shape(0)
  batch = feed.batch(
    store,
    rows,
    row_length=row_length,
    segments=segments,
    weighting=config.loss.weighting,
    scale=prepared.scale,
  )
  for number in range(len(rows)):
    one = {name: values[number] for name, values in batch.items()}
    streams = {}
    for prefix in ("source", ""):
      ids = one.get(prefix or "inputs")
      if ids is not None:
        name = prefix or ("target" if "source" in batch else "tokens")
        streams[name] = _places(one, ids, f"{prefix}_" if prefix else "", prepared)
    ids = [store.ids[i] for i in one["example_ids"] if i >= 0]
    answers = [_answer(prepared, store.example(int(i))) for i in one["example_ids"] if i >= 0]
    answers = "; ".join(f"{n}: {a}" for n, a in enumerate(answers, 1) if a)
    left = sum(max(0, len(tokens) - MOST) for tokens in streams.values())
    streams = {name: tokens[:MOST] for name, tokens in streams.items()}
    found.append(Shown("batch row", ", ".join(ids), streams, answers, left))
  return found


def _places(one, ids, prefix, prepared):
  """The places of a batch row: colour by the weight of what is predicted there."""
  weights = None if prefix else _learnt(one)
  segments, positions = one[f"{prefix}segments"], one[f"{prefix}positions"]
  tokenizer, said = prepared.context.tokenizer, _said(one, prepared) if not prefix else None
  texts, special = pieces(ids, tokenizer)
  result = []
  for n, id in enumerate(ids.tolist()):
    learnt = weights is not None and weights[n] > 0
    kind = "padding" if segments[n] == 0 else "supervised" if learnt else "context"
    result.append(
      Token(
        id,
        texts[n],
        kind,
        int(positions[n]),
        int(segments[n]),
        special[n],
        said[n] if said and learnt else "",
      )
    )
  return tuple(result)


def _shown(why, i, part, prepared):
  """`Shown` of example i of a part."""
  example, id = part.store.example(i), part.store.ids[i]
  streams = {}
  if "source" in example:
    streams["source"] = _tokens(example["source"], None, prepared)
  name = "target" if streams else "tokens"
  streams[name] = _own(example, prepared)
  left = sum(max(0, len(tokens) - MOST) for tokens in streams.values())
  streams = {name: tokens[:MOST] for name, tokens in streams.items()}
  return Shown(why, id, streams, _answer(prepared, example), left)


def _own(example, prepared):
  """The tokens of an example; of a language model the text that its targets are."""
  weights = _learnt(example)
  if prepared.task.HEAD == "lm":  # targets are the inputs one place on
    ids = np.concatenate([example["inputs"][:1], example["targets"]])
    return _tokens(ids, np.concatenate([[0], weights]), prepared)
  return _tokens(example["inputs"], weights, prepared, _said(example, prepared))


def _tokens(ids, weights, prepared, said=None):
  texts, special = pieces(ids, prepared.context.tokenizer)
  learnt = np.zeros(len(ids), bool) if weights is None else np.asarray(weights) > 0
  return tuple(
    Token(
      int(id), texts[n], "supervised" if learnt[n] else "context", n, 1, special[n],
      said[n] if said and learnt[n] else "",
    )
    for n, id in enumerate(ids)
  )  # fmt: skip


def _learnt(one):
  """[T] above 0 where a token is learnt, or is of an answer; None: no token is."""
  ends = ("starts", "ends") if "starts" in one else ("start", "end")  # of a batch
  if ends[0] not in one:
    return one.get("weights")
  segments = one.get("segments", np.ones(len(one["inputs"]), int))
  at = one.get("positions", np.arange(len(one["inputs"])))
  own = np.maximum(segments, 1) - 1
  start, end = (np.ravel(one[name])[own] for name in ends)
  return (segments > 0) & (start > 0) & (start <= at) & (at <= end)


def _said(one, prepared):
  """What is learnt at each place: the tag, or the next token; None: the token itself."""
  if prepared.task.HEAD == "token" and "targets" in one:
    return [prepared.context.labels[target] for target in one["targets"]]
  if prepared.task.HEAD == "lm" and "targets" in one:
    return pieces(one["targets"], prepared.context.tokenizer)[0]
  return None


def _answer(prepared, example):
  """What is learnt of a whole example, as text."""
  context = prepared.context
  if "start" in example:
    start, end = int(example["start"]), int(example["end"])
    if start == 0:
      return "no answer in this window"
    texts, _ = pieces(example["inputs"][start : end + 1], context.tokenizer)
    return f"tokens {start} to {end}: {''.join(texts).strip()}"
  if "label" not in example:
    return ""
  label = example["label"]
  if context.label_type == "number":
    return f"{float(label):g}"
  if context.label_type == "multi":
    chosen = [name for name, yes in zip(context.labels, np.ravel(label), strict=True) if yes]
    return ", ".join(chosen) or "(none)"
  return context.labels[int(label)]


def pieces(ids, tokenizer):
  """([text of each token], [is it special?]); spaces and line ends as they are."""
  ids = [int(id) for id in ids]
  known = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
  raw = tokenizer.convert_ids_to_tokens(ids)
  texts = []
  for id, piece in zip(ids, raw, strict=True):
    if piece is None:
      texts.append("?")
    elif id in known or piece.startswith("##"):
      texts.append(piece)
    elif "▁" in piece:
      texts.append(piece.replace("▁", " "))
    else:
      text = tokenizer.decode([id])
      texts.append(piece if "\ufffd" in text or not text else text)
  return texts, [id in known for id in ids]


def _hash(text):
  return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
