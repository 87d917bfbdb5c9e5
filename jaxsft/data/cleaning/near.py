"""Texts that nearly equal one another: the Jaccard index of their shingles.

Candidates come from MinHash and banding (Broder 1997; Leskovec et al., Mining of Massive
Datasets, chapter 3) of the package datasketch; every one of them is compared exactly, so that
none is taken for another that is not.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxsft.data import scripts
from jaxsft.errors import UsageError

SHINGLE = 5
"""Words of a shingle; characters where a script has no spaces."""
HASHES = 128
SEED = 1
EASY = 0.9
"""Threshold from which on bands find more than is asked for: too few would be left."""
COSTS = (0.05, 0.95)
"""What a candidate that is none, and one that is missed, cost when bands are chosen."""


def shingles(text: str) -> frozenset[int]:
  """Hashes of the runs of SHINGLE words of a text; one of all words where there are fewer.

  Where most letters are of a script without spaces, of its characters.
  """
  letters = [c for c in text if c.isalpha()]
  unspaced = 2 * sum(map(scripts.unspaced, letters)) > len(letters)
  units: Sequence[str] = "".join(text.split()) if unspaced else text.split()
  last = max(len(units) - SHINGLE, 0)
  runs = ("\x00".join(units[i : i + SHINGLE]) for i in range(last + 1))
  return frozenset(_hash(run) for run in runs)


def _hash(run: str) -> int:
  digest = hashlib.blake2b(run.encode(errors="surrogatepass"), digest_size=8).digest()
  return int.from_bytes(digest)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
  """What two sets share of what they have together."""
  both = len(a & b)
  return both / (len(a) + len(b) - both)


class Index:
  """Texts met so far; each that is added is unlike all others."""

  def __init__(self, threshold: float | int):
    try:
      import datasketch  # an extra
    except ModuleNotFoundError:
      raise UsageError(
        f"config.clean.near_duplicates={threshold} needs the package datasketch; install it: "
        "pip install 'jaxsft[clean]'"
      ) from None
    self._threshold = threshold
    self._empty = datasketch.MinHash(HASHES, seed=SEED, hashfunc=int, scheme="affine32")
    self._bands = datasketch.MinHashLSH(min(threshold, EASY), HASHES, weights=COSTS)
    self._known: list[tuple[frozenset[int], Any]] = []

  def find(self, text: str) -> Any | None:
    """What the first text that nearly equals this one was added with; None: there is none."""
    return self._find(*self._read(text))

  def find_or_add(
    self, text: str, value: Any, fits: Callable[[Any], bool] = lambda value: True
  ) -> Any | None:
    """`find` of those whose value fits; where there is none, the text is added with a value."""
    own, hashed = self._read(text)
    found = self._find(own, hashed, fits)
    if found is None:
      self.add(text, value, (own, hashed))
    return found

  def add(self, text: str, value: Any, known: tuple | None = None):
    """Adds a text, like others or not."""
    own, hashed = known or self._read(text)
    self._bands.insert(len(self._known), hashed, check_duplication=False)
    self._known.append((own, value))

  def _read(self, text):
    own, hashed = shingles(text), self._empty.copy()
    hashed.update_batch([value & 0xFFFFFFFF for value in own])
    return own, hashed

  def _find(self, own, hashed, fits=lambda value: True):
    for k in sorted(self._bands.query(hashed)):
      shingled, value = self._known[k]
      if fits(value) and jaccard(own, shingled) >= self._threshold:
        return value
    return None
