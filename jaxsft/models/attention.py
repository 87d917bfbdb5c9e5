"""Attention: one rule of who sees whom, and the backends that honour all of it.

A query attends to a key iff both have the same non-zero segment, the key does not stand
later (causal), and it is close (window). `allowed` is the only place that says so.
The projections around it are in attention_layer.py.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from jaxsft import sharding
from jaxsft.errors import JaxsftError
from jaxsft.models import layers

BLOCK = 256  # queries a block on the XLA path; a row has at most MAX_BLOCKS
MAX_BLOCKS = 16
LANES = 128  # splash attention works on multiples of this many tokens
ROWS = sharding.ROWS


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["q_segments", "k_segments", "q_places", "k_places"],
  meta_fields=["causal", "window", "length"],
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
  length: int | None = None
  """Of the whole row, where the queries are some of its places."""


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
  """The rule for the queries at places [B,M] of the rows alone; None: all."""
  if places is None:
    return rule
  assert rule.q_places is None, "queries that are not in step with the keys have places"
  keys = jnp.arange(rule.k_segments.shape[1], dtype=jnp.int32)[None]
  segments, length = layers.at(rule.q_segments, places), rule.q_segments.shape[1]
  return Rule(segments, rule.k_segments, rule.causal, rule.window, places, keys, length)


def attend(
  q,
  k,
  v,
  rule,
  *,
  scale=None,
  softcap=None,
  bias=None,
  backend="auto",
  rate=0.0,
  seed=None,
):
  """q [B,T,N,H], k and v [B,S,K,H] -> [B,T,N,H]; scores are scaled by `scale`, or H**-0.5.

  softcap: scores are bent to cap x tanh(score / cap). bias [1 or B,N,T,S] float32 is added
  to the scores (after the softcap) and differentiable. rate, seed [2]: dropout on the
  probabilities where a seed is given. Padding queries get finite values that no other query
  ever sees. Raises JaxsftError where the named backend cannot honour the rule.
  """
  dropping = seed is not None and rate > 0
  extras = {"attention dropout": dropping, "additive biases": bias is not None}
  extras = [name for name, wanted in extras.items() if wanted]
  if backend == "auto":
    backend = _pick(q, k, rule, softcap, extras)
  else:
    _refuse(backend, q, k, rule, softcap, extras)
  q = q * np.asarray(q.shape[-1] ** -0.5 if scale is None else scale, q.dtype)
  if backend == "cudnn":
    return jax.nn.dot_product_attention(
      q, k, v, mask=allowed(rule)[:, None], scale=1.0, implementation="cudnn"
    )
  if backend == "splash":
    return _splash(q, k, v, rule, softcap)
  settings = (rate if dropping else 0.0, softcap)
  return _xla(q, k, v, bias, rule, seed if dropping else None, settings)


def _limits(backend, q, k, rule, softcap, extras):
  """What keeps `backend` from honouring this call, or None."""
  platform, (_, T, N, H), (_, S, K, _) = sharding.platform(), q.shape, k.shape
  if backend == "xla":
    return None
  if extras:
    return extras[0]
  if backend == "cudnn":
    if softcap is not None:
      return "a softcap on the scores"
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


def _refuse(backend, q, k, rule, softcap, extras):
  if backend not in ("xla", "cudnn", "splash"):
    raise JaxsftError(
      f"found the attention backend {backend!r}, expected auto, xla, cudnn or splash: "
      "set config.model.attention"
    )
  limit = _limits(backend, q, k, rule, softcap, extras)
  if limit:
    raise JaxsftError(
      f"the attention backend {backend!r} cannot honour {limit}: set "
      "config.model.attention to 'auto' or 'xla'"
    )


def _pick(q, k, rule, softcap, extras):
  preferred = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(sharding.platform(), "xla")
  return "xla" if _limits(preferred, q, k, rule, softcap, extras) else preferred


# --- XLA -------------------------------------------------------------------------------
# The G query heads of a kv head are merged into one batched product, so that nothing is
# repeated or permuted at size [T,S]; the backward pass computes the probabilities again
# from the stored log-sum (FlashAttention, arXiv:2205.14135). Causal blocks of queries
# leave out the keys to their right.


def _xla(q, k, v, bias, rule, seed, settings):
  B, T, N, H = q.shape
  K = k.shape[2]
  q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)  # B K G T H
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # B K S H
  if bias is not None:
    bias = bias.reshape(bias.shape[0], K, N // K, *bias.shape[2:])  # 1|B K G T S
  out = _core(q, k, v, bias, rule, seed, settings)
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
  length = q.shape[3] if rule.q_places is None else rule.length
  return layers.row_noise(seed, (*q.shape[:3], length), rule.q_places)


def _drop(p, noise, queries, keys, rate):
  """Probabilities after dropout; a key's noise depends on its place in the row."""
  if noise is None:
    return p
  mask = layers.keep(_merge(noise[:, :, :, queries]), keys.stop, layers.share_of(rate))
  return jnp.where(mask[..., keys.start :], p / (1 - rate), 0)


