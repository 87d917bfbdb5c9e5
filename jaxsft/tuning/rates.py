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
  if layer_decay != 1 and not stacks:
    raise UsageError(
      f"config.optim.layer_decay: found {layer_decay}, expected 1: all layers of this model "
      "have the same weights"
    )
  powers, more, found = distances(tree, stacks), more or {}, {}
  own = select.values(tree, chosen, stacks, patterns or {}, 1.0, "config.optim.rates")
  for path, factors in own.items():
    power = powers[path]
    power = power[chosen.first.get(path, 0) :] if np.ndim(power) else power
    factor = layer_decay**power * factors * more.get(path, 1.0)
    if np.any(factor != 1):
      found[path] = one_or_rows(factor, np.float32)
  return found


def one_or_rows(values, dtype):
  """A number where all values are the same, else an array of `dtype`."""
  values = np.ravel(values)
  return values[0].item() if (values == values[0]).all() else values.astype(dtype)


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
