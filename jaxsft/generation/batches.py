"""Token ids from token ids: batches of similar lengths, buckets, and the host's part of the
loop. The device's is in growth.py, texts are in writing.py."""

import weakref
import zlib
from typing import NamedTuple

import jax
import numpy as np

from jaxsft import sharding, stack, weights
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.generation import growth, sampling
from jaxsft.generation.frames import Frame
from jaxsft.generation.prompts import room
from jaxsft.models import decoder

READ = 512  # tokens of a prompt that are read at once; their scores are READ x room
STREAMED = 4  # new tokens between two looks of the host, when somebody watches
SMALLEST = 16  # tokens in the first bucket


class Continuation(NamedTuple):
  """One answer to a prompt."""

  ids: list
  """New tokens, without the stop id that ended them."""
  score: float
  """Sum of the log-probabilities of ids and stop id, over their number**length_penalty: what
  the model gives to them; of beams after the penalties, as in transformers. Forced tokens
  are certain."""


class _Batch(NamedTuple):
  """Some prompts that grow together, and what their program is made of."""

  network: object
  params: object
  prompts: list
  numbers: dict
  """Arguments of the program."""
  parts: sampling.Parts
  limit: int
  """Most new tokens of a row."""
  rows: int
  """Prompts that the program has room for."""
  frame: Frame


def continuations(
  network,
  params,
  prompts,
  *,
  max_new_tokens,
  stop_ids,
  num_return=1,
  seed=0,
  vocab_limit=None,
  batch_size=16,
  frame=None,
  on_token=None,
  until=None,
  **settings,
):
  """For each prompt (a list of ids) at most num_return `Continuation`s, the best first.

  settings: of `sampling.Rules`. Token i of answer n to a prompt is drawn with the key of seed
  into which the crc32 of the prompt's ids, n and i are folded, one after the other: neither
  other prompts nor batch_size (rows at a time, beams included) change what it is, and the
  same prompt twice has the same answers. seed: a number, or one for each prompt.
  Ids from vocab_limit on are never chosen. frame: a `frames.Frame`; encoder-decoders, whose
  prompts are sources, need its start; None: the architecture's alone.
  on_token(prompt's index, new ids) is called as they come; until(new ids) is the number of
  them after which an answer has ended, or None. Without these two the device is waited for
  once a batch. Programs are compiled for buckets: of rows, of lengths of prompts and of both.
  Raises JaxsftError for prompts and ids that do not suit the network, logits that are not
  finite, and rules that let no token come; UsageError for settings that mean nothing.
  """
  rules = sampling.rules_of(settings)
  limit = sampling.whole("max_new_tokens", max_new_tokens, 1)
  num_return = sampling.whole("num_return", num_return, 1)
  parts = rules.parts(num_return)
  frame = frame or Frame(getattr(network.arch, "decoder_start", None))
  _check(network, prompts, limit, frame, stop_ids)
  _check_rules(rules, parts, limit, num_return, on_token, until, network.arch.vocab)
  seeds = _seeds(seed, prompts)
  if limit == 1 and frame.first is not None:
    only = [] if frame.last else [frame.first]
    return [[Continuation(only, 0.0)] for _ in prompts]
  params = _straight(stack.whole(params))
  numbers = rules.numbers | _limits(network.arch.vocab, stop_ids, vocab_limit, frame, limit)
  each, rows = _rows(len(prompts), batch_size, parts.copies)
  # The longest first: what does not fit in memory is known at once.
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  found = [None] * len(prompts)
  for first in range(0, len(order), each):
    mine = order[first : first + each]
    own = np.zeros((rows, parts.copies, 3), np.uint32)
    own[: len(mine), :, :2] = seeds[mine][:, None]
    own[:, :, 2] = np.arange(parts.copies)
    given = [prompts[i] for i in mine]
    more = {"seeds": own.reshape(-1, 3), "prompts": _padded_lengths(given, rows)}
    batch = _Batch(network, params, given, numbers | more, parts, limit, rows, frame)
    report = on_token and (lambda row, ids, mine=mine: on_token(mine[row], ids))
    for i, answers in zip(mine, _answers(batch, report, until), strict=True):
      found[i] = answers[:num_return]
  return found


def _seeds(seed, prompts):
  """[N,2] uint32: what the draws for each prompt follow from, its seed and its own ids."""
  seeds = [seed] * len(prompts) if np.ndim(seed) == 0 else list(seed)
  if len(seeds) != len(prompts):
    raise UsageError(
      f"seed has {len(seeds)} numbers for {len(prompts)} prompts, expected one each"
    )
  seeds = [sampling.whole("seed", one, 0, 2**32 - 1) for one in seeds]
  crcs = [zlib.crc32(np.asarray(prompt, "<i4").tobytes()) for prompt in prompts]
  return np.array([seeds, crcs], np.uint32).T


