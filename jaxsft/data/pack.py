"""Which examples share a row, and how large rows should be: from lengths alone.

Packing is best-fit decreasing and deterministic; sizes are chosen so that little is padded
and few shapes are compiled.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from jaxsft.errors import JaxsftError


def pack(
  lengths: Sequence[int] | np.ndarray, capacity: int, max_segments: int | None = None
) -> list[list[int]]:
  """Rows of indices into `lengths`, each at most `capacity` tokens and `max_segments` long.

  Longest first, each into the row that it fills best, else into a new row (best-fit
  decreasing: at most 11/9 of the fewest rows, Johnson 1973). Open rows lie in buckets by
  the space left in them, and the spaces in use are kept sorted, so that finding the best is
  one bisection. Equal lengths are taken in their given order.
  """
  lengths = np.asarray(lengths, np.int64)
  if len(lengths) == 0:
    return []
  for bad in (int(lengths.argmin()), int(lengths.argmax())):
    if not 1 <= lengths[bad] <= capacity:
      raise JaxsftError(
        f"example {bad} has {lengths[bad]} tokens, expected 1 to {capacity} (the row "
        "length); see data.max_length and data.too_long"
      )
  most = len(lengths) if max_segments is None else max_segments
  if most < 1:
    raise JaxsftError(f"max_segments is {most}, expected at least 1")
  rows: list[list[int]] = []
  spaces: list[int] = []  # sorted; each is a key of `open_rows`
  open_rows: dict[int, list[list[int]]] = {}
  order = np.argsort(-lengths, kind="stable")
  for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
    at = bisect.bisect_left(spaces, length)
    if at < len(spaces):
      left = spaces[at]
      row = open_rows[left].pop()
      if not open_rows[left]:
        del open_rows[left], spaces[at]
      left -= length
    else:
      row, left = [], capacity - length
      rows.append(row)
    row.append(index)
    if left and len(row) < most:
      if left in open_rows:
        open_rows[left].append(row)
      else:
        open_rows[left] = [row]
        bisect.insort(spaces, left)
  return rows


def efficiency(
  rows: Sequence[Sequence[int]], lengths: Sequence[int] | np.ndarray, capacity: int
) -> float:
  """Share of the places of `rows` that hold a token; empty rows count as padding."""
  tokens = sum(int(lengths[i]) for row in rows for i in row)
  return tokens / (len(rows) * capacity) if len(rows) else 0.0


def up(value: int, unit: int) -> int:
  """The next multiple of `unit`."""
  return -(-value // unit) * unit


def next_size(value: int, sizes: Sequence[int], unit: int) -> int:
  """The smallest of `sizes` (sorted) that holds `value`; beyond them the next multiple."""
  at = bisect.bisect_left(sizes, value)
  return sizes[at] if at < len(sizes) else up(value, unit)


def choose_row_length(sample: Sequence[np.ndarray], longest: int, limit: int, unit: int) -> int:
  """The row length, a multiple of 8 from `longest` to `limit`, that makes updates cheapest.

  sample: the lengths of some updates, each packed apart into a multiple of `unit` rows. A
  place in a row of T costs 1 + T / 1024: matrix products, and attention over the row.
  """
  shortest = up(longest, 8)
  tries = {shortest} | {up(int(shortest * f), 8) for f in (1.25, 1.5, 2)} | {64, 128, 256}
  costs = {}
  for length in sorted(t for t in tries if t == shortest or shortest < t <= limit):
    rows = sum(up(len(pack(update, length)), unit) for update in sample)
    costs[length] = rows * length * (1 + length / 1024)
  return min(costs, key=lambda length: (costs[length], length))


def choose_segments(sample: Sequence[np.ndarray], capacity: int) -> int:
  """Places for examples in a row: the fewest that cost no more than 1 % more rows."""
  free = [pack(update, capacity) for update in sample]
  needed = max(len(row) for rows in free for row in rows)
  fewest = sum(map(len, free))
  segments = -(-sum(map(len, sample)) // fewest)
  while segments < needed:
    rows = sum(len(pack(update, capacity, segments)) for update in sample)
    if rows <= 1.01 * fewest:
      break
    segments += max(1, segments // 4)
  return min(segments, needed)


def choose_buckets(
  values: Sequence[int] | np.ndarray, most: int, price: float | int
) -> tuple[int, ...]:
  """At most `most` sizes, the largest value among them, sorted, that waste least.

  Minimises the sum over `values` of the next size, plus `price` for every size; exact up to
  256 distinct values, beyond which these are thinned first.
  """
  sizes, counts = np.unique(np.asarray(values, np.int64), return_counts=True)
  if len(sizes) > 256:
    kept = np.unique(np.linspace(0, len(sizes) - 1, 256).astype(int))
    counts = np.add.reduceat(counts, np.r_[0, kept[:-1] + 1])
    sizes = sizes[kept]
  below = np.r_[0, np.cumsum(counts)]
  # best[j]: cost of the values up to sizes[j - 1] with so many buckets, the last at j - 1.
  best = np.r_[0.0, np.full(len(sizes), np.inf)]
  cheapest, chosen = np.inf, ()
  ends: list[np.ndarray] = []
  for used in range(1, min(most, len(sizes)) + 1):
    cost = best[:-1, None] + sizes * (below[1:] - below[:-1, None])  # from i to j
    cost = np.where(np.triu(np.ones(cost.shape, bool)), cost, np.inf)
    ends.append(cost.argmin(0))
    best = np.r_[np.inf, cost.min(0)]
    if best[-1] + used * price < cheapest:
      cheapest = best[-1] + used * price
      chosen = _walk_back(sizes, ends)
  return chosen


def _walk_back(sizes, ends) -> tuple[int, ...]:
  """The sizes of the cheapest cover, from its last bucket to its first."""
  found, at = [], len(sizes) - 1
  for start in reversed(ends):
    found.append(int(sizes[at]))
    at = int(start[at]) - 1
  return tuple(reversed(found))
