"""A stack of layers in two parts: the first ones frozen, the last ones trained.

Each part is an array of its own, so that no gradient and no moment of a frozen layer exists,
and no backward pass goes through it.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parts:
  """A leaf [L,…] of a stack as the rows of its first layers and those of its last ones."""

  first: Any
  """[n,…]"""
  last: Any
  """[L-n,…]"""

  @property
  def shape(self):
    return (len(self.first) + len(self.last), *self.first.shape[1:])

  def rows(self, start, stop):
    """[stop-start,…]: of one part, without a copy where it is all of that."""
    n = len(self.first)
    leaf, start, stop = (
      (self.first, start, stop) if stop <= n else (self.last, start - n, stop - n)
    )
    return leaf if (start, stop) == (0, len(leaf)) else leaf[start:stop]


def is_parts(leaf):
  return isinstance(leaf, Parts)


def cut(params):
  """Whether a leaf of a tree is in parts."""
  return any(map(is_parts, jax.tree.leaves(params, is_leaf=is_parts)))


def pieces(params):
  """[(tree, slice of the layers)] of a tree of leaves [L,…], cut where one of them is."""
  leaves = jax.tree.leaves(params, is_leaf=is_parts)
  bounds = {0, leaves[0].shape[0]} | {len(x.first) for x in leaves if is_parts(x)}

  def rows(start, stop):
    some = lambda x: x.rows(start, stop) if is_parts(x) else x[start:stop]
    return jax.tree.map(some, params, is_leaf=is_parts)

  return [(rows(*ends), slice(*ends)) for ends in itertools.pairwise(sorted(bounds))]


def whole(params):
  """The tree with every leaf in one part: a copy of those that were in two."""
  one = lambda x: jnp.concatenate([x.first, x.last]) if is_parts(x) else x
  return jax.tree.map(one, params, is_leaf=is_parts)
