"""How fast each leaf learns, as multiples of the learning rate: by depth, by pattern."""

import re

import numpy as np

from jaxsft.errors import UsageError
from jaxsft.tuning import select

LOWEST = ("conv/", "conv_norm/")
"""Leaves outside of the stack that belong to its first layer."""


def multipliers(tree, chosen, stacks, *, layer_decay=1.0, patterns=None, more=None):
  """{path: factor of the learning rate} of what trains, without those that are 1.

  A factor is a float, or float32 [rows] for the rows of a stacked leaf that train. They
  multiply: layer_decay ** distance; that of the first of `patterns` {pattern: factor} that
  matches a path, or the path of a layer; more {path: factor}, of an adapter. Raises
  UsageError for a pattern that matches nothing that trains, and for layers that share their
  weights.
  """
  patterns, more, found = patterns or {}, more or {}, {}
  if layer_decay != 1 and not stacks:
    raise UsageError(
      f"config.optim.layer_decay: found {layer_decay}, expected 1: all layers of this model "
      "have the same weights"
    )
  _check(tree, chosen, stacks, patterns)
  powers = distances(tree, stacks)
  for path, leaf in select.paths(tree):
    if path not in chosen:
      continue
    names = [(path, name) for name in select.addresses(path, leaf, stacks)] or [(path,)]
    own = np.array([_of(patterns, name) for name in names])
    factor = layer_decay ** powers[path] * own * more.get(path, 1.0)
    factor = np.broadcast_to(factor, len(names))[chosen.first.get(path, 0) :]
    if (factor != 1).any():
      same = (factor == factor[0]).all()
      found[path] = float(factor[0]) if same else factor.astype(np.float32)
  return found


def distances(tree, stacks):
  """{path: how many layers a leaf, or each row of it, is away from the heads}.

  As in BEiT (arXiv:2106.08254): heads and the last norm 0, the last layer of a stack 1, its
  first one L, embeddings and tables of relative positions L + 1. Of two stacks each counts
  from its own top.
  """
  depths = {}
  for path, leaf in select.paths(tree):
    for stack, first in stacks.items():
      if path.startswith(f"{stack}/"):
        depths[stack] = leaf.shape[0] + first
  deepest = max(depths.values(), default=0)

  def one(path, leaf):
    for stack, first in stacks.items():
      if path.startswith(f"{stack}/"):
        return depths[stack] - first - np.arange(leaf.shape[0])
    if re.search(f"{select.TOP}|{select.HEAD}", path):
      return 0
    if path.startswith("encoder/norm/"):
      return 1
    return deepest + (not path.startswith(LOWEST))

  return {path: one(path, leaf) for path, leaf in select.paths(tree)}


def _of(patterns, names):
  """The factor of the first pattern that matches one of the names; 1 where none does."""
  hits = (f for p, f in patterns.items() if any(re.search(p, name) for name in names))
  return next(hits, 1.0)


def _check(tree, chosen, stacks, patterns):
  key = "config.optim.rates"
  for pattern in patterns:
    found = select.rows_of(tree, pattern, stacks, key)
    if not found:
      near = select.near(tree, pattern, stacks)
      raise UsageError(f"{key}: {pattern!r} matches no parameter; near it are {near}")
    if not any(path in chosen for path in found):
      raise UsageError(
        f"{key}: {pattern!r} matches only parameters that do not train, such as "
        f"{next(iter(found))}; see config.tune"
      )
