"""From the user's rows to examples on disk and their order."""

import collections
import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxsft import labels, languages, sharding, sources, tasks
from jaxsft.data import fetch, order, pack, store
from jaxsft.errors import UsageError
from jaxsft.metrics import generated, tagging

SAMPLES = 3


class Examples(NamedTuple):
  """The encoded rows of one part."""

  rows: list
  store: store.Store

  @property
  def counts(self):
    """ "notes" (why rows were dropped or cut, with counts), "stop_ids", "samples"."""
    return self.store.counts

  @property
  def taken(self):
    """The rows that have an example."""
    return [self.rows[i] for i in np.unique(self.store.values["row"]).tolist()]


@dataclasses.dataclass(frozen=True)
class Prepared:
  """All that training needs to know of the data."""

  task: Any
  """Module in jaxsft/tasks."""
  context: tasks.Context
  options: Any
  """Of the task's `loss` and `predict`."""
  rows: sources.Rows
  train: Examples
  held_out: Examples | None
  plan: order.Plan
  eval_plan: order.Plan | None
  sets: dict[str, tuple[Examples, order.Plan]]
  """Those of evaluate.sets, with plans that meet each example once."""

  @property
  def evaluated(self):
    """{what a sentence calls them: `Examples`} of all rows that evaluations measure."""
    parts = {} if self.held_out is None else {"held-out rows": self.held_out}
    return parts | {sources.called(name): examples for name, (examples, _) in self.sets.items()}


def prepare(config, base, mesh):
  """`Prepared` of a config and an opened checkpoint for a mesh."""
  task, data = tasks.TASKS[config.task], config.data
  base.check_task(config.task)
  rows = sources.read_data(data, task)
  names, rows = labels.settle(config, base, rows)
  context = make_context(config, base, names)
  train = encode(rows.train, task, context)
  held_out = encode(rows.held_out, task, context) if rows.held_out else None
  plan = order.plan_training(
    train.store.lengths,
    seed=config.seed,
    batch_size=config.batch_size,
    batch_unit=config.batch_unit,
    packing=data.packing,
    max_length=row_limit(config, context, train, held_out),
    accumulate=config.accumulate,
    row_multiple=sharding.row_shards(mesh),
    epochs=config.epochs,
    steps=config.steps,
  )
  eval_plan = None
  if held_out is not None:
    limit = row_limit(config, context, train, held_out)
    eval_plan = evaluation_plan(config, held_out.store, limit, mesh)
  sets, trained = {}, labels.trained(config, base)
  for name, more in sources.further_sets(config).items():
    examples = encode(labels.named(more.train, trained, config), task, context)
    limit = row_limit(config, context, examples)
    sets[name] = (examples, evaluation_plan(config, examples.store, limit, mesh))
  weights = labels.class_weights(config.loss.class_weights, names, train.store)
  pairs = all(row.fields.get("text_pair") is not None for row in rows.train)
  pairs = pairs and task.HEAD == "sequence"
  context = dataclasses.replace(context, class_weights=weights, pairs=pairs)
  options = tasks.options_of(task, config.loss, context)
  return Prepared(task, context, options, rows, train, held_out, plan, eval_plan, sets)


def make_context(config, base, names):
  """tasks.Context of a config; raises UsageError for a max_length beyond the model's."""
  data, targets = config.data, config.data.max_target_length
  for key, length in (("max_length", data.max_length), ("max_target_length", targets)):
    if length != "auto" and length > base.limit:
      raise UsageError(f"config.data.{key}: found {length}, the model's limit is {base.limit}")
  if data.languages is not None:
    languages.set_source(base.tokenizer, data.languages[0])
    languages.code(base.tokenizer, data.languages[1])
  template = data.chat_template
  if template is not None and template.endswith(".jinja"):
    if not pathlib.Path(template).is_file():
      raise UsageError(f"config.data.chat_template: {template} is no file")
    template = pathlib.Path(template).read_text(encoding="utf-8")
  return tasks.Context(
    tokenizer=base.tokenizer,
    max_length=base.limit if data.max_length == "auto" else data.max_length,
    too_long=data.too_long,
    labels=names,
    label_type=data.label_type,
    threshold=labels.thresholds(config.evaluate.threshold, names),
    chat_template=template,
    train_on=data.train_on,
    mask_rate=data.mask_rate,
    whole_words=data.whole_words,
    stride=data.stride,
    max_answer_length=config.evaluate.max_answer_length,
    n_best=config.evaluate.n_best,
    null_threshold=config.evaluate.null_threshold,
    instruction=base.instruction if data.instruction is None else data.instruction,
    languages=data.languages,
    max_target_length=base.limit if targets == "auto" else targets,
    decoder_start=base.decoder_start,
    text_metrics=text_metrics(config),
    bleu_tokenizer=config.evaluate.bleu_tokenizer,
    rouge_stemmer=config.evaluate.rouge_stemmer,
  )