def _rows(prompts, batch_size, copies):
  """(prompts at a time, rows that they are read in): the same for all batches."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else sharding.row_shards(mesh)
  whole = lambda rows: -(-rows // shards) * shards
  each = whole(max(batch_size // copies, 1))
  return each, min(each, whole(1 << max(prompts - 1, 0).bit_length()))


def _limits(vocab, stop_ids, vocab_limit, frame, limit):
  """Arguments of a program that say what it chooses; padded, so that counts are no part."""

  def padded(ids):
    return np.array([*ids, *[-1] * (bucket(len(ids)) - len(ids))], np.int32)  # no token is -1

  return {
    "stop_ids": padded(sorted({*stop_ids, *frame.last})),
    "banned": padded(frame.banned),
    "vocab_limit": np.int32(vocab if vocab_limit is None else min(vocab_limit, vocab)),
    "last": padded(frame.last),
    "limit": np.int32(limit),
  }


def _check(network, prompts, limit, frame, stop_ids):
  if network.head.kind != "lm":
    raise JaxsftError(
      f"found a network with a {network.head.kind!r} head, expected a language model; "
      "only those generate text"
    )
  if network.has_source and frame.start is None:
    raise JaxsftError("found no token that targets begin with: give `generate` a frame")
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise JaxsftError(f"prompt {i} is empty, expected at least one token to go on from")
    vocab = getattr(network.arch, "source_vocab", None) or network.arch.vocab
    if min(prompt) < 0 or max(prompt) >= vocab:
      wrong = next(int(t) for t in prompt if not 0 <= t < vocab)
      raise JaxsftError(
        f"prompt {i} contains the token {wrong}, the model's vocabulary ends at "
        f"{vocab - 1}; use the tokenizer that belongs to the model"
      )
    if reason := room(network, len(prompt), limit):
      raise JaxsftError(f"prompt {i} {reason}")
  _check_ids(network.arch.vocab, stop_ids, frame)


def _check_ids(vocab, stop_ids, frame):
  named = {"a stop id": stop_ids, "the start of targets": [frame.start]}
  named |= {"the first token of answers": [frame.first], "their last token": frame.last}
  for what, ids in (named | {"a banned token": frame.banned}).items():
    if wrong := [i for i in ids if i is not None and not 0 <= i < vocab]:
      raise JaxsftError(
        f"{what} is {wrong[0]}, the model's vocabulary ends at {vocab - 1}; use the tokenizer "
        "that belongs to the model, or correct its generation_config.json and config.json"
      )


def _check_rules(rules, parts, limit, num_return, on_token, until, vocab):
  if rules.min_new_tokens > limit:
    raise UsageError(
      f"min_new_tokens is {rules.min_new_tokens}, expected at most max_new_tokens={limit}: "
      "lower it, or give more max_new_tokens"
    )
  if parts.beams and parts.copies > vocab:
    raise UsageError(f"num_beams is {parts.copies}, expected at most the vocabulary of {vocab}")
  if on_token and num_return > 1:
    raise UsageError(
      f"num_return is {num_return} for answers that are shown as they come, expected 1: set "
      "num_return=1 or show them at the end"
    )
  if until and parts.beams:
    raise UsageError(
      f"found stop strings for a search with num_beams={parts.copies}, expected num_beams=1 "
      "(the checkpoint's generation_config.json may ask for more): beams end at stop ids alone"
    )


def bucket(n):
  """The first of 16, 24, 32, 48, 64, 96, 128, … that is not less than n."""
  size = SMALLEST
  while size < n:
    size = size * 3 // 2 if size * 3 // 2 >= n else size * 2
  return size


_kept = []  # [weak references to stacked leaves, the layers unstacked from them]


def _straight(params):
  """The parameters with unstacked layers where that is faster: on one CPU.

  The copy is kept for the next call, until one of the leaves it was made of is gone.
  """
  own = params.get("decoder", params)  # an encoder reads its source but once
  leaves = jax.tree.leaves(own["layers"])
  alone = all(isinstance(x, jax.Array) and len(x.sharding.device_set) == 1 for x in leaves)
  if not alone or isinstance(own["layers"], tuple) or jax.default_backend() != "cpu":
    return params
  kept = list(_kept)
  if not kept or not all(ref() is x for ref, x in zip(kept[0], leaves, strict=True)):
    refs = [weakref.ref(x, lambda _: _kept.clear()) for x in leaves]
    _kept[:] = kept = [refs, decoder.unstack(own)["layers"]]
  own = {**own, "layers": kept[1]}
  return {**params, "decoder": own} if "decoder" in params else own


# --- one batch -------------------------------------------------------------------------


def _answers(batch, report, until):
  """The `Continuation`s of each prompt, best first."""
  begin = _sources if batch.network.has_source else _prompts
  state, done = begin(batch)
  looks = (report or until) and not batch.parts.beams
  ended, heard = {}, [0] * len(batch.prompts)
  while done < batch.limit:
    if looks:
      rows, live = _new(batch, state)
      going = _look(rows, live, ended, heard, report, until)
      if not going.any():
        break
      if (going != live).any():
        state["live"] = jax.device_put(going, state["live"].sharding)
    steps = min(STREAMED if looks else batch.limit, batch.limit - done)
    state = growth.extend(
      batch.network, batch.params, state, steps, batch.numbers, parts=batch.parts
    )
    done += steps
  if batch.parts.beams:
    answers = _found(batch, state)
    for row, best in enumerate(answers if report else ()):
      report(row, best[0].ids)
    return answers
  rows, live = _new(batch, state)
  _look(rows, live, ended, heard, report, until)
  return _scored(batch, state, [ended.get(i, ids) for i, ids in enumerate(rows)], live, ended)


def _look(rows, live, ended, heard, report, until):
  """Which rows go on; reports what is new in them, and keeps those that stop strings end.

  ended: {row: its ids}; heard: how many ids of each row have been reported.
  """
  going = live.copy()
  for row, ids in enumerate(rows):
    if until and row not in ended and (size := until(ids)) is not None:
      ended[row] = ids[:size]
    if row in ended:
      ids, going[row] = ended[row], False
    if report and ids[heard[row] :]:
      report(row, ids[heard[row] :])
      heard[row] = len(ids)
  return going


def _prompts(batch):
  """(state with one new token in each row, 1)."""
  inputs, segments = _padded(batch.prompts, batch.rows, READ)
  room = bucket(max(map(len, batch.prompts)) + batch.limit)
  state, how = None, {"parts": batch.parts, "room": room}
  for at in range(0, inputs.shape[1], READ):
    piece = np.s_[:, at : at + READ]
    rest = (inputs[piece], segments[piece], batch.numbers)
    last = at + READ >= inputs.shape[1]
    copied = last and state is not None and batch.parts.copies > 1
    read = growth.read_into_copies if copied else growth.read
    state = read(batch.network, batch.params, state, *rest, last=last, **how)
  return state, 1


def _sources(batch):
  """Like `_prompts`; the frame's first token is a new one too."""
  source, segments = _padded(batch.prompts, batch.rows)
  given = [i for i in (batch.frame.start, batch.frame.first) if i is not None]
  how = {"parts": batch.parts, "room": bucket(1 + batch.limit)}
  rest = (source, segments, np.array(given, np.int32), batch.numbers)
  state = growth.open_target(batch.network, batch.params, *rest, **how)
  return state, len(given)


