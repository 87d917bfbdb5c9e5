"""From the config's data keys to the user's rows: read, cleaned, and split."""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jaxsft import tasks
from jaxsft.config import mix_rules
from jaxsft.config.cleaning import Clean
from jaxsft.data import audit, augment, clean, fetch, forms, prompt, read, spool
from jaxsft.data import split as splits
from jaxsft.data.cleaning import benchmarks, fields, kept, overlap, record, text
from jaxsft.data.nearest import near
from jaxsft.errors import JaxsftError, UsageError

PRIVATE = ("secrets", "personal")
SHARED = ("format", "columns", "keep", "limit", "prompt")
"""Keys of a data set of a mixture that are those of `data` where it has none."""
OWN = ("data.path", "data.mix.")
"""How the keys of paths of training rows begin."""


class Rows(NamedTuple):
  """The user's rows, cleaned and split."""

  train: Sequence
  held_out: Sequence
  read: int
  left_out: dict[str, int]
  split: str = ""
  """What was held out by what; "": nothing was, or rows of their own are."""
  changes: tuple = ()
  """What was done to texts and rows: of data.cleaning.record.Change."""
  warnings: tuple = ()
  sources: tuple[audit.Source, ...] = ()
  copies: int = 0
  """How many of the training rows augmentation has made."""

  def counted(self):
    """{"left_out": {why: rows}, "changed": {by what: rows}}, where there are any."""
    prefix = record.CHANGED
    changed = {one.what: one.rows for one in self.changes if one.what.startswith(prefix)}
    changed = {what.removeprefix(prefix): rows for what, rows in changed.items()}
    found = {"left_out": self.left_out, "changed": changed}
    return {name: counts for name, counts in found.items() if counts}


def text_steps(cleaning):
  """What a config's `clean` group does to every text, in training and ever after."""
  return text.program(cleaning.text, masks=list(_private(cleaning, "mask")))


def of_texts(cleaning):
  """The settings that change texts alone: rows that are only measured are never left out."""
  return Clean(text=cleaning.text, **_private(cleaning, "mask"))


def _private(cleaning, *ways):
  """{"secrets", "personal": what becomes of it} of a `clean` group, where that is of `ways`."""
  found = {group: getattr(cleaning, group) for group in PRIVATE}
  return {group: way for group, way in found.items() if way in ways}


def augmented(rows, task, settings, seed):
  """`Rows` with the copies of training rows that a config's `augment` group asks for."""
  if not settings.copies:
    return rows
  noted, make = record.Record(), augment.copier(settings, seed)
  taken = {row.id for row in itertools.chain(rows.train, rows.held_out)}
  translated = _translated(rows.train, task, settings.back_translation, noted)
  made = augment.copies(rows.train, task, make, taken, noted, translated)
  train = spool.Spool(itertools.chain(rows.train, made))
  changes, count = (*rows.changes, *noted.changes()), len(train) - len(rows.train)
  return rows._replace(train=train, changes=changes, copies=count)


def _translated(rows, task, models, noted):
  """{text: what it is after two translations} of the texts of rows that are copied."""
  if not models:
    return {}
  from jaxsft import back_translation  # which uses all that reads rows

  distinct = dict.fromkeys(one for row in rows for one in augment.texts(row, task))
  translated, lost = back_translation.translated(list(distinct), models)
  for row in rows if lost else ():
    for one in augment.texts(row, task):
      if one in lost:
        noted.add(f"not translated: {lost[one]}", row, one)
  return translated


def read_data(data, task, key="data.path", cleaning=None):
  """`Rows` of the config's `data` keys for a task module.

  key: what names them in errors. cleaning: the config's `clean` group; None: nothing of it. The
  data sets of a mixture are read and split each as if alone; what rows are compared with is
  all of them.
  """
  cleaning = cleaning or Clean()
  noted, warnings = record.Record(), []
  rows, left_out, where = _cleaned(_parts(data, key), task, cleaning, noted)
  rows, said = kept.kept(rows, task, cleaning, noted)
  warnings += said
  train, held_out, split = rows, [], ""
  if data.eval_path is not None:
    own = {"path": data.eval_path, "sha256": data.eval_sha256, "mix": None, "limit": None}
    other = _parts(dataclasses.replace(data, **own), "data.eval_path")
    held_out, more, also = _cleaned(other, task, of_texts(cleaning), noted)
    where += also
    for why, n in more.items():
      left_out[why] = left_out.get(why, 0) + n
  else:
    train, held_out, split = _split(rows, data)
  train, said = overlap.apart(train, held_out, task, cleaning, noted)
  warnings += said
  if cleaning.benchmarks:
    texts = benchmarks.read(cleaning.benchmarks)
    train, said = overlap.unknown_to(train, task, texts, cleaning.ngram, noted)
    warnings += said
  if not train:
    raise JaxsftError(
      "config.clean leaves no training row ("
      + ", ".join(f"{n} {why}" for why, n in noted.left_out().items())
      + "); change config.clean.overlap or config.clean.benchmarks"
    )
  left_out |= noted.left_out()
  changes, warnings = tuple(noted.changes()), tuple(warnings)
  count = sum(one.rows for one in where)
  return Rows(train, held_out, count, left_out, split, changes, warnings, tuple(where))


