"""All that training needs to know of the data: the rows as examples, and their order."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from jaxsft import encoding, labels, languages, mixing, sharding, sources, tasks
from jaxsft.data import order, pack, template_date
from jaxsft.errors import UsageError
from jaxsft.metrics import generated


@dataclasses.dataclass(frozen=True)
class Prepared:
  """All that training needs to know of the data."""

  task: Any
  """Module in jaxsft/tasks."""
  context: tasks.Context
  options: Any
  """Of the task's `loss` and `predict`."""
  rows: sources.Rows
  train: encoding.Examples
  held_out: encoding.Examples | None
  plan: order.Plan
  eval_plan: order.Plan | None
  sets: dict[str, tuple[encoding.Examples, order.Plan]]
  """Those of evaluate.sets, with plans that meet each example once."""
  scale: np.ndarray | None = None
  """[N] float32, what each training example counts in the loss; None: all the same."""

  @property
  def evaluated(self):
    """{what a sentence calls them: `Examples`} of all rows that evaluations measure."""
    parts = {} if self.held_out is None else {"held-out rows": self.held_out}
    return parts | {sources.called(name): examples for name, (examples, _) in self.sets.items()}


def prepare(config, base, mesh):
  """`Prepared` of a config and an opened checkpoint for a mesh."""
  task, data = tasks.TASKS[config.task], config.data
  base.check_task(config.task)
  rows = sources.read_data(data, task, cleaning=config.clean)
  rows = sources.augmented(rows, task, config.augment, config.seed)
  names, rows = labels.settle(config, base, rows)
  context = make_context(config, base, names)
  train = encoding.encode(rows.train, task, context)
  held_out = encoding.encode(rows.held_out, task, context) if rows.held_out else None
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
    draw=mixing.draw(config, train, names),
  )
  eval_plan = None
  if held_out is not None:
    limit = row_limit(config, context, train, held_out)
    eval_plan = evaluation_plan(config, held_out.store, limit, mesh)
  sets, trained = {}, labels.trained(config, base)
  for name, more in sources.further_sets(config).items():
    examples = encoding.encode(labels.named(more.train, trained, config), task, context)
    limit = row_limit(config, context, examples)
    sets[name] = (examples, evaluation_plan(config, examples.store, limit, mesh))
    left_out = {f"evaluate.sets[{name!r}]: {why}": n for why, n in more.left_out.items()}
    sources_read = (*rows.sources, *more.sources)
    rows = rows._replace(sources=sources_read, left_out=rows.left_out | left_out)
  weights = labels.class_weights(config.loss.class_weights, names, train.store)
  pairs = all(row.fields.get("text_pair") is not None for row in rows.train)
  pairs = pairs and task.HEAD == "sequence"
  context = dataclasses.replace(context, class_weights=weights, pairs=pairs)
  options = tasks.options_of(task, config.loss, context)
  scale = mixing.loss_weights(config, train)
  return Prepared(task, context, options, rows, train, held_out, plan, eval_plan, sets, scale)


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
  if data.template_date is not None:
    own = base.tokenizer.chat_template if template is None else template
    template = template_date.dated(own, data.template_date)
  return tasks.Context(
    tokenizer=base.tokenizer,
    max_length=base.limit if data.max_length == "auto" else data.max_length,
    too_long=data.too_long,
    on_empty=data.on_empty,
    labels=names,
    label_type=data.label_type,
    threshold=labels.thresholds(config.evaluate.threshold, names),
    chat_template=template,
    train_on=data.train_on,
    train_on_tools=data.train_on_tools,
    unwritten=data.unwritten,
    control_tokens=data.control_tokens,
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
    text_steps=sources.text_steps(config.clean),
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
