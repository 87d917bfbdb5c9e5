"""Which rows are trained on: the keep rule, labels, empty texts, and the held-out share.

Nothing leaves without being counted: `Cleaned.left_out` says how many rows went and why.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxsft.data import forms, rules
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
INTEGER = re.compile(r"[+-]?\d+")


class Cleaned(NamedTuple):
  """The rows that stay, in their order, and where the others went."""

  rows: list[Row]
  read: int
  left_out: dict[str, int]
  """Reason -> number of rows; read = len(rows) + the sum of these."""


def clean(
  rows: Iterable[Row],
  *,
  keep: str | None,
  labels: Mapping[str, str] | Sequence[str] | None,
  label_type: str,
  limit: int | None,
  task_fields: Sequence[str],
) -> Cleaned:
  """The rows that `keep` keeps, with the task's fields present and their labels settled.

  If "label" is among `task_fields`, it becomes a name (label_type="single": text; checked
  against or made by `labels`) or a finite float ("number"). Rows whose text is empty are
  left out and counted. Reading stops after `limit` kept rows. Raises JaxsftError with
  row.where for a row that does not fit, and if no row is left.
  """
  keeps = rules.compile_rule(keep, "data.keep") if keep else None
  label_of = _labeller(labels, label_type) if "label" in task_fields else None
  if limit is not None and limit < 1:
    raise UsageError(f"data.limit is {limit}, expected a number of rows from 1, or None")
  needed = [name for name in task_fields if name != "label"]
  kept: list[Row] = []
  left_out: Counter[str] = Counter()
  read = 0
  for row in rows:
    read += 1
    if keeps and not keeps(row):
      left_out["keep rule"] += 1
      continue
    empty = _empty_field(row, needed)
    if empty:
      left_out[f"empty {empty}"] += 1
      continue
    if label_of:
      row = row._replace(fields=row.fields | {"label": label_of(row)})
    kept.append(row)
    if len(kept) == limit:
      break
  if not kept:
    took = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
    raise JaxsftError(
      f"no row is left of {read} read ({took or 'none was found'}); change data.keep, or "
      "data.columns if the fields are mapped wrongly"
    )
  return Cleaned(kept, read, dict(left_out))


def label_names(rows: Iterable[Row]) -> tuple[str, ...]:
  """The labels found in cleaned rows, in id order: sorted, whole numbers by their value."""
  names = {row.fields["label"] for row in rows}
  if all(INTEGER.fullmatch(name) for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  return tuple(sorted(names))


def split(rows: Sequence[Row], fraction: float | int) -> tuple[list[Row], list[Row]]:
  """(training rows, held-out rows); `fraction` 0 holds none out.

  A row is held out if the sha256 of its id, as a number in [0, 1), is below `fraction`:
  a function of the id alone, so that no seed, order or added row moves it across.
  """
  if not 0 <= fraction < 1:
    raise UsageError(f"data.split is {fraction}, expected a share from 0 to below 1")
  sides: tuple[list[Row], list[Row]] = ([], [])
  for row in rows:
    sides[held_out(row.id, fraction)].append(row)
  if fraction and not all(sides):
    side = "training" if not sides[0] else "evaluation"
    raise JaxsftError(
      f"data.split={fraction} of {len(rows)} rows leaves none for {side} (each id's hash "
      "decides); use more rows or another data.split, or set data.split to 0 and "
      "data.eval_path to rows of their own"
    )
  return sides


def held_out(id: str, fraction: float | int) -> bool:
  """Whether the row of that id is held out."""
  digest = hashlib.sha256(id.encode(errors="surrogatepass")).digest()
  return int.from_bytes(digest[:8]) < fraction * 2**64


def _empty_field(row: Row, needed: Sequence[str]) -> str | None:
  """The first text field that holds nothing; every field in `needed` must be there."""
  for name in needed:
    if name not in row.fields:
      raise JaxsftError(
        f"{row.where}: no field {name!r}, which the task needs{near(name, row.fields)}; map a "
        f'column to it: data.columns={{"{name}": …}}'
      )
  # The task may do without a pair, but where there is one it must be text.
  texts = [name for name in TEXT_FIELDS if name in needed or name == "text_pair"]
  if not needed and forms.plain(row.fields):
    texts.append("text")
  for name in texts:
    value = row.fields.get(name, "none")
    if value is None or (isinstance(value, str) and not value.strip()):
      return name
    if not isinstance(value, str):
      raise JaxsftError(
        f"{row.where}: the field {name!r} is {_shown(value)} ({type(value).__name__}), "
        "expected text; map another column to it in data.columns"
      )
  return None


def _labeller(
  labels: Mapping[str, str] | Sequence[str] | None, label_type: str
) -> Callable[[Row], str | float]:
  if label_type == "number":
    if labels:
      raise UsageError(
        "data.labels names classes, but data.label_type is 'number'; set data.labels to None, "
        "or data.label_type to 'single'"
      )
    return _number
  if labels is None:
    return lambda row: _name(_label(row), row)
  if isinstance(labels, str) or len(set(labels)) < max(2, len(labels)):
    raise UsageError(f"data.labels is {labels!r}, expected two or more different names")
  if not isinstance(labels, Mapping):
    return partial(_one_of, tuple(labels))
  compiled = {
    name: rules.compile_rule(rule, f"data.labels[{name!r}]") for name, rule in labels.items()
  }
  return partial(_by_rule, compiled)


def _by_rule(compiled: Mapping[str, rules.Rule], row: Row) -> str:
  names = [name for name, rule in compiled.items() if rule(row)]
  if len(names) != 1:
    held = f"the rules of {' and '.join(names)} hold" if names else "no rule holds"
    shown = ", ".join(f"{k}={_shown(v)}" for k, v in row.fields.items())
    raise JaxsftError(
      f"{row.where}: {held} ({shown}), expected exactly one of data.labels; change the rules, "
      "or leave such rows out with data.keep"
    )
  return names[0]


def _one_of(names: tuple[str, ...], row: Row) -> str:
  """The label as one of `names`; 0 … C-1 are ids, unless a name is itself a number."""
  name = _name(_label(row), row)
  if name in names:
    return name
  if INTEGER.fullmatch(name) and not any(INTEGER.fullmatch(other) for other in names):
    if 0 <= int(name) < len(names):
      return names[int(name)]
    raise JaxsftError(
      f"{row.where}: the label is {name}, outside 0 … {len(names) - 1} (the ids of "
      f"{', '.join(names)}); map it by rules such as "
      f'data.labels={{"{names[0]}": "label == {name}", …}}, or correct the row'
    )
  raise JaxsftError(
    f"{row.where}: unknown label {name!r}{near(name, names)}; add it to data.labels, correct "
    "the row, or leave such rows out with data.keep"
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


def _name(value: Any, row: Row) -> str:
  """The label as text; 3.0 is 3, since whole numbers beside empty cells come as floats."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, float) and not math.isfinite(value):
    value = None
  if value is None or isinstance(value, list | dict) or not str(value).strip():
    raise JaxsftError(
      f"{row.where}: the label is {_shown(row.fields['label'])}, expected a name or a whole "
      "number; correct the row or leave it out with data.keep"
    )
  return str(value)


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}…"
