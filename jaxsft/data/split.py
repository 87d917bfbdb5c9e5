"""Which rows are held out: those with the smallest hashes, or those of one fold.

Hashed is the row's id, or the value of a field that many rows share. No seed enters, so that
a row never moves from one side to the other between runs.
"""

import hashlib
import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from jaxsft.data import spool
from jaxsft.data.nearest import near
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError, UsageError

RANGE = 2**64


class Split(NamedTuple):
  """The rows of both sides, each in their order."""

  train: Sequence[Row]
  held_out: Sequence[Row]
  said: str
  """What was held out by what, with counts; "": nothing."""


def split(
  rows: Sequence[Row],
  *,
  share: float | int,
  by: str | None = None,
  stratify: bool = False,
  folds: int | None = None,
  fold: int = 0,
) -> Split:
  """`Split` of rows; without `folds`, a `share` of 0 holds none out.

  A row is held out if the sha256 of its id, as a number in [0, 1), is below `share`, or in the
  part `fold` of `folds` equal ones: a function of the id alone, which no order and no added row
  changes. by: a field whose value is hashed in the id's place, so that rows which share it are
  on one side. stratify: of each label the rows with the smallest hashes, `share` of them (half
  a row is one, and at least one row is on each side where there are two), or every `folds`-th
  part of them: then rows that are added may move others of their label across.
  Raises JaxsftError for a row without a group, and where a side has no row.
  """
  if not 0 <= share < 1:
    raise UsageError(f"data.split is {share}, expected a share from 0 to below 1")
  if not share and folds is None:
    return Split(rows, [], "")
  places = [place(row.id if by is None else _group(row, by)) for row in rows]
  if stratify:
    chosen = _within_labels(rows, places, share, folds, fold)
  elif folds is not None:
    chosen = [at * folds // RANGE == fold for at in places]
  else:
    chosen = [at < share * RANGE for at in places]
  sides = spool.Spool(), spool.Spool()
  for row, out in zip(rows, chosen, strict=True):
    sides[out].add(row)
  said = f"held out by {_how(by, stratify)}: "
  if folds is not None:
    said = f"fold {fold} (of 0 … {folds - 1}) {said}"
  if by is not None:
    groups = {at for at, out in zip(places, chosen, strict=True) if out}
    said += f"{len(groups):,} of {len(set(places)):,} groups, "
  held, count = len(sides[1]), len(rows)
  said += f"{held:,} of {count:,} rows ({held / max(count, 1):.1%})"
  if not all(sides):
    _refuse(said, "evaluation" if sides[0] else "training", share, folds, by)
  return Split(*sides, said)


def place(key: str) -> int:
  """Where the hash of a key lies in [0, RANGE)."""
  return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8])


def _group(row: Row, by: str) -> str:
  """The value of a row's field as text; 3.0 is 3, since gaps in a column make floats."""
  if by not in row.fields:
    raise JaxsftError(
      f"{row.where}: no field {by!r}, which data.split_by names{near(by, row.fields)}; correct "
      "data.split_by"
    )
  value = row.fields[by]
  if isinstance(value, float):
    value = None if math.isnan(value) else value
    value = int(value) if value is not None and value.is_integer() else value
  if value is None or isinstance(value, list | tuple | dict) or not str(value).strip():
    raise JaxsftError(
      f"{row.where}: the group (field {by!r}, data.split_by) is {row.fields[by]!r:.60}, "
      "expected a text or a number; give every row one, or leave such rows out with data.keep"
    )
  return str(value)


def _within_labels(rows, places, share, folds, fold) -> list[bool]:
  """Whether each row is held out, by the rank of its hash among the rows of its label."""
  ranked: dict[str, list[int]] = {}
  for number, row in enumerate(rows):
    ranked.setdefault(row.fields["label"], []).append(number)
  chosen = [False] * len(rows)
  for label, numbers in ranked.items():
    numbers.sort(key=lambda number: (places[number], rows[number].id))
    count = len(numbers)
    if folds is None:
      wanted = Decimal(str(share)) * count
      held = numbers[: min(max(int(wanted.quantize(1, ROUND_HALF_UP)), 1), count - 1)]
    else:  # labels begin with another fold each, so that rare ones do not meet in the first
      first = place(label) * folds // RANGE
      held = [n for i, n in enumerate(numbers) if (i * folds // count + first) % folds == fold]
    for number in held:
      chosen[number] = True
  return chosen


def _how(by, stratify):
  if by is not None:
    return f"group of {by!r}"
  return "id within each label" if stratify else "id"


def _refuse(said, side, share, folds, by):
  key = f"data.split={share}" if folds is None else f"data.folds={folds}"
  more = "rows" if by is None else f"groups of {by!r}"
  raise JaxsftError(
    f"{key} leaves no row for {side} ({said}; each hash decides); use more {more} or another "
    f"{key.partition('=')[0]}, or set data.split to 0 and data.eval_path to rows of their own"
  )
