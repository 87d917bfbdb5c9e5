"""Attention: one rule of who sees whom, and the backends that honour all of it.

A query attends to a key iff both have the same non-zero segment, the key does not stand
later (causal), and it is close (window). `allowed` is the only place that says so.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from jaxsft import sharding
from jaxsft.errors import JaxsftError
from jaxsft.models import layers
from jaxsft.models.layers import Linear

BLOCK = 256  # queries a block on the XLA path; a row has at most MAX_BLOCKS
MAX_BLOCKS = 16
LANES = 128  # splash attention works on multiples of this many tokens
ROWS = ("data", "fsdp")


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["q_segments", "k_segments", "q_places", "k_places"],
  meta_fields=["causal", "window"],
)
@dataclass(frozen=True)
class Rule:
  """Who sees whom."""

  q_segments: Any
  """[B,T] int32, 0 = padding."""
  k_segments: Any
  """[B,S]."""
  causal: bool
  window: int | None = None
  """A key is close if |query place - key place| < window; None: always."""
  q_places: Any = field(default=None)
  """[B,T] or None: 0…T-1, in step with the keys."""
  k_places: Any = field(default=None)
  """[B,S], given with q_places."""


def allowed(rule, queries=slice(None), keys=slice(None)):
  """[B,t,s] bool for slices of the queries and keys: the rule, in full."""
  q, k = rule.q_segments[:, queries, None], rule.k_segments[:, None, keys]
  ok = (q == k) & (q != 0)
  if not rule.causal and rule.window is None:
    return ok
  q_places, k_places = rule.q_places, rule.k_places
  if q_places is None:
    q_places = np.arange(rule.q_segments.shape[1], dtype=np.int32)[None]
    k_places = np.arange(rule.k_segments.shape[1], dtype=np.int32)[None]
  distance = q_places[:, queries, None] - k_places[:, None, keys]
  if rule.causal:
    ok &= distance >= 0
  if rule.window is not None:
    ok &= jnp.abs(distance) < rule.window
  return ok


def asking(rule, places):
  """The rule of a row's own tokens, for the queries at places [B,M] alone; None: all."""
  if places is None:
    return rule
  assert rule.q_places is None, "queries that are not in step with the keys have places"
  keys = jnp.arange(rule.k_segments.shape[1], dtype=jnp.int32)[None]
  segments = layers.at(rule.q_segments, places)
  return Rule(segments, rule.k_segments, rule.causal, rule.window, places, keys)


def attend(q, k, v, rule, *, backend="auto", rate=0.0, seed=None):
  """q [B,T,N,H], k and v [B,S,K,H] -> [B,T,N,H]; scores are scaled by H**-0.5.

  rate, seed [2]: dropout on the probabilities where a seed is given. Padding queries get
  finite values that no other query ever sees. Raises JaxsftError where the named backend
  cannot honour the rule.
  """
  dropping = seed is not None and rate > 0
  if backend == "auto":
    backend = _pick(q, k, rule, dropping)
  else:
    _refuse(backend, q, k, rule, dropping)
  q = q * np.asarray(q.shape[-1] ** -0.5, q.dtype)
  if backend == "cudnn":
    return jax.nn.dot_product_attention(
      q, k, v, mask=allowed(rule)[:, None], scale=1.0, implementation="cudnn"
    )
  if backend == "splash":
    return _splash(q, k, v, rule)
  return _xla(q, k, v, rule, seed if dropping else None, rate if dropping else 0.0)


def _limits(backend, q, k, rule, dropping):
  """What keeps `backend` from honouring this call, or None."""
  platform, (_, T, N, H), (_, S, K, _) = sharding.platform(), q.shape, k.shape
  if backend == "xla":
    return None
  if dropping:
    return "attention dropout"
  if backend == "cudnn":
    if platform not in ("gpu", "cuda"):
      return f"the platform {platform}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
      return f"{q.dtype} (model.dtype must be bfloat16)"
    if H % 8 or H > 128:
      return f"a head dimension of {H} (multiples of 8 up to 128)"
    return None
  if platform != "tpu":
    return f"the platform {platform}"
  if rule.q_places is not None or T != S:
    return "queries that are not in step with the keys (decoding)"
  if T % LANES:
    return f"rows of {T} tokens (multiples of {LANES})"
  mesh = jax.sharding.get_abstract_mesh()
  tensor = 1 if mesh.empty else mesh.shape.get("tensor", 1)
  if N % tensor or K % tensor:
    return f"{K} kv heads over {tensor} tensor shards"
  return None


def _refuse(backend, q, k, rule, dropping):
  if backend not in ("xla", "cudnn", "splash"):
    raise JaxsftError(
      f"found the attention backend {backend!r}, expected auto, xla, cudnn or splash: "
      "set config.model.attention"
    )
  limit = _limits(backend, q, k, rule, dropping)
  if limit:
    raise JaxsftError(
      f"the attention backend {backend!r} cannot honour {limit}: set "
      "config.model.attention to 'auto' or 'xla'"
    )


