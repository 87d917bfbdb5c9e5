"""Which rows are used: the keep rule, labels, and empty texts.

Nothing leaves without being counted: `Cleaned.left_out` says how many rows went and why.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxsft.data import forms, rules, spool
from jaxsft.data.read import Row, near
from jaxsft.errors import JaxsftError, UsageError

TEXT_FIELDS = (
  "text",
  "text_pair",
  "prompt",
  "completion",
  "source",
  "target",
  "question",
  "context",
)
INSTEAD = {"target": "targets"}
"""Field -> what a row may have in its place: a list of texts that are all right."""
INTEGER = re.compile(r"[+-]?\d+")
DECIMAL = re.compile(r"[+-]?\d*\.\d*(e[+-]?\d+)?", re.IGNORECASE)


class Cleaned(NamedTuple):
  """The rows that stay, in their order, and where the others went."""

  rows: Sequence[Row]
  read: int
  left_out: dict[str, int]
  """Reason -> number of rows; read = len(rows) + the sum of these."""


def clean(
  rows: Iterable[Row],
  *,
  keep: str | None,
  labels: Mapping[str, str] | Sequence[str] | None,
  label_type: str,
  separator: str,
  limit: int | None,
  task_fields: Sequence[str],
) -> Cleaned:
  """The rows that `keep` keeps, with the task's fields present and their labels settled.

  If "label" is among `task_fields`, it becomes a name (label_type="single": text; checked
  against or made by `labels`), a list of names ("multi", of a list, of a text that `separator`
  divides, or of {name: yes or no}) or a finite float ("number"). Rows whose text is empty are
  left out and counted. Reading stops after `limit` kept rows. Raises JaxsftError with
  row.where for a row that does not fit, and if no row is left.
  """
  keeps = rules.compile_rule(keep, "data.keep") if keep else None
  label_of = _labeller(labels, label_type, separator) if "label" in task_fields else None
  if limit is not None and limit < 1:
    raise UsageError(f"data.limit is {limit}, expected a number of rows from 1, or None")
  needed = [name for name in task_fields if name != "label"]
  left_out: Counter[str] = Counter()

  def those_kept() -> Iterator[Row]:
    for row in rows:
      if keeps and not keeps(row):
        left_out["keep rule"] += 1
        continue
      empty = _empty_field(row, needed, label_of is not None)
      if empty:
        left_out[f"empty {empty}"] += 1
        continue
      if label_of:
        row = row._replace(fields=row.fields | {"label": label_of(row)})
      yield row

  kept = spool.Spool(itertools.islice(those_kept(), limit))
  read = len(kept) + left_out.total()
  if not kept:
    took = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
    raise JaxsftError(
      f"no row is left of {read} read ({took or 'none was found'}); change data.keep, or "
      "data.columns if the fields are mapped wrongly"
    )
  return Cleaned(kept, read, dict(left_out))


def label_names(rows: Iterable[Row]) -> tuple[str, ...]:
  """The labels found in cleaned rows, in id order: sorted, whole numbers by their value."""
  names = {name for row in rows for name in _labels_of(row)}
  if all(INTEGER.fullmatch(name) for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  return tuple(sorted(names))


def with_names(row: Row, names: Sequence[str]) -> Row:
  """The cleaned row with names for its labels 0 … C-1, unless a name is itself a number.

  Raises JaxsftError for a number that is no id.
  """
  found = row.fields["label"]
  if isinstance(found, list):
    return row._replace(fields=row.fields | {"label": [_named(n, names, row) for n in found]})
  return row._replace(fields=row.fields | {"label": _named(found, names, row)})


def _labels_of(row: Row) -> list[str]:
  found = row.fields["label"]
  return found if isinstance(found, list) else [found]


def _empty_field(row: Row, needed: Sequence[str], labelled: bool) -> str | None:
  """The first text field that holds nothing; every field in `needed` must be there."""
  needed = [INSTEAD[n] if INSTEAD.get(n) in row.fields else n for n in needed]
  for name in needed:
    if name not in row.fields:
      raise JaxsftError(
        f"{row.where}: no field {name!r}, which the task needs{near(name, row.fields)}; map a "
        f'column to it: data.columns={{"{name}": …}}'
      )
  # The task may do without these, but where there is one it must be text.
  own = labelled or (not needed and forms.plain(row.fields))
  maybe = {"text_pair", "text"} if own else {"text_pair"}
  texts = [name for name in TEXT_FIELDS if name in needed or name in maybe]
  for name in INSTEAD.values():
    if name in needed and (not _is_texts(row.fields[name]) or not row.fields[name]):
      raise JaxsftError(
        f"{row.where}: the field {name!r} is {_shown(row.fields[name])}, expected a list of at "
        "least one text; map another column to it in data.columns"
      )
    if name in needed and not all(text.strip() for text in row.fields[name]):
      return name
  for name in texts:
    value = row.fields.get(name, "none")
    value = joined(value) if name == "source" and _is_texts(value) else value
    if value is None or (isinstance(value, str) and not value.strip()):
      return name
    if not isinstance(value, str):
      raise JaxsftError(
        f"{row.where}: the field {name!r} is {_shown(value)} ({type(value).__name__}), "
        "expected text; map another column to it in data.columns"
      )
  return None


def joined(value: str | Sequence[str]) -> str:
  """A text, or the sentences of a list with spaces between them."""
  return value if isinstance(value, str) else " ".join(value)


def _is_texts(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def _labeller(
  labels: Mapping[str, str] | Sequence[str] | None, label_type: str, separator: str
) -> Callable[[Row], str | float | list[str]]:
  if label_type == "number":
    if labels:
      raise UsageError(
        "data.labels names classes, but data.label_type is 'number'; set data.labels to None, "
        "or data.label_type to 'single'"
      )
    return _number
  multi = label_type == "multi"
  names = () if labels is None else tuple(labels)
  fewest = 1 if multi else 2
  if labels is not None and (
    isinstance(labels, str) or len(set(names)) < max(fewest, len(names))
  ):
    many = "one or more" if multi else "two or more"
    raise UsageError(f"data.labels is {labels!r}, expected {many} different names")
  if isinstance(labels, Mapping):
    compiled = {
      name: rules.compile_rule(rule, f"data.labels[{name!r}]") for name, rule in labels.items()
    }
    return partial(_by_rules if multi else _by_rule, compiled)
  one = _name if labels is None else partial(_one_of, names)
  if multi:
    return lambda row: [one(value, row) for value in _values(_label(row), row, separator)]
  return lambda row: one(_label(row), row)


def _values(value: Any, row: Row, separator: str) -> list[Any]:
  """The labels of a row that may have many, as they are written."""
  if isinstance(value, Mapping):
    bad = [v for v in value.values() if v not in (0, 1)]
    found = [name for name, v in value.items() if v == 1]
  else:
    bad, found = [value] if value is None else [], value
    if isinstance(value, str):
      found = value.split(separator) if value.strip() else []
      found = [part.strip() for part in found]
    elif not isinstance(value, list):
      found = [value]
  if bad:
    raise JaxsftError(
      f"{row.where}: the label is {_shown(value)}, expected a list of names, [] for none, or "
      "{name: 0 or 1}; correct the row or leave it out with data.keep"
    )
  twice = next((v for i, v in enumerate(found) if v in found[:i]), None)
  if twice is not None:
    raise JaxsftError(
      f"{row.where}: the label {twice!r} stands twice in {_shown(value)}, expected names or "
      "ids, each once; a vector of yes and no is written {name: 0 or 1}, or read by rules: "
      'data.labels={"name": "column == 1", …}'
    )
  return found


def _by_rules(compiled: Mapping[str, rules.Rule], row: Row) -> list[str]:
  return [name for name, rule in compiled.items() if rule(row)]


def _by_rule(compiled: Mapping[str, rules.Rule], row: Row) -> str:
  names = _by_rules(compiled, row)
  if len(names) != 1:
    held = f"the rules of {' and '.join(names)} hold" if names else "no rule holds"
    shown = ", ".join(f"{k}={_shown(v)}" for k, v in row.fields.items())
    raise JaxsftError(
      f"{row.where}: {held} ({shown}), expected exactly one of data.labels; change the rules, "
      "or leave such rows out with data.keep"
    )
  return names[0]


def _one_of(names: tuple[str, ...], value: Any, row: Row) -> str:
  """The label as one of `names`; 0 … C-1 are ids, unless a name is itself a number."""
  name = _named(_name(value, row, names), names, row)
  if name in names:
    return name
  fix = "add it to data.labels, correct the row, or leave such rows out with data.keep"
  if isinstance(value, bool):  # which of two names is true must not depend on their order
    fix = f'give rules: data.labels={{"{names[0]}": "not label", "{names[-1]}": "label"}}'
  raise JaxsftError(f"{row.where}: unknown label {name!r}{near(name, names)}; {fix}")


def _named(name: str, names: Sequence[str], row: Row) -> str:
  """The name of an id; what is no id stays as it is."""
  if not INTEGER.fullmatch(name) or any(INTEGER.fullmatch(other) for other in names):
    return name
  if 0 <= int(name) < len(names):
    return names[int(name)]
  raise JaxsftError(
    f"{row.where}: the label is {name}, outside 0 … {len(names) - 1} (the ids of "
    f"{', '.join(names)}); map it by rules such as "
    f'data.labels={{"{names[0]}": "label == {name}", …}}, or correct the row'
  )


def _number(row: Row) -> float:
  value = _label(row)
  try:
    if isinstance(value, bool):
      raise ValueError
    number = float(value)
  except (TypeError, ValueError):
    raise JaxsftError(
      f"{row.where}: the label is {_shown(value)}, expected a number, as "
      "data.label_type='number' says; correct the row or set data.label_type to 'single'"
    ) from None
  if not math.isfinite(number):
    raise JaxsftError(
      f"{row.where}: the label is {number}, expected a finite number; correct the row or leave "
      "it out with data.keep"
    )
  return number


def _label(row: Row) -> Any:
  if "label" not in row.fields:
    raise JaxsftError(
      f"{row.where}: no field 'label', which the task needs{near('label', row.fields)}; map a "
      'column to it: data.columns={"label": …}, or give rules in data.labels'
    )
  return row.fields["label"]


def _name(value: Any, row: Row, names: Sequence[str] = ()) -> str:
  """The label as text; 3.0 is 3, since whole numbers beside empty cells come as floats."""
  shown = _shown(value)
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, float) and not math.isfinite(value):
    value = None
  if value is None or isinstance(value, list | dict) or not str(value).strip():
    raise JaxsftError(
      f"{row.where}: the label is {shown}, expected a name or a whole number; correct the row "
      "or leave it out with data.keep"
    )
  name = str(value)
  if DECIMAL.fullmatch(name) and name not in names:
    raise JaxsftError(
      f"{row.where}: the label is {shown}, a number with a decimal point, expected a name or a "
      "whole number; set data.label_type to 'number' to learn numbers, write classes without "
      "the point, or list them as names in data.labels"
    )
  return name


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}…"
