"""Which leaves train, in which of their layers: all, a head, the last layers, a kind, patterns.

A leaf that is stacked [L,…] has a path, "layers/attn/q/kernel", and one for each of its
layers, "layers.11/attn/q/kernel"; patterns are searched in both.
"""

import difflib
import re
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxsft.errors import UsageError

HEAD = r"^(head|dense|dense_norm|lm_head)/"
TOP = r"^(decoder/)?norm/|^project/"
"""What stands between the last layer and the heads."""
KINDS = {"bias": r"(^|/)bias$", "norms": r"norm/(scale|bias)$"}


@dataclass(frozen=True)
class Choice:
  """What trains of a parameter tree; `path in choice` says whether anything of a leaf does."""

  paths: frozenset
  """Of the leaves of which something trains."""
  first: dict = field(default_factory=dict)
  """Path -> n: the rows [:n] of the leaf are frozen, and parameters of their own."""
  masks: dict = field(default_factory=dict)
  """Path -> a bool for each row: the leaf is one array, but only these rows are updated."""

  def __contains__(self, path):
    return path in self.paths

  def trained(self, path, leaf):
    """How many numbers of a leaf train."""
    if path not in self.paths:
      return 0
    rows = leaf.shape[0] if leaf.shape else 1
    share = sum(self.masks.get(path, (True,) * rows)[self.first.get(path, 0) :])
    return leaf.size // max(rows, 1) * share


def paths(tree, prefix=""):
  """("layers/attn/q/kernel", leaf) for every leaf of a nested dict, in order."""
  for name, value in tree.items():
    path = f"{prefix}{name}"
    if isinstance(value, dict):
      yield from paths(value, f"{path}/")
    else:
      yield path, value


def addresses(path, leaf, stacks):
  """["layers.0/attn/q/kernel", …] of a stacked leaf, one a row; [] of another.

  stacks: of models.Network; rows of "later" are layers, too, from the second on.
  """
  for stack, first in stacks.items():
    if path.startswith(f"{stack}/"):
      name = stack.removesuffix("later") + "layers" if stack.endswith("later") else stack
      rest = path[len(stack) + 1 :]
      return [f"{name}.{first + row}/{rest}" for row in range(leaf.shape[0])]
  return []


def choose(tree, method, patterns=(), *, stacks, has_head=True):
  """The `Choice` of a parameter tree.

  method: as config.tune.method. stacks: {path of stacked leaves: layer of their first row},
  the top one last; {}: all layers share their leaves. has_head: whether the task has a head
  of its own, which "bias" and "norms" train, too. Raises UsageError where a pattern or the
  whole choice matches nothing, and where there are no k layers to choose.
  """
  if method == "all":
    return Choice(frozenset(path for path, _ in paths(tree)))
  if method.startswith("last:"):
    return _last(tree, int(method.removeprefix("last:")), stacks)
  if method in KINDS:
    return _kind(tree, method, has_head)
  if method == "head":
    patterns = (HEAD,)
  return _cut_alike(tree, matching(tree, patterns, stacks, "config.tune.train"), stacks)


def matching(tree, patterns, stacks, key):
  """The `Choice` of what any of `patterns` matches, none of which may match nothing.

  key: of the config, for the error.
  """
  rows = {}
  for pattern in patterns:
    for path, some in _some_rows_of(tree, pattern, stacks, key).items():
      rows[path] = tuple(map(any, zip(rows.get(path, some), some, strict=True)))
  masks = {path: some for path, some in rows.items() if not all(some)}
  return Choice(frozenset(rows), masks=masks)


def rows_of(tree, pattern, stacks, key):
  """{path: a bool a row} of the leaves that a pattern matches; (True,) of one without rows."""
  try:
    search = re.compile(pattern).search
  except re.error as error:
    raise UsageError(f"{key}: {pattern!r} is no valid pattern: {error}") from None
  found = {}
  for path, leaf in paths(tree):
    own = addresses(path, leaf, stacks)
    rows = tuple(bool(search(path) or search(name)) for name in own or [path])
    if any(rows):
      found[path] = rows
  return found


def _some_rows_of(tree, pattern, stacks, key):
  """`rows_of` a pattern that must match something."""
  found = rows_of(tree, pattern, stacks, key)
  if not found:
    raise UsageError(
      f"{key}: {pattern!r} matches no parameter; near it are {near(tree, pattern, stacks)}"
    )
  return found


