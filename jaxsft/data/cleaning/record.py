"""What cleaning and augmentation did, counted, with a few samples that hide what is private."""

import itertools
from typing import Any, NamedTuple

from jaxsft.data import read
from jaxsft.data.cleaning import private

SAMPLES = 3
LEFT_OUT, CHANGED = "left out: ", "changed by "
BEFORE, AFTER = 16, 48
"""Characters that a sample shows around the first difference."""


class Change(NamedTuple):
  """One thing that was done to rows."""

  what: str
  rows: int
  samples: list[dict[str, str]]
  """{"row", "before", "after"} of a few; what is private has placeholders."""

  def line(self) -> str:
    shown = [
      f"{s['row']} {s['before']!r}" + (f" → {s['after']!r}" if "after" in s else "")
      for s in self.samples
    ]
    return f"{self.rows:,} {self.what}" + (f" ({'; '.join(shown)})" if shown else "")


class Record:
  """Counts changes by what they are, in the order in which these were first met."""

  def __init__(self):
    self._found: dict[str, Change] = {}

  def add(self, what: str, row: read.Row, before: str, after: str | None = None):
    """One more row; after None: it was left out. Only the first few are remembered."""
    one = self._found.get(what, Change(what, 0, []))
    if len(one.samples) < SAMPLES:
      one.samples.append({"row": private.masked(row.id)} | sample(before, after))
    self._found[what] = one._replace(rows=one.rows + 1)

  def leave(self, why: str, row: read.Row, text: str):
    """One more row that is left out, with its text."""
    self.add(LEFT_OUT + why, row, text)

  def changes(self) -> list[Change]:
    return list(self._found.values())

  def left_out(self) -> dict[str, int]:
    """Reason -> rows, as data.clean counts them."""
    found = self._found.values()
    start = len(LEFT_OUT)
    return {one.what[start:]: one.rows for one in found if one.what.startswith(LEFT_OUT)}


def sample(before: str, after: str | None = None) -> dict[str, Any]:
  """What is shown of a change, around its first difference or what is private in it."""
  before = private.hidden(before)
  if after is None:
    return {"before": _cut(before, max(before.find("["), 0))}
  after = private.hidden(after)
  if before == after:  # what was changed is what must not be shown
    at = max(before.find("["), 0)
    return {"before": _cut(before, at)}
  pairs = itertools.zip_longest(before, after)
  at = next(i for i, (a, b) in enumerate(pairs) if a != b)
  return {"before": _cut(before, at), "after": _cut(after, at)}


def _cut(text: str, at: int) -> str:
  start, end = max(at - BEFORE, 0), at + AFTER
  return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))