def _pick(q, k, rule, dropping):
  preferred = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(sharding.platform(), "xla")
  return "xla" if _limits(preferred, q, k, rule, dropping) else preferred


# --- XLA -------------------------------------------------------------------------------
# The G query heads of a kv head are merged into one batched product, so that nothing is
# repeated or permuted at size [T,S]; the backward pass computes the probabilities again
# from the stored log-sum (FlashAttention, arXiv:2205.14135). Causal blocks of queries
# leave out the keys to their right.


def _xla(q, k, v, rule, seed, rate):
  B, T, N, H = q.shape
  K = k.shape[2]
  q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)  # B K G T H
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # B K S H
  out = _core(q, k, v, rule, seed, rate)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _blocks(rule, T, S):
  """(queries, keys) slices that cover everything the rule allows."""
  size = max(BLOCK, -(-T // MAX_BLOCKS))
  if rule.q_places is not None or T != S:
    return [(slice(t, min(t + size, T)), slice(0, S)) for t in range(0, T, size)]
  blocks = []
  for start in range(0, T, size):
    stop = min(start + size, T)
    first, last = 0, stop if rule.causal else S
    if rule.window is not None:
      first = max(0, start - rule.window + 1)
      last = min(last, stop + rule.window - 1)
    blocks.append((slice(start, stop), slice(first, last)))
  return blocks


def _dot(a, b, contract):
  """Batched over B and K; float32 sums."""
  dims = ((contract[:1], contract[1:]), ((0, 1), (0, 1)))
  return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _merge(x):
  """[B,K,G,t,…] -> [B,K,G*t,…]."""
  return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _spread(mask, G):
  """[B,t,s] -> [B,1,G*t,s], a row for every merged query."""
  B, t, s = mask.shape
  return jnp.broadcast_to(mask[:, None, None], (B, 1, G, t, s)).reshape(B, 1, G * t, s)


def _noise(q, seed, rule):
  """Of every query [B,K,G,T]; where a row's queries are at places, that of the whole row."""
  if seed is None:
    return None
  length = q.shape[3] if rule.q_places is None else rule.k_segments.shape[1]
  return layers.row_noise(seed, (*q.shape[:3], length), rule.q_places)


def _drop(p, noise, queries, keys, rate):
  """Probabilities after dropout; a key's noise depends on its place in the row."""
  if noise is None:
    return p
  mask = layers.keep(_merge(noise[:, :, :, queries]), keys.stop, rate)
  return jnp.where(mask[..., keys.start :], p / (1 - rate), 0)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _core(q, k, v, rule, seed, rate):
  return _forward(q, k, v, rule, seed, rate)[0]


def _forward(q, k, v, rule, seed, rate):
  """q [B,K,G,T,H], k and v [B,K,S,H] -> out [B,K,G,T,H] and what the backward needs."""
  G, T, S = q.shape[2], q.shape[3], k.shape[2]
  noise, outs, logs = _noise(q, seed, rule), [], []
  for queries, keys in _blocks(rule, T, S):
    shape = q[:, :, :, queries].shape
    ok = _spread(allowed(rule, queries, keys), G)
    scores = _dot(_merge(q[:, :, :, queries]), k[:, :, keys], (3, 3))
    top = jnp.max(jnp.where(ok, scores, -1e30), -1, keepdims=True)
    p = jnp.where(ok, jnp.exp(scores - top), 0)
    total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)  # padding sees nothing
    dropped = _drop(p, noise, queries, keys, rate).astype(v.dtype)
    outs.append((_dot(dropped, v[:, :, keys], (3, 2)) / total).reshape(shape))
    logs.append((top + jnp.log(total)).reshape(shape[:4]))
  out = jnp.concatenate(outs, 3) if len(outs) > 1 else outs[0]
  log = jnp.concatenate(logs, 3) if len(logs) > 1 else logs[0]
  out = checkpoint_name(out.astype(q.dtype), "attention")
  return out, (q, k, v, rule, seed, out, checkpoint_name(log, "attention"))


def _backward(rate, saved, d_out):
  q, k, v, rule, seed, out, log = saved
  G, T, S = q.shape[2], q.shape[3], k.shape[2]
  noise, parts = _noise(q, seed, rule), []
  dk = dv = None
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1)
  for queries, keys in _blocks(rule, T, S):
    rows = partial(jnp.expand_dims, axis=-1)
    block, d_block = _merge(q[:, :, :, queries]), _merge(d_out[:, :, :, queries])
    ok = _spread(allowed(rule, queries, keys), G)
    scores = _dot(block, k[:, :, keys], (3, 3))
    p = jnp.where(ok, jnp.exp(scores - rows(_merge(log[:, :, :, queries]))), 0)
    dp = _drop(_dot(d_block, v[:, :, keys], (3, 3)), noise, queries, keys, rate)
    ds = (p * (dp - rows(_merge(delta[:, :, :, queries])))).astype(q.dtype)
    dropped = _drop(p, noise, queries, keys, rate).astype(q.dtype)
    dq = _dot(ds, k[:, :, keys], (3, 2)).reshape(q[:, :, :, queries].shape)
    parts.append(dq.astype(q.dtype))
    dk = _add(dk, _dot(ds, block, (2, 2)), keys, k.shape)
    dv = _add(dv, _dot(dropped, d_block, (2, 2)), keys, v.shape)
  dq = jnp.concatenate(parts, 3) if len(parts) > 1 else parts[0]
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