def values(tree, chosen, stacks, patterns, default, key):
  """{path: array of a value for each row that trains, or for the leaf} of what trains.

  patterns: {pattern: value}; the first that matches a path, or that of a layer, counts, else
  `default`. Raises UsageError for a pattern that matches nothing that trains, or nothing that
  those before it leave; key: of the config, for the error.
  """
  taken = set()
  for pattern in patterns:
    found = _some_rows_of(tree, pattern, stacks, key)
    hits = {
      (path, n)
      for path, rows in found.items()
      for n, hit in enumerate(rows)
      if hit and path in chosen and n >= chosen.first.get(path, 0)
      if chosen.masks.get(path, (True,) * len(rows))[n]
    }
    if not hits:
      raise UsageError(
        f"{key}: {pattern!r} matches only parameters that do not train, such as "
        f"{next(iter(found))}; see config.tune"
      )
    if hits <= taken:
      raise UsageError(
        f"{key}: {pattern!r} matches only parameters that patterns before it match, such as "
        f"{min(hits)[0]}; the first match counts: put it before them, or leave it out"
      )
    taken |= hits

  def one(path, leaf):
    first = lambda *names: next(
      (v for p, v in patterns.items() if any(re.search(p, name) for name in names)), default
    )
    rows = [first(path, name) for name in addresses(path, leaf, stacks)]
    return np.array(rows[chosen.first.get(path, 0) :] or first(path))

  return {path: one(path, leaf) for path, leaf in paths(tree) if path in chosen}


def near(tree, pattern, stacks, most=5):
  """The paths that look most like a pattern, as a list for people."""
  names = [path for path, _ in paths(tree)]
  if re.search(r"layers\\?\.\d", pattern):
    names = [name for path, leaf in paths(tree) for name in addresses(path, leaf, stacks)]
  return ", ".join(difflib.get_close_matches(pattern, names, n=most, cutoff=0.0))


def _named(tree, pattern):
  return {path for path, _ in paths(tree) if re.search(pattern, path)}


def _kind(tree, method, has_head):
  """All leaves of a kind, and the task's head."""
  own = _named(tree, KINDS[method])
  if not {path for path in own if not re.search(HEAD, path)}:
    raise UsageError(
      f"config.tune.method={method!r}: found no {method} in this model, expected some "
      "to train; choose another method"
    )
  return Choice(frozenset(own | (_named(tree, HEAD) if has_head else set())))


def _last(tree, k, stacks):
  """The last k layers of the top stack, and everything between them and the loss."""
  key = f"config.tune.method='last:{k}'"
  if not stacks:
    raise UsageError(
      f"{key}: all layers of this model have the same weights, so none of them trains alone; "
      "choose 'all', 'head' or 'regex'"
    )
  tops = {stack: first for stack, first in stacks.items() if "encoder" not in stack}
  depth = max(leaf.shape[0] + first for _, leaf, first in _stacked(tree, tops))
  if not 1 <= k <= depth:
    what = "decoder" if "encoder/layers" in stacks else "model"
    raise UsageError(f"{key}: found {k}, expected 1 to {depth}: the {what} has {depth} layers")
  cuts = {path: max(depth - k - first, 0) for path, _, first in _stacked(tree, tops)}
  first = {path: n for path, n in cuts.items() if n}
  return Choice(frozenset(cuts) | _named(tree, f"{TOP}|{HEAD}"), first=first)


def _stacked(tree, stacks):
  """(path, leaf, layer of its first row) of all leaves in `stacks`."""
  for path, leaf in paths(tree):
    for stack, first in stacks.items():
      if path.startswith(f"{stack}/"):
        yield path, leaf, first


def _cut_alike(tree, choice, stacks):
  """The choice with stacks cut in two of which whole layers, from one on, are chosen."""
  cuts = {}
  for stack, offset in stacks.items():
    leaves = list(_stacked(tree, {stack: offset}))
    masks = {choice.masks.get(path) for path, _, _ in leaves}
    mask = masks.pop() if len(masks) == 1 else None
    if mask and list(mask) == sorted(mask):
      cuts |= {path: mask.index(True) for path, _, _ in leaves}
  masks = {path: mask for path, mask in choice.masks.items() if path not in cuts}
  return Choice(choice.paths, cuts, masks)


def split(tree, choice, prefix=""):
  """(what trains, the rest) of a nested dict; a leaf that is cut is in both, see step.merge.

  Leaves are arrays or shapes.
  """
  inside, outside = {}, {}
  for name, value in tree.items():
    path = f"{prefix}{name}"
    if isinstance(value, dict):
      a, b = split(value, choice, f"{path}/")
      if a:
        inside[name] = a
      if b:
        outside[name] = b
    elif path in choice.first:
      n = choice.first[path]
      outside[name], inside[name] = _rows(value, 0, n), _rows(value, n, value.shape[0])
    else:
      (inside if path in choice else outside)[name] = value
  return inside, outside


def _rows(leaf, start, stop):
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((stop - start, *leaf.shape[1:]), leaf.dtype)
  return leaf[start:stop]


def passed(tree, choice):
  """{path: share of a leaf through which the backward pass goes}.

  It ends at the lowest layer of which something trains; where a mask chooses, at the bottom.
  """
  top = re.compile(f"{TOP}|{HEAD}").search
  whole = [path for path in choice.paths if path not in choice.first and not top(path)]
  source = any(path.startswith(("encoder/", "embed/")) for path in whole)

  def share(path, leaf):
    if path in choice.first:
      return 1 - choice.first[path] / leaf.shape[0]
    below = source if path.startswith("encoder/") else bool(whole)
    return float(below or top(path) is not None)

  return {path: share(path, leaf) for path, leaf in paths(tree)}
