"""The causal Transformer: Llama and what is like it. Norms precede attention and mlp.

With a cache (`decode`) it answers for tokens that follow others of the same row.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsft import sharding
from jaxsft.models import attention, layers


@dataclass(frozen=True)
class DecoderConfig:
  """The architecture, as config.json states it; no field has a default."""

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  max_positions: int
  eps: float
  activation: str
  rope: layers.Rope
  tied: bool
  """Whether the token table is also the output projection."""
  attention_bias: bool
  mlp_bias: bool
  attention_dropout: float
  """On the attention probabilities."""
  std: float
  """Standard deviation of new weights."""


class Embedding(nn.Module):
  """The token table alone."""

  arch: DecoderConfig
  dtype: str

  @nn.compact
  def __call__(self, inputs):
    arch = self.arch
    table = layers.Embed(arch.vocab, arch.width, self.dtype, arch.std, name="tokens")
    return table(inputs)


class Layer(nn.Module):
  """Attention and gated mlp, each on the normalised stream and added to it."""

  arch: DecoderConfig
  dtype: str
  backend: str

  @nn.compact
  def __call__(self, x, rule, rotation, key=None, cache=None, places=None):
    arch = self.arch
    attend = attention.SelfAttention(
      width=arch.width,
      heads=arch.heads,
      kv_heads=arch.kv_heads,
      head_dim=arch.head_dim,
      bias=arch.attention_bias,
      dtype=self.dtype,
      std=arch.std,
      backend=self.backend,
      name="attn",
    )
    mlp = layers.Mlp(
      width=arch.width,
      mlp=arch.mlp,
      activation=arch.activation,
      gated=True,
      bias=arch.mlp_bias,
      dtype=self.dtype,
      std=arch.std,
      name="mlp",
    )
    norm = partial(layers.RMSNorm, arch.eps, self.dtype)
    seed = None if key is None else layers.seed_of(key, 0)
    y, cache = attend(
      norm(name="attn_norm")(x),
      rule,
      rotation=rotation,
      rate=arch.attention_dropout,
      seed=seed,
      cache=cache,
      places=places,
    )
    x = layers.at(x, places) + y
    return x + mlp(norm(name="mlp_norm")(x)), cache


def hidden(network, params, batch, key=None, places=None):
  """[B,T,D] of a batch with inputs, segments and positions [B,T], after the last norm.

  places [B,M]: [B,M,D] at these alone; what the last layer would do elsewhere is not done.
  """
  segments = batch["segments"]
  rule = attention.Rule(segments, segments, causal=True)
  x, _ = _stack(network, params, batch["inputs"], batch["positions"], rule, key, places=places)
  return x


def _stack(
  network, params, inputs, positions, rule, key=None, cache=None, slots=None, places=None
):
  """cache: (k, v), stacked [L, …] or tuples alike to the layers; returns the new one."""
  arch, dtype = network.arch, network.dtype
  layer = Layer(arch, dtype, network.attention)
  x = Embedding(arch, dtype).apply({"params": params["embed"]}, inputs)
  x = sharding.constrain(x, *network.ROWS)
  rotation = layers.rotations(arch.rope, arch.head_dim, positions)

  def apply(one, x, index, past, places):
    layer_key = None if key is None else jax.random.fold_in(key, index)
    past = None if past is None else (*past, slots)
    x, new = layer.apply({"params": one}, x, rule, rotation, layer_key, past, places)
    return sharding.constrain(x, *network.ROWS[: 2 if places is None else 1]), new

  x, cache = layers.run_layers(
    apply,
    params["layers"],
    x,
    cache,
    places=places,
    unroll=network.unroll,
    remat=network.remat,
  )
  norm = layers.RMSNorm(arch.eps, dtype)
  return norm.apply({"params": params["norm"]}, x), cache


def empty_cache(network, params, rows, length):
  """Room for `length` tokens in each of `rows` rows; a tuple a layer if `params` is so.

  k and v [L,B*K,S,H]; segments [B,S], 0 where a slot is empty; lengths [B], tokens held.
  """
  arch = network.arch
  shape = (rows * arch.kv_heads, length, arch.head_dim)

  def room():
    if isinstance(params["layers"], tuple):
      return tuple(jnp.zeros(shape, network.dtype) for _ in range(arch.layers))
    return jnp.zeros((arch.layers, *shape), network.dtype)

  return {
    "k": room(),
    "v": room(),
    "segments": jnp.zeros((rows, length), jnp.int32),
    "lengths": jnp.zeros(rows, jnp.int32),
  }


def decode(network, params, inputs, cache, *, segments=None, positions=None):
  """Hidden states [B,T,D] of inputs [B,T] that follow what the cache holds, and the cache.

  segments [B,T]: 1 for tokens, 0 for the padding to their right, which is not stored;
  None: all tokens. positions [B,T]; None: they go on from the cache's lengths.
  The caller leaves room: a token beyond the cache's length would be lost.
  """
  (_, T), S = inputs.shape, cache["segments"].shape[1]
  segments = jnp.ones_like(inputs) if segments is None else segments
  places = cache["lengths"][:, None] + jnp.arange(T)
  positions = places if positions is None else positions
  slots = jnp.where(segments == 0, S, places)
  rows = jnp.arange(inputs.shape[0])[:, None]
  held = cache["segments"].at[rows, slots].set(segments, mode="drop")
  rule = attention.Rule(
    segments, held, True, None, places, jnp.arange(S, dtype=jnp.int32)[None]
  )
  straight, past = isinstance(params["layers"], tuple), (cache["k"], cache["v"])
  if straight:
    past = tuple(zip(*past, strict=True))
  x, new = _stack(network, params, inputs, positions, rule, None, past, slots)
  k, v = zip(*new, strict=True) if straight else new
  lengths = cache["lengths"] + jnp.sum(segments != 0, 1, dtype=jnp.int32)
  return x, {"k": k, "v": v, "segments": held, "lengths": lengths}


def unstack(params):
  """The same parameters with `layers` as a tuple of dicts, one a layer.

  For decoding: a loop over stacked weights copies each layer's slice at every token, which
  on a CPU costs as much as the products. Call it once, outside of jit.
  """
  num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
  one = lambda i: jax.tree.map(lambda leaf: leaf[i], params["layers"])
  return {**params, "layers": tuple(one(i) for i in range(num_layers))}