def text_metrics(config):
  """Names of the metrics of generated answers; () for tasks that generate none."""
  wanted, own = config.evaluate, getattr(tasks.TASKS[config.task], "TEXT_METRICS", ())
  named = own if wanted.text_metrics is None else wanted.text_metrics
  more = own and wanted.metric in generated.DIRECTIONS and wanted.text_metrics is None
  return (*named, wanted.metric) if more and wanted.metric not in named else tuple(named)


def row_limit(config, context, *parts):
  """Longest row of a batch: max_length, or the longest example where that is "auto".

  A pair (S, T) where examples have a source and a target.
  """
  longest = pack.longest(np.concatenate([p.store.lengths for p in parts if p is not None]))
  if not isinstance(longest, tuple):
    return longest if config.data.max_length == "auto" else context.max_length
  source = longest[0] if config.data.max_length == "auto" else context.max_length
  alone = config.data.max_target_length == "auto"
  return source, longest[1] if alone else context.max_target_length


def evaluation_plan(config, examples, limit, mesh):
  """order.Plan that meets every example of a store once."""
  return order.plan_evaluation(
    examples.lengths,
    batch_size=config.evaluate.batch_size or config.batch_size,
    batch_unit=config.batch_unit,
    packing=config.data.packing,
    max_length=limit,
    row_multiple=sharding.row_shards(mesh),
  )


def encode(rows, task, context):
  """`Examples` of labelled rows, spelt as the context's labels are where the task says how;
  from the token store where everything that shapes them is the same.
  """
  rows = task.settled(rows, context) if hasattr(task, "settled") else rows
  key = {
    "rows": rows_hash(rows),
    "tokenizer": tokenizer_hash(context.tokenizer),
    "encoder": source_hash(task),
  }
  for field in dataclasses.fields(context):
    if field.name not in tasks.NOT_ENCODED:
      key[field.name] = getattr(context, field.name)
  directory = fetch.cache_directory() / "stores"
  build = lambda found, counts: store.build(found, key, directory, counts)
  return examples(rows, task, context, build)


def examples(rows, task, context, build):
  """`Examples` of rows, of the store that build((id, example)…, counts) makes.

  The examples of one row follow one another; their value "row" says which it is.
  """
  counts = {"notes": {}, "stop_ids": [], "samples": [], "dropped": []}

  def found():
    notes, stop_ids = collections.Counter(), set()
    for number, row in enumerate(rows):
      encoded = task.encode(row, context)
      if encoded.note:
        notes[encoded.note] += 1
      if not encoded.examples:
        counts["dropped"] = (counts["dropped"] + [row.id])[:SAMPLES]
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


def rows_hash(rows):
  """sha256 over ids and fields, whatever file, format or rule they came by."""
  digest = hashlib.sha256()
  for row in rows:
    digest.update(json.dumps([row.id, row.fields], sort_keys=True, default=repr).encode())
  return digest.hexdigest()


def tokenizer_hash(tokenizer):
  """sha256 over vocabulary, merges, pre-tokenizer, special tokens and template."""
  parts = [
    tokenizer.backend_tokenizer.to_str(),
    repr(sorted(tokenizer.special_tokens_map.items())),
    repr(tokenizer.chat_template),
  ]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def source_hash(task):
  """sha256 over the code that encodes: the task, jaxsft/data, and what tags are spelt by."""
  files = [
    *(pathlib.Path(module.__file__) for module in (task, languages, tagging)),
    *sorted(pathlib.Path(store.__file__).parent.rglob("*.py")),
  ]
  digest = hashlib.sha256()
  for file in files:
    digest.update(file.read_bytes())
  return digest.hexdigest()