def _padded(prompts, rows, step=None):
  """(ids, segments), of a bucket's size; beyond `step` tokens of a multiple of it."""
  width = bucket(max(map(len, prompts)))
  if step is not None and width > step:
    width = -(-max(map(len, prompts)) // step) * step
  inputs, segments = np.zeros((2, rows, width), np.int32)
  for row, prompt in enumerate(prompts):
    inputs[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
  return inputs, segments


def _padded_lengths(prompts, rows):
  lengths = np.zeros(rows, np.int32)
  lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
  return lengths


def _on_host(state, *names):
  """The named entries of the state; waits for the device. Raises JaxsftError where no token
  could be chosen."""
  names = (*names, "broken", "stuck")
  *found, broken, stuck = (weights.params.on_host(state[name]) for name in names)
  if broken.any():
    raise JaxsftError(
      f"the logits of row {int(np.argmax(broken))} of a batch are not finite; the weights "
      "are damaged, or overflow in this dtype: check the checkpoint or use float32"
    )
  if stuck.any():
    raise JaxsftError(
      f"no token may come next in row {int(np.argmax(stuck))} of a batch: what the rules "
      "(no_repeat_ngram_size, min_new_tokens, banned tokens) leave out is all; relax one"
    )
  return found


def _new(batch, state):
  """(new ids of each row so far, whether each row goes on); waits for the device."""
  tokens, begin, live = _on_host(state, "tokens", "prompts", "live")
  end = weights.params.on_host(state["cache"]["lengths"]) + live
  rows = len(batch.prompts) * batch.parts.copies
  return [tokens[i, begin[i] : end[i]].tolist() for i in range(rows)], live


def _scored(batch, state, rows, live, ended):
  """As `_answers`, of the ids of rows that are answers of their own."""
  log_p, begin = _on_host(state, "log_p", "prompts")
  answers, copies = [], batch.parts.copies
  for row, ids in enumerate(rows):
    count = len(ids) + (row not in ended and not live[row])  # with the stop id
    total = log_p[row, begin[row] : begin[row] + count].sum(dtype=np.float64)
    answers.append(Continuation(ids, float(total / count ** batch.numbers["length_penalty"])))
  each = (answers[i : i + copies] for i in range(0, len(answers), copies))
  return [sorted(some, key=lambda one: -one.score) for some in each]


def _found(batch, state):
  """As `_answers`, of beams."""
  (begin,), copies = _on_host(state, "prompts"), batch.parts.copies
  found = jax.tree.map(weights.params.on_host, state["found"])
  answers = []
  for row in range(len(batch.prompts)):
    first = begin[row * copies]
    each = zip(found["scores"][row], found["tokens"][row], found["lengths"][row], strict=True)
    answers.append(
      [
        Continuation(tokens[first : first + size].tolist(), float(score))
        for score, tokens, size in each
        if score > -np.inf
      ]
    )
  return answers
