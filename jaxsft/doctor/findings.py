"""What is to be known of prepared data before a run: `findings`, and `refuse` for the worst."""

import re
from collections import Counter

import numpy as np

from jaxsft import tasks
from jaxsft.data import messages, spans
from jaxsft.data.nearest import some
from jaxsft.doctor import of_labels, of_plan, of_texts, parts
from jaxsft.doctor.codes import SHOWN, Finding, found
from jaxsft.errors import JaxsftError

MAX_EMPTY = 0.05
"""Share of the rows read that may have an empty field without a warning."""
MAX_UNKNOWN = 0.01
"""Share of the tokens that the tokenizer may not know."""
LEAST_SUPERVISED = 0.01
"""Share of the tokens that are learnt from, below which it is said."""
FAR_ABOVE = 4
"""Times the longest example that a length limit is far above it."""
ASKED = ("with control tokens escaped", "divided by turns", "read in windows")
ASKED += (tasks.without_parts("N"),)
"""What notes say of rows with which happens what a setting asks for; N stands for a number."""
TURNS = ("messages", "conversations", "prompt")
"""Fields that begin with what the system says, if it says anything."""


def findings(prepared, config, described=None) -> list[Finding]:
  """All that is found of a `prepare.Prepared` and its config, the gravest first.

  described: parts.all_described, where it is at hand.
  """
  examples = parts.examples_of(prepared)
  if described is None:
    described = parts.all_described(prepared)
  result = list(of_plan.check(prepared.plan, config))
  for name, part in examples.items():
    noted = part.counts["noted"]
    result += dropped(name, described[name], noted, config.data.max_dropped)
    result += unsupervised(name, described[name])
    result += cut(name, described[name], noted)
  if "held out" in described:
    result += overlap(described["train"], described["held out"])
  if config.data.id is not None:
    result += shared_ids(described["train"], prepared.sets)
  result += [*left_out(prepared.rows), *repeated_ids(described["train"])]
  result += [found("cleaning", text) for text in prepared.rows.warnings]
  result += of_texts.check(prepared, examples, described)
  result += of_labels.check(prepared, config, described)
  result += of_tokens(prepared, described["train"], config)
  return ranked(result)


def ranked(found):
  """Findings by grade: what refuses, what warns, what is noted."""
  order = ("refuses", "warns", "notes")
  return sorted(found, key=lambda one: order.index(one.grade))


def refuse(found):
  """Raises JaxsftError with the first of the findings that must not run."""
  for one in found:
    if one.grade == "refuses":
      raise JaxsftError(one.text)


def dropped(name, examples, noted, most):
  """Rows that the encoder left out; noted: {note: ids of the first rows}. most: the share of
  all that may be.
  """
  count, rows_of = sum(examples.dropped.values()), parts.called(name)
  total = count + (examples.rows or len(examples.ids))
  reasons = ", ".join(f"{n} {why}" for why, n in examples.dropped.items()) or "none"
  rows = [id for why in examples.dropped for id in noted.get(why, ())]
  if count > most * total:
    yield found(
      "too-many-dropped",
      f"{count} of {total} {rows_of} ({count / total:.1%}) would be dropped: {reasons}; "
      f"at most {most:.1%} may be (data.max_dropped). Raise data.max_length, set "
      'data.too_long="truncate", leave such rows out with data.keep, or raise data.max_dropped',
      rows,
    )
  elif count:
    yield found(
      "some-dropped",
      f"{count} of {total} {rows_of} are left out: {reasons}; raise "
      "data.max_length, or shorten these rows",
      rows,
    )


def unsupervised(name, examples):
  """Examples from which nothing is learnt."""
  empty = np.flatnonzero(np.asarray(examples.supervised) < 1)
  if len(empty):
    ids = [examples.ids[i] for i in empty[:20]]
    yield found(
      "nothing-supervised",
      f"{len(empty)} of {len(examples.ids)} examples of {parts.called(name)} have nothing "
      f"supervised: {some(ids, len(empty))}; expected at least one supervised token or label "
      "in each. See data.max_length, data.train_on, data.columns",
      ids,
    )


def cut(name, examples, noted):
  """Rows that lose a part to the length limit, and those that are odd otherwise."""
  total = examples.rows or len(examples.ids)
  for kind, notes in (("truncated", examples.truncated), ("odd-rows", examples.noted)):
    for note, n in notes.items():
      code = kind
      if {re.sub(r"\d+", "N", what) for what in note.split(", ")} <= {*ASKED}:
        continue
      ids = noted.get(note, ())
      fix = "look at these rows, or leave them out with data.keep"
      if code == "odd-rows" and spans.UNWRITTEN.partition("{}")[2] in note:
        code, fix = "unwritten", "set another data.chat_template, or look at these rows"
      elif code == "truncated" or "window" in note:
        fix = "raise data.max_length, or see data.too_long and data.stride"
      if n:
        yield found(
          code,
          f"{n:,} of {total:,} {parts.called(name)} are {note}: {some(ids, n)}; {fix}",
          ids,
        )


def overlap(train, held_out):
  """Ids that are both trained on and held out."""
  trained = set(train.ids) if held_out.parts else _own_ids(train)
  both = sorted(trained & set(held_out.ids))
  if both:
    yield found(
      "overlapping-ids",
      f"{len(both)} ids are both trained on and held out: {some(both)}; choose data.id so that "
      "ids are unique, or let data.eval_path name other rows",
      both,
    )


