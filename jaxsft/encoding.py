"""Rows to examples: a task's `encode` over all rows, once, by as many processes as help.

What it makes lies in the token store, which is found again by what shaped it. Many rows are
encoded in chunks, and finished chunks are kept until the store is whole: a stopped run goes on.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import pickle  # between processes of this run; nothing of it is ever read from a file
import unicodedata
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import numpy as np

from jaxsft import languages, screen, tasks
from jaxsft import tokenizer as tokenizer_lib
from jaxsft.data import fetch, forms, messages, parts, store, template_date
from jaxsft.errors import JaxsftError
from jaxsft.metrics import tagging

EMPTY = "dropped: nothing to learn"
SAMPLES = 3
NOTED = 20
"""Rows that are named for each note."""
CHUNK = 2000
"""Rows that a process encodes at a time."""
MANY = 20_000
"""Rows from which on other processes, which take seconds to start, are worth it."""


class Examples(NamedTuple):
  """The encoded rows of one part."""

  rows: Sequence
  store: store.Store

  @property
  def counts(self):
    """ "notes" (why rows were dropped or cut, with counts), "noted" (the first rows of
    each), "stop_ids", "samples"."""
    return self.store.counts

  @property
  def taken(self):
    """The rows that have an example."""
    return [self.rows[i] for i in np.unique(self.store.values["row"]).tolist()]


def encode(rows, task, context):
  """`Examples` of labelled rows, spelt as the context's labels are where the task says how;
  from the token store where everything that shapes them is the same. Raises JaxsftError where
  that cannot be: for a chat template that asks for the date of today.
  """
  rows = task.settled(rows, context) if hasattr(task, "settled") else rows
  if task.HEAD in ("lm", "sequence") and not task.SOURCE:
    template_date.refuse_undated(rows, context, reads_text=task.HEAD == "sequence")
  key = {
    "rows": rows_hash(rows),
    "tokenizer": tokenizer_hash(context.tokenizer),
    "encoder": source_hash(task),
    "versions": versions(),
  }
  for field in dataclasses.fields(context):
    if field.name not in tasks.NOT_ENCODED:
      key[field.name] = getattr(context, field.name)
  directory = fetch.cache_directory() / "stores"
  kept = parts.Kept(directory, store.canonical(key))
  build = lambda found, counts: store.build(found, key, directory, counts)
  made = examples(rows, task, context, build, kept)
  kept.remove()
  return made


def examples(rows, task, context, build, kept=None):
  """`Examples` of rows, of the store that build((id, example)…, counts) makes.

  The examples of one row follow one another; their value "row" says which it is. kept:
  `parts.Kept`, where finished chunks of many rows are; None: they are encoded here.
  """
  counts = {"notes": {}, "stop_ids": [], "samples": [], "noted": {}}

  def found():
    notes, stop_ids = collections.Counter(), set()
    each = zip(rows, _encoded(rows, task, context, kept), strict=True)
    for number, (row, encoded) in enumerate(each):
      if encoded.note:
        notes[encoded.note] += 1
        ids = counts["noted"].setdefault(encoded.note, [])
        ids += [row.id] * (len(ids) < NOTED)
      if not encoded.examples:
        continue
      stop_ids |= encoded.stop_ids
      if len(counts["samples"]) < SAMPLES:
        sample = {"id": row.id, "text": encoded.text, "spans": encoded.spans}
        if "label" in task.GOLD and "label" in row.fields:
          sample["label"] = row.fields["label"]
        if encoded.said:
          sample["label"] = encoded.said
        counts["samples"].append(sample)
      for k, example in enumerate(encoded.examples):
        yield f"{row.id}#{k}" if k else row.id, example | {"row": np.int32(number)}
    counts["notes"], counts["stop_ids"] = dict(notes), sorted(stop_ids)

  return Examples(rows, build(found(), counts))


def _encoded(rows, task, context, kept):
  """tasks.Encoded of each row, in their order; the texts of later samples are left out."""
  with screen.counting("rows tokenised", len(rows)) as show:
    if kept is None or len(rows) < MANY:
      for number, row in enumerate(rows):
        yield encode_row(row, task, context)
        if number % 100 == 0:
          show(number)
      return
    payload = _payload(task, context)
    starts = range(0, len(rows), CHUNK)
    chunk = lambda k: rows[starts[k] : starts[k] + CHUNK]
    missing = {k for k in range(len(starts)) if not kept.has(k)}
    with parts.processes() as run:
      made = run(_encode_chunk, ((payload, chunk(k)) for k in sorted(missing)))
      for k in range(len(starts)):
        if k in missing:
          data = next(made)
          kept.write(k, data)
        else:  # it may be damaged, or another run that needed it too has taken it away
          data = kept.read(k) or _encode_chunk(payload, chunk(k))
        yield from (_unpacked(*one) for one in parts.unpack(data))
        show(min(len(rows), (k + 1) * CHUNK))


def encode_row(row, task, context):
  """tasks.Encoded of a row; context.on_empty says what becomes of one with nothing to learn.

  Where that is "error", the task or the report before the run refuses it.
  """
  if context.on_empty == "error":
    return task.encode(row, context)
  if _silent(row, task, context):
    return tasks.Encoded((), EMPTY, "", [], frozenset())
  encoded = task.encode(row, context)
  examples = tuple(e for e in encoded.examples if np.any(e.get("weights", 1)))
  left_out, note = len(encoded.examples) - len(examples), encoded.note
  if left_out:
    note = tasks.joined(note, tasks.without_parts(left_out)) if examples else EMPTY
  return encoded._replace(examples=examples, note=note)


def _silent(row, task, context):
  """Whether a row is a conversation in which no message trains."""
  if task.HEAD != "lm" or task.SOURCE or not forms.has_turns(row.fields):
    return False
  try:
    found = messages.checked(row.fields, context.train_on_tools)
    return not any(message["train"] for message in found)
  except JaxsftError:
    return False  # `encode` says it with the row's place


def _payload(task, context):
  """What a process needs besides its rows."""
  name = next(name for name, module in tasks.TASKS.items() if module is task)
  return pickle.dumps((name, context))


@functools.lru_cache(maxsize=2)
def _received(payload):
  """(task, context) of a `_payload`; opened once by each process."""
  name, context = pickle.loads(payload)
  return tasks.TASKS[name], context


def _encode_chunk(payload, rows):
  """parts.pack of some rows; runs in another process."""
  task, context = _received(payload)
  found, samples = [], 0
  for row in rows:
    one = encode_row(row, task, context)
    info = {"note": one.note, "stop_ids": sorted(one.stop_ids)}
    if one.examples and samples < SAMPLES:
      samples += 1
      info |= {"text": one.text, "spans": [list(span) for span in one.spans], "said": one.said}
    found.append((one.examples, info))
  return parts.pack(found)


def _unpacked(examples, info):
  spans = [tuple(span) for span in info.get("spans", ())]
  stop_ids, said = frozenset(info["stop_ids"]), info.get("said", "")
  return tasks.Encoded(examples, info["note"], info.get("text", ""), spans, stop_ids, said)


def rows_hash(rows):
  """sha256 over ids and fields, whatever file, format or rule they came by."""
  digest = hashlib.sha256()
  for row in rows:
    digest.update(json.dumps([row.id, row.fields], sort_keys=True, default=_content).encode())
  return digest.hexdigest()


def _content(value):
  """All of a value that JSON lacks; the repr of an array would leave out its middle."""
  if not hasattr(value, "__array__"):
    return repr(value)
  array = np.asarray(value)
  return [str(array.dtype), array.shape, array.tolist()]


def tokenizer_hash(tokenizer):
  """sha256 over vocabulary, merges, pre-tokenizer, special tokens, template and settings.

  Not over what the call before has left of truncation and padding in the backend: they are
  taken out of it, as load_tokenizer does.
  """
  backend = tokenizer.backend_tokenizer
  backend.no_truncation()
  backend.no_padding()
  said = [
    backend.to_str(),
    repr(sorted(tokenizer.special_tokens_map.items())),
    repr(tokenizer.chat_template),
    f"{tokenizer.truncation_side} {tokenizer.padding_side}",
    repr(getattr(tokenizer, "split_special_tokens", False)),
  ]
  return hashlib.sha256("\n".join(said).encode()).hexdigest()


def source_hash(task):
  """sha256 over the code that encodes: the task, jaxsft/data and what is in it, tokenizer.py,
  this file, what tasks share, and what tags are spelt by.
  """
  modules = (task, tasks, tokenizer_lib, languages, tagging)
  files = [pathlib.Path(file) for file in (__file__, *(m.__file__ for m in modules))]
  files += sorted(pathlib.Path(store.__file__).parent.rglob("*.py"))
  digest = hashlib.sha256()
  for file in files:
    digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
  return digest.hexdigest()


def versions():
  """{library: version} of those that make tokens of texts, and of Python's Unicode."""
  found = {name: metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")}
  return found | {"unicode": unicodedata.unidata_version}