def _scores(block, k, bias, softcap):
  """(scores [B,K,G*t,s], those before the bias) of merged, scaled queries [B,K,G*t,H]."""
  scores = _dot(block, k, (3, 3))
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  return (scores if bias is None else scores + _merge(bias)), scores


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _core(q, k, v, bias, rule, seed, settings):
  return _forward(q, k, v, bias, rule, seed, settings)[0]


def _forward(q, k, v, bias, rule, seed, settings):
  """q [B,K,G,T,H], k and v [B,K,S,H], bias [1|B,K,G,T,S] or None -> out [B,K,G,T,H] and
  what the backward needs. settings: (dropout rate, softcap)."""
  rate, softcap = settings
  G, T, S = q.shape[2], q.shape[3], k.shape[2]
  noise, outs, logs = _noise(q, seed, rule), [], []
  for queries, keys in _blocks(rule, T, S):
    shape = q[:, :, :, queries].shape
    ok = _spread(allowed(rule, queries, keys), G)
    some = None if bias is None else bias[:, :, :, queries, keys]
    scores, _ = _scores(_merge(q[:, :, :, queries]), k[:, :, keys], some, softcap)
    top = jnp.max(jnp.where(ok, scores, -1e30), -1, keepdims=True)
    p = jnp.where(ok, jnp.exp(scores - top), 0)
    total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)  # padding sees nothing
    dropped = _drop(p, noise, queries, keys, rate).astype(v.dtype)
    outs.append((_dot(dropped, v[:, :, keys], (3, 2)) / total).reshape(shape))
    logs.append((top + jnp.log(total)).reshape(shape[:4]))
  out = jnp.concatenate(outs, 3) if len(outs) > 1 else outs[0]
  log = jnp.concatenate(logs, 3) if len(logs) > 1 else logs[0]
  out = checkpoint_name(out.astype(q.dtype), "attention")
  return out, (q, k, v, bias, rule, seed, out, checkpoint_name(log, "attention"))


def _backward(settings, saved, d_out):
  rate, softcap = settings
  q, k, v, bias, rule, seed, out, log = saved
  G, T, S = q.shape[2], q.shape[3], k.shape[2]
  noise, parts = _noise(q, seed, rule), []
  dk = dv = None
  d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1)
  for queries, keys in _blocks(rule, T, S):
    rows = partial(jnp.expand_dims, axis=-1)
    block, d_block = _merge(q[:, :, :, queries]), _merge(d_out[:, :, :, queries])
    ok = _spread(allowed(rule, queries, keys), G)
    some = None if bias is None else bias[:, :, :, queries, keys]
    scores, bent = _scores(block, k[:, :, keys], some, softcap)
    p = jnp.where(ok, jnp.exp(scores - rows(_merge(log[:, :, :, queries]))), 0)
    dp = _drop(_dot(d_block, v[:, :, keys], (3, 3)), noise, queries, keys, rate)
    ds = p * (dp - rows(_merge(delta[:, :, :, queries])))
    if bias is not None:
      d_some = ds.reshape(*q.shape[:3], ds.shape[2] // G, ds.shape[3])
      d_some = d_some if bias.shape[0] > 1 else jnp.sum(d_some, 0, keepdims=True)
      d_bias = d_bias.at[:, :, :, queries, keys].add(d_some)
    if softcap is not None:
      ds = ds * (1 - jnp.square(bent / softcap))
    ds = ds.astype(q.dtype)
    dropped = _drop(p, noise, queries, keys, rate).astype(q.dtype)
    dq = _dot(ds, k[:, :, keys], (3, 2)).reshape(q[:, :, :, queries].shape)
    parts.append(dq.astype(q.dtype))
    dk = _add(dk, _dot(ds, block, (2, 2)), keys, k.shape)
    dv = _add(dv, _dot(dropped, d_block, (2, 2)), keys, v.shape)
  dq = jnp.concatenate(parts, 3) if len(parts) > 1 else parts[0]
  d_bias = None if bias is None else d_bias.astype(bias.dtype)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), d_bias, None, None


def _add(total, part, keys, shape):
  """total [B,K,S,H] with `part` added at `keys`; None counts as zeros."""
  if total is None and part.shape == shape:
    return part
  total = jnp.zeros(shape, part.dtype) if total is None else total
  return total.at[:, :, keys].add(part)


_core.defvjp(_forward, _backward)


# --- TPU -------------------------------------------------------------------------------


def _splash(q, k, v, rule, softcap=None, interpret=False):
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
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )

  def local(q, k, v, q_segments, k_segments):
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    ids = splash.SegmentIds(q_segments, k_segments)
    return jax.vmap(kernel)(*heads_first, ids).transpose(0, 2, 1, 3)

  if mesh.size > 1:
    heads = P(ROWS, None, "tensor")
    local = jax.shard_map(
      local, in_specs=(heads,) * 3 + (P(ROWS),) * 2, out_specs=heads, check_vma=False
    )
  return local(q, k, v, rule.q_segments, rule.k_segments)