def _add(total, part, keys, shape):
  """total [B,K,S,H] with `part` added at `keys`; None counts as zeros."""
  if total is None and part.shape == shape:
    return part
  total = jnp.zeros(shape, part.dtype) if total is None else total
  return total.at[:, :, keys].add(part)


_core.defvjp(_forward, _backward)


# --- TPU -------------------------------------------------------------------------------


def _splash(q, k, v, rule, interpret=False):
  """The Pallas kernel, on every device for its own rows and heads."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash  # TPU only

  mesh = jax.sharding.get_abstract_mesh()
  tensor = 1 if mesh.empty else mesh.shape.get("tensor", 1)
  T, N = q.shape[1], q.shape[2] // tensor
  if rule.window is not None:
    near = rule.window - 1
    mask = splash.LocalMask((T, T), (near, 0 if rule.causal else near), 0)
  else:
    mask = splash.CausalMask((T, T)) if rule.causal else splash.FullMask((T, T))
  size = next(size for size in (512, 384, 256, LANES) if T % size == 0)
  forward = dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), size)
  backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
  backward = dict.fromkeys((*backward, "block_q_dq", "block_kv_dq"), size)
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([mask] * N),
    block_sizes=splash.BlockSizes(**forward, **backward),
    residual_checkpoint_name="attention",
    interpret=interpret,
  )

  def local(q, k, v, segments):
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    ids = splash.SegmentIds(segments, segments)
    return jax.vmap(kernel)(*heads_first, ids).transpose(0, 2, 1, 3)

  if mesh.size > 1:
    heads = P(ROWS, None, "tensor")
    local = jax.shard_map(
      local, in_specs=(heads, heads, heads, P(ROWS)), out_specs=heads, check_vma=False
    )
  return local(q, k, v, rule.q_segments)


# --- the cache -------------------------------------------------------------------------
# Rows and heads are one axis, [B*K,S,H]: the products then take the cache as it lies, and it
# is updated in place. From [B,S,K,H] XLA:CPU would copy all of it, transposed, at every token.


def _store(held, new, slots):
  """held [B*K,S,H] with new [B,T,K,H] at slots [B,T]; slots of S and more are left out."""
  B, T, K, H = new.shape
  new = new.transpose(0, 2, 1, 3).reshape(B * K, T, H).astype(held.dtype)
  rows = jnp.arange(B * K)[:, None]
  return held.at[rows, jnp.repeat(slots, K, axis=0)].set(new, mode="drop")


def _of_rows(held, B):
  """held [B*K,S,H] as keys or values [B,S,K,H]."""
  return held.reshape(B, -1, *held.shape[1:]).transpose(0, 2, 1, 3)


# --- the module ------------------------------------------------------------------------


class SelfAttention(nn.Module):
  """Projections around `attend`; with a cache the keys and values of earlier calls too."""

  width: int
  heads: int
  kv_heads: int
  head_dim: int
  bias: bool
  dtype: str
  std: float
  backend: str

  @nn.compact
  def __call__(self, x, rule, *, rotation=None, rate=0.0, seed=None, cache=None, places=None):
    """x [B,T,D] -> ([B,T,D], the cache with the new keys and values or None).

    places [B,M]: only these tokens ask, the result is [B,M,D]; None: all.
    cache: (k, v, slots): k and v [B*K,S,H], slots [B,T] where the new ones go; a slot of
    S or more is left out. The rule then speaks of all S slots.
    """
    project = partial(Linear, bias=self.bias, dtype=self.dtype, std=self.std)

    def split(name, x, heads):
      y = project(heads * self.head_dim, name=name)(x)
      return y.reshape(*x.shape[:2], heads, self.head_dim)

    q = split("q", layers.at(x, places), self.heads)
    k, v = split("k", x, self.kv_heads), split("v", x, self.kv_heads)
    if rotation is not None:
      q = layers.rotate(q, tuple(layers.at(r, places) for r in rotation))
      k = layers.rotate(k, rotation)
    if cache is not None:
      *past, slots = cache
      cache = tuple(_store(*pair, slots) for pair in zip(past, (k, v), strict=True))
      k, v = (_of_rows(held, len(slots)).astype(q.dtype) for held in cache)
    backend = self.backend if places is None else "xla"  # few queries need no kernel
    y = attend(q, k, v, asking(rule, places), backend=backend, rate=rate, seed=seed)
    return project(self.width, name="o")(y.reshape(*y.shape[:2], -1)), cache
