"""Packing where an example has two streams of tokens: a source and a target.

Lengths are [N,2] and sizes (S, T), the source first. A row holds the sources and the targets
of the same examples, so an example needs room in both. See data/pack.py for one stream.
"""

from collections.abc import Sequence

import numpy as np

from jaxsft.errors import JaxsftError

Size = tuple[int, int]

WORK = (1, 2)
"""Of a place: one in the target looks at both streams and is projected to the vocabulary."""
MEANT = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
"""Examples of mean length for which a row is tried."""


def pack(lengths: Sequence | np.ndarray, capacity: Size, most: int) -> list[list[int]]:
  """Rows of indices into `lengths`, each within `capacity` and at most `most` long.

  The one with the largest share of a row first, each into the row that it leaves fullest, else
  into a new one: best-fit decreasing for vectors. Equal ones keep their given order.
  """
  lengths, room = np.asarray(lengths, np.int64), np.asarray(capacity, np.int64)
  bad = np.flatnonzero(((lengths < 1) | (lengths > room)).any(1))
  if len(bad):
    source, target = lengths[bad[0]]
    raise JaxsftError(
      f"example {bad[0]} has {source} source and {target} target tokens, expected 1 to "
      f"{room[0]} and 1 to {room[1]} (the row lengths); see data.max_length, "
      "data.max_target_length and data.too_long"
    )
  rows: list[list[int]] = []
  left = np.empty((len(lengths), 2), np.int64)  # of each row; -1 where it is closed
  shares = 1 / room
  for index in np.argsort(-(lengths * shares).max(1), kind="stable").tolist():
    spare = left[: len(rows)] - lengths[index]
    fits = np.flatnonzero((spare >= 0).all(1))
    if len(fits):
      at = int(fits[np.argmin(spare[fits] @ shares)])
    else:
      at = len(rows)
      rows.append([])
      left[at] = room
    rows[at].append(index)
    left[at] = left[at] - lengths[index] if len(rows[at]) < most else -1
  return rows


def work(sizes: Sequence | np.ndarray) -> np.ndarray | np.integer:
  """What rows of sizes [...,2] cost, in places of the source."""
  return np.asarray(sizes, np.int64) @ np.array(WORK)


def longest(lengths: np.ndarray) -> Size:
  """The longest source and the longest target, which need not be of one example."""
  source, target = np.max(lengths, axis=0)
  return int(source), int(target)


def up(size: Sequence | np.ndarray, unit: int) -> Size:
  """The next multiples of `unit`."""
  return -(-int(size[0]) // unit) * unit, -(-int(size[1]) // unit) * unit


def next_size(value: Sequence, sizes: Sequence[Size], unit: int) -> Size:
  """The cheapest of `sizes` that holds `value`; where none does the next multiples."""
  fits = [size for size in sizes if size[0] >= value[0] and size[1] >= value[1]]
  return min(fits, key=lambda size: (work(size), size)) if fits else up(value, unit)


def choose_row_length(sample: Sequence[np.ndarray], longest: Size, unit: int) -> Size:
  """The size of rows, in multiples of 8 from `longest` on, that makes updates cheapest.

  sample: the lengths of some updates, each packed apart into a multiple of `unit` rows. As
  `pack.choose_row_length`, but rows may be longer than any example: the streams should fill in
  proportion to their means, and the longest of each seldom stand so.
  """
  least = np.array(up(longest, 8))
  most = np.maximum(2 * least, 256)
  means = np.concatenate(sample).mean(0)
  tries = {up(least, 8)}
  for count in MEANT:
    for slack in (1.05, 1.25):
      tries.add(up(np.ceil(np.maximum(least, means * count * slack)), 8))
  costs = {}
  for size in sorted(size for size in tries if (np.array(size) <= most).all()):
    rows = sum(-(-len(pack(update, size, len(update))) // unit) * unit for update in sample)
    places = np.array(size) * (1 + np.array(size) / 1024)
    costs[size] = rows * float(places @ WORK)
  return min(costs, key=lambda size: (costs[size], size))


def choose_buckets(
  values: Sequence | np.ndarray, most: int, price: float | int
) -> tuple[Size, ...]:
  """At most `most` sizes, sorted, that hold all of `values` and waste little.

  Begins with the one that holds every value, and adds the size that saves most work as long
  as that is more than `price`. Tried are those that hold the smallest so many values, by
  source, by target or by work.
  """
  values, counts = np.unique(np.asarray(values, np.int64), axis=0, return_counts=True)
  tries = set()
  for key in (*values.T, work(values)):
    held = np.maximum.accumulate(values[np.argsort(key, kind="stable")])
    some = np.linspace(0, len(held) - 1, 32).astype(int)
    tries |= set(map(tuple, held[some].tolist()))
  sizes = np.array(sorted(tries))
  holds = (sizes[:, None] >= values).all(-1)
  chosen = [longest(values)]
  now = np.full(len(values), work(chosen[0]))
  while len(chosen) < most:
    saved = np.where(holds, np.maximum(now - work(sizes)[:, None], 0), 0) @ counts
    best = int(saved.argmax())
    if saved[best] <= price:
      break
    chosen.append(tuple(sizes[best].tolist()))
    now = np.where(holds[best], np.minimum(now, work(sizes[best])), now)
  return tuple(sorted(chosen))
