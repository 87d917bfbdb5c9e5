"""Relative positions of T5 (arXiv:1910.10683): a number a head for each bucket of distances."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn


@dataclass(frozen=True)
class Relative:
  """Buckets of distances between a query and a key."""

  buckets: int
  """Half of them for keys behind and half for keys ahead, where both are seen."""
  max_distance: int
  """From here on all distances are in one bucket."""
  per_layer: bool
  """Whether every layer has its own table (UMT5); else the stack has one."""


def bucket_table(relative, causal):
  """int32 [2 M + 1]: the bucket of each distance -M…M (key place - query place), M the largest.

  Near distances have a bucket each, far ones share them by their logarithm; causal: all that
  lies ahead is at distance 0. Rounded as torch rounds float32.
  """
  far, half = relative.max_distance, relative.buckets
  distance = np.arange(-far, far + 1)
  ahead = np.zeros_like(distance)
  if causal:
    distance = np.maximum(-distance, 0)
  else:
    half //= 2
    ahead, distance = half * (distance > 0), np.abs(distance)
  exact = half // 2
  ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
  log = np.log(ratio.astype(np.float64)).astype(np.float32)
  shared = log / np.float32(math.log(far / exact)) * np.float32(half - exact)
  shared = np.minimum(exact + shared.astype(np.int32), half - 1)
  return (ahead + np.where(distance < exact, distance, shared)).astype(np.int32)


class Bias(nn.Module):
  """What is added to the scores of an attention, by distance."""

  relative: Relative
  heads: int
  causal: bool
  std: float

  @nn.compact
  def __call__(self, reach):
    """float32 [1|B,N,T,S]. reach: (T, S) where both count places from 0, or the distances
    key place - query place [B,T,S]."""
    relative = self.relative
    shape = (relative.buckets, self.heads)
    table = self.param("embedding", nn.initializers.normal(self.std), shape)
    buckets, far = bucket_table(relative, self.causal), relative.max_distance
    if not isinstance(reach, tuple):
      ids = jnp.take(buckets, jnp.clip(reach, -far, far) + far)
      return jnp.moveaxis(jnp.take(table, ids, axis=0), -1, 1)
    T, S = reach
    # Row t is the row of distances, S - 1 … 1 - T, turned by t: no gather of T S numbers.
    turned = np.r_[0:S, -T:0]
    ids = buckets[np.clip(turned, -far, far) + far]
    values = jnp.take(table, ids, axis=0).T  # N, S + T
    rows = jnp.broadcast_to(values[:, None], (self.heads, T, S + T)).reshape(self.heads, -1)
    rows = rows[:, : T * (S + T - 1)].reshape(self.heads, T, S + T - 1)
    return rows[None, :, :, :S]
