"""Combinations of settings of the rows that cannot run; see rules.py."""

import datetime
import re

from jaxsft.data import prompt
from jaxsft.data.nearest import near
from jaxsft.errors import UsageError

WRITE = ("chat", "seq2seq")  # tasks whose answers are texts


TURNS = ("text", "prompt", "completion", "instruction", "input", "output", "system", "tools")
MADE = {
  "answer": ("question", "context"),
  "chat": TURNS,
  "classify": ("label", "text_pair", *TURNS),
  "masked_lm": ("text",),
  "seq2seq": ("source", "target"),
  "tag": (),
}
"""Task -> fields that it reads as texts, which templates may write."""
TAGGED = ("text", "tokens", "tags", "entities")


def rules(c):
  """(broken?, sentence) for every combination that cannot run."""
  for group in (_data, _prompt, _split, _windows, _targets):
    yield from group(c)


def _data(c):
  d = c.data
  yield (
    not 0 <= d.split < 1,
    f"config.data.split: found {d.split}, expected 0 ≤ split < 1",
  )
  yield (
    d.eval_path is not None and d.split != 0,
    f"config.data.split: is {d.split} although data.eval_path names the rows to evaluate "
    "on; set data.split=0",
  )
  yield (
    isinstance(d.max_length, int) and d.max_length < 2,
    f"config.data.max_length: found {d.max_length}, expected at least 2 tokens",
  )
  yield (
    c.task in ("answer", "masked_lm", *WRITE)
    and (d.labels is not None or d.label_type != "single"),
    f"config.data.labels: task={c.task!r} has no labels; remove it or set task='classify'",
  )
  yield (
    d.template_date is not None and not _is_day(d.template_date),
    f"config.data.template_date: found {d.template_date!r}, expected a day such as "
    "'2026-01-31'",
  )
  yield (
    not 0 <= d.max_dropped <= 1,
    f"config.data.max_dropped: found {d.max_dropped}, expected a share from 0 to 1",
  )
  yield (
    not 0 < d.mask_rate < 1,
    f"config.data.mask_rate: found {d.mask_rate}, expected a share above 0 and below 1",
  )
  yield (
    c.task == "tag" and (isinstance(d.labels, dict) or d.label_type != "single"),
    "config.data.labels: task='tag' has names of tags in id order, and no rules or "
    "data.label_type; give the names, or None for those of the rows",
  )


def _prompt(c):
  d = c.data
  read = [d.split_by, *c.evaluate.slices, d.keep or ""]  # fields that other settings name
  read += d.labels.values() if isinstance(d.labels, dict) else ()
  read += [part.keep or "" for part in (d.mix or {}).values()]
  fields = [*MADE[c.task], *re.findall(r"\w+", " ".join(map(str, read)))]
  prompts = {"config.data.prompt": d.prompt}
  prompts |= {f"config.data.mix.{name}.prompt": p.prompt for name, p in (d.mix or {}).items()}
  for key, field, text in [
    (key, *one) for key, p in prompts.items() for one in (p or {}).items()
  ]:
    yield (
      c.task == "tag" and field in TAGGED,
      f"{key}: found {field!r}, which cannot be written with task='tag': tags stand at places "
      "of the words as they are; name their columns in data.columns",
    )
    yield (
      field not in fields,
      f"{key}: nothing reads the field {field!r} with task={c.task!r}"
      f"{near(field, MADE[c.task])}; write one that is read, or leave it out",
    )
    broken = ""
    if not text.endswith(".jinja"):
      try:
        prompt.template(field, text, key)
      except UsageError as error:
        broken = str(error)
    yield broken != "", broken


def _is_day(text):
  try:
    return datetime.date.fromisoformat(text).isoformat() == text
  except ValueError:
    return False


def _split(c):
  d = c.data
  divided = d.split != 0 or d.folds is not None
  yield (
    d.folds is not None and d.folds < 2,
    f"config.data.folds: found {d.folds}, expected at least 2, or None",
  )
  yield (
    d.folds is None and d.fold != 0,
    f"config.data.fold: is {d.fold}, which has no effect without data.folds; set it to 0, or "
    "data.folds to their number",
  )
  yield (
    d.folds is not None and not 0 <= d.fold < d.folds,
    f"config.data.fold: found {d.fold}, expected 0 … {(d.folds or 2) - 1}, one of data.folds="
    f"{d.folds}",
  )
  yield (
    d.folds is not None and d.split != 0,
    f"config.data.split: is {d.split} although data.folds={d.folds} says what is held out; set "
    "data.split=0",
  )
  yield (
    d.folds is not None and d.eval_path is not None,
    "config.data.folds: data.eval_path names the rows to evaluate on; remove one of them",
  )
  for key, value in (("split_by", d.split_by), ("stratify", d.stratify)):
    yield (
      bool(value) and not divided,
      f"config.data.{key}: has no effect where no row is held out by its hash; set data.split "
      f"or data.folds, or leave out data.{key}",
    )
  yield (
    d.stratify and d.split_by is not None,
    "config.data.stratify: groups of data.split_by stay whole, so that no share of each label "
    "can be held out; remove one of them",
  )
  yield (
    d.stratify and d.label_type != "single",
    f"config.data.stratify: is for rows with one label each, data.label_type is "
    f"{d.label_type!r}; set it to false",
  )


def _windows(c):
  d = c.data
  yield d.stride < 0, f"config.data.stride: found {d.stride}, expected 0 or more tokens"
  windows = c.task == "answer" or d.too_long == "windows"
  yield (
    windows and isinstance(d.max_length, int) and d.stride >= d.max_length,
    f"config.data.stride: windows cannot share {d.stride} of config.data.max_length="
    f"{d.max_length} tokens; lower it",
  )
  yield (
    c.task == "answer" and d.too_long == "truncate",
    "config.data.too_long: task='answer' cuts nothing, it reads long contexts in windows; set "
    "'error' or 'drop' for questions that leave no room for a context",
  )
  yield (
    c.task == "masked_lm" and d.too_long in ("drop", "truncate"),
    f"config.data.too_long: {d.too_long!r} has no effect with task='masked_lm', which reads "
    "long texts in windows and leaves nothing out; set 'error'",
  )
  yield (
    c.task in ("chat", "tag") and d.too_long != "windows" and d.stride != type(d)().stride,
    f"config.data.stride: is {d.stride}, which has no effect with data.too_long="
    f"{d.too_long!r}; set that to 'windows'",
  )
  yield (
    c.task not in ("chat", "tag") and d.too_long == "windows",
    f"config.data.too_long: 'windows' is for task='tag' and 'chat', not {c.task!r}; set "
    "'error', 'drop' or 'truncate'",
  )
  yield (
    c.task != "chat" and d.too_long == "turns",
    f"config.data.too_long: 'turns' divides conversations of task='chat', not {c.task!r}; set "
    "'error', 'drop' or 'truncate'",
  )
  yield (
    d.too_long == "turns" and d.train_on != "all",
    f"config.data.too_long: 'turns' leaves nothing to learn in all parts but the last with "
    f"data.train_on={d.train_on!r}; set 'truncate', which keeps that part",
  )


def _targets(c):
  d = c.data
  yield (
    isinstance(d.max_target_length, int) and d.max_target_length < 1,
    f"config.data.max_target_length: found {d.max_target_length}, expected at least 1 token",
  )
  yield (
    d.languages is not None and len(d.languages) != 2,
    f"config.data.languages: found {d.languages}, expected the codes of the source's and the "
    "target's language",
  )