def shared_ids(train, sets):
  """Ids that are trained on and stand in one of evaluate.sets; for ids that are the rows' own.

  Not refused, as with held-out rows: rows of two files may be numbered alike.
  """
  trained = _own_ids(train)
  for name, (examples, _) in sets.items():
    both = sorted(trained & set(examples.store.ids))
    if both:
      yield found(
        "ids-in-a-set",
        f"{len(both):,} ids of evaluate.sets[{name!r}] are trained on: {some(both)}; if they "
        "are the same rows, their numbers will be too good: remove one of the two",
        both,
      )


def _own_ids(train):
  """Ids of examples as other files have them: without the name of a data set in front."""
  return {id.partition("/")[2] for id in train.ids} if train.parts else set(train.ids)


def repeated_ids(train):
  """Training examples that share their id."""
  repeated = len(train.ids) - len(set(train.ids))
  if repeated:
    twice = [id for id, n in Counter(train.ids).items() if n > 1]
    yield found(
      "repeated-ids",
      f"{repeated:,} training examples share their id with another: {some(twice)}; choose "
      "data.id so that ids are unique",
      twice,
    )


def left_out(rows):
  """Rows with empty fields; rows: sources.Rows."""
  read = {one.key: one.rows for one in rows.sources}
  for why, n in rows.left_out.items():
    name, _, why = why.rpartition(": ")
    total = read.get(f"data.mix.{name}.path", read.get(name, rows.read))
    of = f" of {name}" if name else ""
    if why.startswith("empty ") and n > MAX_EMPTY * total:
      yield found(
        "many-left-out",
        f"{n:,} of {total:,} rows read{of} ({n / total:.1%}) are left out for an {why}; is "
        "the field mapped to the right column (data.columns)?",
      )


def of_tokens(prepared, train, config):
  """What the tokens of the training rows say."""
  task, tokenizer = prepared.task, prepared.context.tokenizer
  store = prepared.train.store
  tokens, supervised = int(np.sum(train.lengths)), int(np.sum(train.supervised))
  learns_text = task.HEAD == "lm"
  if learns_text and supervised < LEAST_SUPERVISED * tokens:
    yield found(
      "little-supervised",
      f"{supervised:,} of {tokens:,} training tokens ({supervised / tokens:.2%}) are learnt "
      "from; are the answers in the right column (data.columns, data.train_on)?",
    )
  yield from _unknown(store, tokenizer)
  longest = int(np.max(train.lengths if train.lengths.ndim == 1 else train.lengths[:, 0]))
  limit = config.data.max_length
  if limit != "auto" and limit >= FAR_ABOVE * longest:
    yield found(
      "max-length-far-above",
      f"data.max_length is {limit}, the longest training example has {longest} tokens; with "
      "batch_unit='rows' rows are as long as the limit: lower it, or set 'auto'",
    )
  if learns_text and tokenizer.pad_token_id == tokenizer.eos_token_id is not None:
    yield found(
      "pad-is-eos",
      f"the tokenizer pads with its end-of-text token {tokenizer.eos_token!r}; this is fine: "
      "padding is known by length, and the end of every answer is learnt",
    )
  if learns_text and not task.SOURCE:
    yield from _systems(prepared.train.rows)


def _unknown(store, tokenizer):
  unknown = tokenizer.unk_token_id
  columns = [c[n] for _, c in store.streams.values() for n in ("source", "inputs") if n in c]
  tokens = sum(len(column) for column in columns)
  count = 0
  if unknown is not None and unknown != tokenizer.eos_token_id:
    count = sum(int(np.sum(np.asarray(column) == unknown)) for column in columns)
  if count > MAX_UNKNOWN * tokens:
    offsets, own = next(iter(store.streams.values()))
    column = np.asarray(own["source" if "source" in own else "inputs"])
    at = np.flatnonzero(column == unknown)
    where = np.unique(np.searchsorted(offsets, at, side="right") - 1)
    ids = [store.ids[i] for i in where[:20]]
    yield found(
      "unknown-tokens",
      f"{count:,} of {tokens:,} training tokens ({count / tokens:.1%}) are "
      f"{tokenizer.unk_token!r}, which stands for what the tokenizer does not know; is the "
      "model of this language and case (model.path), and the text decoded as it was written "
      "(data.encoding)?",
      ids,
    )


def _systems(rows):
  counts, first = Counter(), {True: [], False: []}
  for row in rows:
    turns = next((row.fields[name] for name in TURNS if row.fields.get(name)), None)
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
      role = turns[0].get("role", turns[0].get("from"))
      there = role in messages.LEADS or bool(row.fields.get("system"))
      counts[there] += 1
      first[there] += [row.id] * (counts[there] <= SHOWN)
  if counts[True] and counts[False]:
    few = min(True, False, key=counts.get)
    yield found(
      "mixed-system",
      f"{counts[True]:,} training conversations have a system message, {counts[False]:,} do "
      f"not: {some(first[few], counts[few])} are the fewer; give all of them one, or none, "
      "unless both are meant",
      first[few],
    )
