"""Changes of a text as a list of replaced pieces, so that places in it can follow."""

import bisect
from collections.abc import Iterable, Sequence

Edit = tuple[int, int, str]
"""(start, end, what stands there afterwards): characters of the text before."""
Span = tuple[int, int]


def apply(text: str, edits: Sequence[Edit]) -> str:
  """The text after the edits, which are in order and do not overlap."""
  parts, at = [], 0
  for start, end, new in edits:
    parts += [text[at:start], new]
    at = end
  return "".join([*parts, text[at:]])


def moved(spans: Iterable[Span], edits: Sequence[Edit]) -> list[Span]:
  """Where spans of the text before stand in the text after.

  A place inside of a replaced piece moves to that end of it which keeps it in the span.
  """
  starts = [start for start, _, _ in edits]
  shifts = [0]
  for start, end, new in edits:
    shifts.append(shifts[-1] + len(new) - (end - start))

  def place(at: int, last: bool) -> int:
    k = bisect.bisect_left(starts, at)  # edits that begin before `at`
    if not k or edits[k - 1][1] <= at:
      return at + shifts[k]
    start, _, new = edits[k - 1]
    return start + shifts[k - 1] + (len(new) if last else 0)

  return [(place(start, False), place(end, True)) for start, end in spans]


def differences(before: str, pieces: Iterable[tuple[Span, str]]) -> list[Edit]:
  """The edits of pieces, ((start, end), new text), that change something."""
  return [(a, b, new) for (a, b), new in pieces if before[a:b] != new]
