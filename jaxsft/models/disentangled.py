"""Disentangled attention (DeBERTa, arXiv:2006.03654): contents score relative positions.

The score of query i and key j is (q_i·k_j + q_i·K[i-j] + k_j·Q[i-j]) x scale, where K and Q
are projections of a table with a row for each bucket of distances.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxsft.models import attention, attention_layer, layers


@dataclass(frozen=True)
class Relative:
  """How distances are told apart and scored."""

  span: int
  """The table has 2 x span rows: for distances (or buckets of them) -span … span - 1."""
  buckets: int
  """Distances beyond buckets / 2 share logarithmic buckets; 0: every distance has its own."""
  farthest: int
  """With buckets: the distance that the last bucket is made for, plus 1."""
  shared: bool
  """Whether the table is projected as contents are, by q and k; else by pos_q and pos_k."""
  content_to_position: bool
  """q_i·K[i-j]."""
  position_to_content: bool
  """k_j·Q[i-j]."""
  norm: layers.Norm | None
  """On the rows of the table."""


def table(params, arch, dtype):
  """[2 x span,D] as the layers take it."""
  rows = params["embedding"].astype(dtype)
  if arch.relative.norm is None:
    return rows
  norm = layers.Normalise(arch.relative.norm, dtype)
  return norm.apply({"params": params["norm"]}, rows)


def init(arch, key):
  """Random parameters of the table."""
  shape = (2 * arch.relative.span, arch.width)
  params = {"embedding": arch.std * jax.random.normal(key, shape)}
  if arch.relative.norm is not None:
    x = jnp.zeros((1, arch.width))
    norm = layers.Normalise(arch.relative.norm, "float32")
    params["norm"] = norm.init(key, x)["params"]
  return params


def rows_of(relative, distances):
  """The table's row of each distance (query place - key place), a numpy array."""
  if relative.buckets:
    middle = relative.buckets // 2
    far = np.maximum(np.abs(distances), middle).astype(np.float32)
    log = lambda x: np.log(np.asarray(x, np.float32).astype(np.float64)).astype(np.float32)
    steps = log(far / np.float32(middle)) / log((relative.farthest - 1) / middle)
    far = np.ceil(steps * np.float32(middle - 1)) + middle  # rounded as torch rounds float32
    near = np.abs(distances) <= middle
    distances = np.where(near, distances, far * np.sign(distances)).astype(np.int64)
  return np.clip(distances + relative.span, 0, 2 * relative.span - 1)


class Attention(nn.Module):
  """Self-attention whose scores also depend on the distance between places in the row.

  Places of one segment stand in a run, so that distances in a packed row are those alone.
  """

  width: int
  heads: attention_layer.Heads
  relative: Relative
  dtype: str
  std: float
  backend: str

  @nn.compact
  def __call__(self, x, rule, table, *, rate=0.0, seed=None):
    """x [B,T,D], table [2 x span,D] -> [B,T,D]."""
    heads, relative = self.heads, self.relative
    size = heads.count * heads.dim
    project = lambda name: layers.Linear(size, heads.bias, self.dtype, self.std, name=name)
    split = lambda y: y.reshape(*y.shape[:-1], heads.count, heads.dim)
    to_q, to_k = project("q"), project("k")
    q, k, v = split(to_q(x)), split(to_k(x)), split(project("v")(x))
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    ahead = np.arange(1 - x.shape[1], x.shape[1])
    bias = None
    if relative.content_to_position:
      keys = split((to_k if relative.shared else project("pos_k"))(table))
      scores = dot("btnh,rnh->bntr", q, keys[rows_of(relative, -ahead)])
      bias = _by_distance(scores)
    if relative.position_to_content:
      queries = split((to_q if relative.shared else project("pos_q"))(table))
      scores = dot("bsnh,rnh->bnsr", k, queries[rows_of(relative, ahead)])
      scores = _by_distance(scores).swapaxes(2, 3)
      bias = scores if bias is None else bias + scores
    if bias is not None:
      bias = bias * np.float32(heads.scale)
    y = attention.attend(
      q, k, v, rule, scale=heads.scale, bias=bias, backend=self.backend, rate=rate, seed=seed
    )
    y = y.reshape(*y.shape[:2], -1)
    return layers.Linear(self.width, heads.out_bias, self.dtype, self.std, name="o")(y)


def _by_distance(x):
  """x [B,N,T,2T-1] whose last axis is the place of the other token less this one's, plus
  T-1 -> [B,N,T,T] by the other's place; a reshape, where indices would be gathered."""
  B, N, T, _ = x.shape
  flat = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(B, N, -1)
  rows = flat[..., T - 1 : T - 1 + T * (2 * T - 1)].reshape(B, N, T, 2 * T - 1)
  return rows[..., :T]