def as_part(data, name, given=()):
  """The `data` keys by which a data set of a mixture is read.

  name: None: none of them, rows beside the mixture. given: keys that are said otherwise. Raises
  UsageError for an unknown one, and where the mixture does not say how such rows become what
  its model read.
  """
  mix = data.mix or {}
  if name is None:
    for own, part in mix.items():
      for key in mix_rules.own_reading(data, part):
        if key not in ("keep", *given):  # every row is answered
          raise UsageError(
            f"--part: missing; config.data.mix.{own}.{key} says how one of the data sets "
            f"{', '.join(mix)} is read: say which of them --data is like, or set "
            f"config.data.{key}, {mix_rules.BESIDE[key]}"
          )
    return data
  if name not in mix:
    raise UsageError(f"--part={name}: config.data.mix has no such data set{near(name, mix)}")
  part = mix[name]
  own = {k: getattr(part, k) for k in SHARED if getattr(part, k) is not None}
  own |= {"path": part.path, "sha256": part.sha256, "mix": None}
  return dataclasses.replace(data, **own)


def _parts(data, key):
  """{name: (its `data` keys, what names its path)} of a mixture, or of one set without name."""
  if data.mix is None:
    return {"": (data, key)}
  return {name: (as_part(data, name), f"data.mix.{name}.path") for name in data.mix}


def _cleaned(parts, task, cleaning, noted):
  """(the cleaned rows of `_parts`, {why: how many are none of them}, [audit.Source])."""
  found_rows, left_out, where = [], {}, []
  for name, (data, key) in parts.items():
    with _naming(name):
      path, dropped = fetch.resolve(data.path, data.sha256, key=key), _dropped(noted)
      found = clean.clean(
        _read(path, name, data, task, cleaning, noted, whole=key.startswith(OWN)),
        keep=data.keep,
        labels=data.labels,
        label_type=data.label_type,
        separator=data.label_separator,
        limit=data.limit,
        task_fields=task.FIELDS,
      )
      count = found.read + _dropped(noted) - dropped
      where.append(_source(key, data.path, path, data, count, found.rows))
    found_rows.append(found.rows)
    left_out |= {_named(why, name): n for why, n in found.left_out.items()}
  return _one_after_another(found_rows), left_out, where


def _one_after_another(parts):
  """Several sequences of rows as one."""
  return parts[0] if len(parts) == 1 else _chained(parts)


def _chained(parts):
  return spool.Spool(itertools.chain.from_iterable(parts))


def _dropped(noted):
  """How many rows a record.Record says were left out so far."""
  return sum(noted.left_out().values())


def _split(rows, data):
  """(training rows, held-out rows, what was held out by what); each data set by its own ids."""
  sides, said = ([], []), []
  for name in data.mix or [""]:
    prefix = _prefix(name)
    own = rows
    if name:
      alone = (row._replace(id=row.id.removeprefix(prefix)) for row in rows if row.part == name)
      own = spool.Spool(alone)
    with _naming(name):
      *found, how = splits.split(
        own,
        share=data.split,
        by=data.split_by,
        stratify=data.stratify,
        folds=data.folds,
        fold=data.fold,
      )
    for side, part in zip(sides, found, strict=True):
      side.append(_with_prefix(prefix, part) if name else part)
    said += [_named(how, name)] if how else []
  join = _one_after_another if data.mix is None else _chained
  return *map(join, sides), "; ".join(said)


def _with_prefix(prefix, rows):
  for row in rows:
    yield row._replace(id=prefix + row.id)


def _named(text, name):
  return f"{name}: {text}" if name else text


def _prefix(name):
  return f"{name}/" if name else ""


@contextlib.contextmanager
def _naming(name):
  """Puts the name of a data set of a mixture in front of what is wrong with it."""
  try:
    yield
  except JaxsftError as error:
    if not name:
      raise
    raise type(error)(f"config.data.mix.{name}: {error}") from error


def reading(data):
  """The settings of read.read_rows that `data` keys decide."""
  names = ("format", "encoding", "header", "quoting", "columns", "id")
  return {name: getattr(data, name) for name in names}


def _read(path, name, data, task, cleaning, noted, whole=False):
  """The rows of a path with their texts as templates and `cleaning` want them.

  name: of a data set of a mixture, or "". whole: of `prompt.filled`.
  """
  rows = read.read_rows(path, **reading(data))
  rows = (row._replace(id=_prefix(name) + row.id, part=name) for row in rows)
  rows = prompt.filled(rows, prompt.templates(data.prompt), whole)
  steps, refused = text_steps(cleaning), _private(cleaning, "drop", "error")
  if refused:
    rows = fields.without_private(rows, task, steps, refused, noted)
  return fields.normalised(rows, task, steps, noted) if steps else rows


def _source(key, path, found, data, count, rows):
  """audit.Source of the rows of a path, which was resolved to `found`."""
  format = read.formats_of(found, data.format, data.encoding)
  written = collections.Counter(forms.named(row.fields) for row in rows)
  return audit.Source(key, path, str(found), format, count, dict(written))


def called(name):
  """What a sentence calls the rows of one of evaluate.sets."""
  return f"rows of config.evaluate.sets[{name!r}]"


def further_sets(config):
  """{name: `Rows`, all in `train`} of evaluate.sets."""
  sets, task, cleaning = {}, tasks.TASKS[config.task], of_texts(config.clean)
  whole = dict(split=0.0, split_by=None, stratify=False, folds=None, eval_path=None, limit=None)
  whole |= dict(mix=None, sha256=None)
  for name, path in (config.evaluate.sets or {}).items():
    other = dataclasses.replace(config.data, path=path, **whole)
    key = f"evaluate.sets[{name!r}]"
    sets[name] = read_data(other, task, key=key, cleaning=cleaning)
  return sets
