"""One attention of a Transformer: projections around `attention.attend`, and its cache."""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from jaxsft import sharding
from jaxsft.models import attention, layers, rope


@dataclass(frozen=True)
class Heads:
  """What the heads of one attention are; no field has a default."""

  count: int
  """N, query heads."""
  kv: int
  """K, heads of keys and values."""
  dim: int
  """H."""
  bias: bool
  """Of the projections to queries, keys and values."""
  out_bias: bool
  scale: float | None
  """Of the scores; None: H**-0.5."""
  softcap: float | None
  norm: layers.Norm | None
  """On queries and keys, before they turn."""
  norm_over: str
  """"head": over H, one scale for all heads; "all": over N H."""


def plain_heads(count, dim, bias=True, scale=None):
  """`Heads` as the first Transformers had them: no groups, caps or norms."""
  return Heads(count, count, dim, bias, bias, scale, softcap=None, norm=None, norm_over="head")


class Attention(nn.Module):
  """Projections around `attend`; with a cache the keys and values of earlier calls too."""

  width: int
  heads: Heads
  dtype: str
  std: float
  backend: str

  @nn.compact
  def __call__(
    self,
    x,
    rule,
    *,
    source=None,
    kept=None,
    rotation=None,
    interleaved=False,
    bias=None,
    rate=0.0,
    seed=None,
    cache=None,
    places=None,
  ):
    """x [B,T,D] -> ([B,T,D], the cache with the new keys and values or None).

    source [B,S,D]: what keys and values are made of; None: x. kept: (k, v), those of a source
    that were made before, see `keys_and_values`; where the rule has fewer rows than x, those
    of x that stand side by side are queries of one source. rotation: of `rope.rotations`.
    bias [1|B,N,T,S]: see `attend`. places [B,M]: only these tokens ask, the result is
    [B,M,D]; None: all. cache: (k, v, slots): k and v [B*K,S,H], slots [B,T] where the new
    ones go; a slot of S or more is left out. The rule then speaks of all S slots.
    """
    heads, source = self.heads, x if source is None else source
    project = partial(layers.Linear, bias=heads.bias, dtype=self.dtype, std=self.std)
    alike = () if kept is not None else ("k", "v")
    alike = ("q", *alike) if source is x and places is None else alike
    low = layers.together(self.variables.get("params", {}), alike, source, self.dtype).get
    q = project(heads.count * heads.dim, name="q")(layers.at(x, places), low("q"))
    q = self._normed("q", q)
    asked = q.shape[:2]
    if kept is not None:
      q = q.reshape(*rule.q_segments.shape, *q.shape[2:])
      k, v = (_of_rows(held, len(q)).astype(q.dtype) for held in kept)
    else:
      k = self._normed("k", project(heads.kv * heads.dim, name="k")(source, low("k")))
      v = self._split(project(heads.kv * heads.dim, name="v")(source, low("v")))
    if rotation is not None:
      q = rope.rotate(q, tuple(layers.at(r, places) for r in rotation), interleaved)
      k = rope.rotate(k, rotation, interleaved)
    if cache is not None:
      *past, slots = cache
      cache = tuple(_store(*pair, slots) for pair in zip(past, (k, v), strict=True))
      k, v = (_of_rows(held, len(slots)).astype(q.dtype) for held in cache)
    y = attention.attend(
      q,
      k,
      v,
      attention.asking(rule, places),
      scale=heads.scale,
      softcap=heads.softcap,
      bias=_asking(bias, places),
      backend=self.backend if places is None else "xla",  # few queries need no kernel
      rate=rate,
      seed=seed,
    )
    y = y.reshape(*asked, -1)
    out = layers.Linear(self.width, heads.out_bias, self.dtype, self.std, name="o")
    return out(y), cache

  def _split(self, y):
    """[B,T,n*H] -> [B,T,n,H]."""
    return y.reshape(*y.shape[:2], -1, self.heads.dim)

  def _normed(self, name, y):
    """Queries or keys [B,T,n*H] -> [B,T,n,H], normalised where the heads have a norm."""
    if self.heads.norm is None:
      return self._split(y)
    norm = layers.Normalise(self.heads.norm, self.dtype, name=f"{name}_norm")
    return self._split(norm(y)) if self.heads.norm_over == "all" else norm(self._split(y))


def _asking(bias, places):
  """A bias [1|B,N,T,S] of the scores at places [B,M] of queries; None: of all."""
  if bias is None or places is None:
    return bias
  rows = jnp.broadcast_to(bias, (len(places), *bias.shape[1:]))
  return jnp.take_along_axis(rows, places[:, None, :, None], axis=2)


# --- the cache -------------------------------------------------------------------------
# Rows and heads are one axis, [B*K,S,H]: the products then take the cache as it lies, and it
# is updated in place. From [B,S,K,H] XLA:CPU would copy all of it, transposed, at every token.


def keys_and_values(params, source, heads):
  """(k, v), each [B*K,S,H], of a source [B,S,D], for `kept`; heads have no norm."""
  assert heads.norm is None, "kept keys are not normalised"
  made = (layers.linear(params[name], source, source.dtype) for name in ("k", "v"))
  shape = (*source.shape[:2], heads.kv, heads.dim)
  turn = lambda y: y.reshape(shape).transpose(0, 2, 1, 3).reshape(-1, shape[1], heads.dim)
  return tuple(over_rows(turn(y)) for y in made)


def _store(held, new, slots):
  """held [B*K,S,H] with new [B,T,K,H] at slots [B,T]; slots of S and more are left out."""
  B, T, K, H = new.shape
  new = new.transpose(0, 2, 1, 3).reshape(B * K, T, H).astype(held.dtype)
  rows = jnp.arange(B * K)[:, None]
  return over_rows(held.at[rows, jnp.repeat(slots, K, axis=0)].set(new, mode="drop"))


def take_rows(x, rows):
  """Of B groups of neighbouring rows x [B*G,…] those at rows [B,W] of each, [B*W,…]."""
  B, W = rows.shape
  groups = x.reshape(B, -1, *x.shape[1:])
  index = rows.reshape(B, W, *(1,) * (x.ndim - 1))
  return jnp.take_along_axis(groups, index, axis=1).reshape(B * W, *x.shape[1:])


def take_cached_rows(held, rows, K):
  """`take_rows` of held [B*G*K,S,H], or of a stack [L,…] of them."""
  B, W = rows.shape
  *lead, _, S, H = held.shape
  held = held.reshape(*lead, B, -1, K, S, H)
  index = rows.reshape(*(1,) * len(lead), B, W, 1, 1, 1)
  held = jnp.take_along_axis(held, index, axis=len(lead) + 1)
  return over_rows(held.reshape(*lead, B * W * K, S, H))


def over_rows(held):
  """held [...,B*K,S,H] on the mesh as its rows lie; every device of a row has all heads."""
  return sharding.constrain(held, *(None,) * (held.ndim - 3), sharding.ROWS, None, None)


def _of_rows(held, B):
  """held [B*K,S,H] as keys or values [B,S,K,H]."""
  return held.reshape(B, -1, *held.shape[1:]).transpose(0, 2, 1, 3)
