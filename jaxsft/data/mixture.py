"""How often an epoch draws each set of examples, and which of them: a function of the epoch.

The sets are data sets of a mixture, or the examples of one label. An epoch takes `counts[s]`
examples of set s: the next ones of an endless stream, permutation after permutation of the set,
each by seed, set and pass alone. So nothing is carried from epoch to epoch, and whatever the
counts are, no example of a set is drawn a second time more often than another.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxsft.errors import JaxsftError


@dataclass(frozen=True, eq=False)
class Draw:
  """Which examples an epoch holds."""

  names: tuple[str, ...]
  """Of the sets."""
  members: np.ndarray
  """[N] int32, the set of each example."""
  counts: tuple[int, ...]
  """Examples of each set in an epoch."""

  @property
  def total(self) -> int:
    """Examples in an epoch."""
    return sum(self.counts)

  @property
  def sizes(self) -> list[int]:
    """Examples that there are of each set."""
    return np.bincount(self.members, minlength=len(self.names)).tolist()


def make(names: Sequence[str], members, count) -> Draw:
  """A `Draw` of count(sizes) examples of each set; raises JaxsftError for an empty one."""
  members = np.asarray(members, np.int32)
  draw = Draw(tuple(names), members, (0,) * len(names))
  if empty := [name for name, n in zip(names, draw.sizes, strict=True) if not n]:
    raise JaxsftError(
      f"no row of {empty[0]!r} has an example to train on; see data.split, data.max_length and "
      "data.too_long, or leave the set out"
    )
  return Draw(tuple(names), members, tuple(count(draw.sizes)))


def by_weights(sizes: Sequence[int], weights: Sequence[float | int]) -> list[int]:
  """As many examples as there are of all sets together, in proportion to `weights`.

  Rounded down, what is left over goes to the largest remainders (the first of equals); every
  set has at least one.
  """
  weights = [Fraction(w) for w in weights]
  exact = [sum(sizes) * w / sum(weights) for w in weights]
  counts = [int(x) for x in exact]
  order = sorted(range(len(sizes)), key=lambda s: (counts[s] - exact[s], s))
  for s in order[: sum(sizes) - sum(counts)]:
    counts[s] += 1
  return [max(1, n) for n in counts]


def by_temperature(sizes: Sequence[int], temperature: float | int) -> list[int]:
  """Shares size^(1/T) (T5, arXiv:1910.10683, section 3.5.2, without its limit K; mBERT and mT5
  choose 1/T = 0.7 and 0.3).
  """
  largest = max(sizes)  # no power overflows
  return by_weights(sizes, [(n / largest) ** (1 / temperature) for n in sizes])


def by_epochs(sizes: Sequence[int], epochs: Sequence[float | int]) -> list[int]:
  """Each set so many times, rounded to whole examples, of which there is at least one."""
  pairs = zip(sizes, epochs, strict=True)
  return [max(1, round(Fraction(e) * n)) for n, e in pairs]


def as_the_largest(sizes: Sequence[int]) -> list[int]:
  """As many of each set as the largest has."""
  return [max(sizes)] * len(sizes)


def order(draw: Draw, seed: int, epoch: int) -> np.ndarray:
  """[draw.total] indices of the examples of an epoch, in its order.

  A permutation decides which set each place is of; there the set's examples stand in the order
  of their stream, so that no prefix has one of them twice more often than another.
  """
  sets = np.repeat(np.arange(len(draw.counts)), draw.counts)
  sets = np.random.default_rng((seed, epoch)).permutation(sets)
  found = np.empty(len(sets), np.int64)
  for s, count in enumerate(draw.counts):
    found[sets == s] = _stream(draw, s, seed, epoch * count, (epoch + 1) * count)
  return found


def _stream(draw: Draw, s: int, seed: int, start: int, stop: int) -> np.ndarray:
  """Places start … stop of the endless stream of a set's examples."""
  mine = np.flatnonzero(draw.members == s)
  name = int.from_bytes(hashlib.sha256(draw.names[s].encode()).digest()[:8])
  first, parts = start // len(mine), [mine[:0]]
  for number in range(first, -(-stop // len(mine))):
    parts.append(mine[np.random.default_rng((seed, number, name)).permutation(len(mine))])
  return np.concatenate(parts)[start - first * len(mine) :][: stop - start]


def seen(draw: Draw | None, seed: int, epochs: int, rest, examples: int) -> np.ndarray:
  """[N] how often each of N examples is met in whole epochs and the `rest` of one more.

  draw: None: an epoch holds each once.
  """
  times = np.bincount(rest, minlength=examples)
  if draw is None:
    return times + epochs
  for s, (size, count) in enumerate(zip(draw.sizes, draw.counts, strict=True)):
    passes = epochs * count // size
    times[draw.members == s] += passes
    more = _stream(draw, s, seed, passes * size, epochs * count)
    times += np.bincount(more, minlength=len(times))
  return times


def summary(draw: Draw | None, lengths: np.ndarray, times: np.ndarray) -> list[dict]:
  """What a report says of each set: in an epoch, and in a run that draws examples `times`."""
  if draw is None:
    return []
  found = []
  tokens = lengths if lengths.ndim == 1 else lengths.sum(1)
  for s, (name, size, count) in enumerate(
    zip(draw.names, draw.sizes, draw.counts, strict=True)
  ):
    own = times[draw.members == s].astype(np.int64)
    found.append(
      {
        "name": name,
        "examples": size,
        "an_epoch": count,
        "share": count / draw.total,
        "drawn": int(own.sum()),
        "seen": [int(own.min()), int(own.max())],
        "tokens": int((own * tokens[draw.members == s]).sum()),
      }
    )
  return found


def digest(draw: Draw) -> str:
  """sha256 of all that decides what is drawn, but the seed."""
  total = hashlib.sha256(repr((draw.names, draw.counts)).encode())
  total.update(draw.members.tobytes())
  return total.hexdigest()
