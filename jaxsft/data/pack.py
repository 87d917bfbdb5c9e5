"""Which examples share a row, and how large rows should be: from lengths alone.

Packing is best-fit decreasing and deterministic; sizes are chosen so that little is padded
and few shapes are compiled. Where examples have a source beside their target, lengths are
[N,2] and the sizes of rows are pairs (S, T): see data/pairs.py.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from jaxsft.data import pairs
from jaxsft.errors import JaxsftError

Size = int | pairs.Size
"""Tokens in a row: T, or (S, T)."""


def pack(
  lengths: Sequence | np.ndarray, capacity: Size, max_segments: int | None = None
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
  most = len(lengths) if max_segments is None else max_segments
  if most < 1:
    raise JaxsftError(f"max_segments is {most}, expected at least 1")
  if lengths.ndim == 2:
    return pairs.pack(lengths, capacity, most)
  for bad in (int(lengths.argmin()), int(lengths.argmax())):
    if not 1 <= lengths[bad] <= capacity:
      raise JaxsftError(
        f"example {bad} has {lengths[bad]} tokens, expected 1 to {capacity} (the row "
        "length); see data.max_length and data.too_long"
      )
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


def checked(lengths: Sequence | np.ndarray, limit: Size) -> np.ndarray:
  """The lengths of examples as int32; raises JaxsftError unless each is 1 to `limit`."""
  lengths = np.asarray(lengths, np.int32)
  if len(lengths) == 0:
    raise JaxsftError("found no examples to plan for; see data.keep and data.split")
  for stream, most in enumerate(np.ravel(limit).tolist()):
    own = lengths if lengths.ndim == 1 else lengths[:, stream]
    if own.min() < 1 or own.max() > most:
      bad = int(own.argmin() if own.min() < 1 else own.argmax())
      kind = "" if lengths.ndim == 1 else ("source ", "target ")[stream]
      raise JaxsftError(
        f"example {bad} has {own[bad]} {kind}tokens, expected 1 to {most}; see "
        "data.max_length and data.too_long"
      )
  return lengths


def efficiency(
  rows: Sequence[Sequence[int]], lengths: Sequence[int] | np.ndarray, capacity: int
) -> float:
  """Share of the places of `rows` that hold a token; empty rows count as padding."""
  tokens = sum(int(lengths[i]) for row in rows for i in row)
  return tokens / (len(rows) * capacity) if len(rows) else 0.0


def longest(lengths: np.ndarray) -> Size:
  """The most tokens of an example; of two streams, of each."""
  return pairs.longest(lengths) if lengths.ndim == 2 else int(lengths.max())


def work(lengths: np.ndarray) -> np.ndarray:
  """[N] what examples, or rows, of these lengths cost."""
  return pairs.work(lengths) if lengths.ndim == 2 else lengths


def up(value: Size, unit: int) -> Size:
  """The next multiple of `unit`."""
  return pairs.up(value, unit) if isinstance(value, tuple) else -(-value // unit) * unit


def next_size(value: Size, sizes: Sequence[Size], unit: int) -> Size:
  """The smallest of `sizes` (sorted) that holds `value`; beyond them the next multiple."""
  if isinstance(value, tuple):
    return pairs.next_size(value, sizes, unit)
  at = bisect.bisect_left(sizes, value)
  return sizes[at] if at < len(sizes) else up(value, unit)


def choose_row_length(
  sample: Sequence[np.ndarray], longest: Size, limit: Size, unit: int
) -> Size:
  """The row length, a multiple of 8 from `longest` to `limit`, that makes updates cheapest.

  sample: the lengths of some updates, each packed apart into a multiple of `unit` rows. A
  place in a row of T costs 1 + T / 1024: matrix products, and attention over the row. For two
  streams there is no limit: see pairs.choose_row_length.
  """
  if isinstance(longest, tuple):
    return pairs.choose_row_length(sample, longest, unit)
  shortest = up(longest, 8)
  tries = {shortest} | {up(int(shortest * f), 8) for f in (1.25, 1.5, 2)} | {64, 128, 256}
  costs = {}
  for length in sorted(t for t in tries if t == shortest or shortest < t <= limit):
    rows = sum(up(len(pack(update, length)), unit) for update in sample)
    costs[length] = rows * length * (1 + length / 1024)
  return min(costs, key=lambda length: (costs[length], length))


def choose_segments(sample: Sequence[np.ndarray], capacity: Size) -> int:
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
  values: Sequence[Size] | np.ndarray, most: int, price: float | int
) -> tuple[Size, ...]:
  """At most `most` sizes, the largest value among them, sorted, that waste least.

  Minimises the sum over `values` of the next size, plus `price` for every size; exact up to
  256 distinct values, beyond which these are thinned first. See pairs.choose_buckets for two
  streams.
  """
  if np.ndim(values) == 2:
    return pairs.choose_buckets(values, most, price)
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
