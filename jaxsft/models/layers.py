"""The parts that every Transformer here is made of.

Letters: B batch, T query position, S key position, D width, F mlp width, N query heads,
K kv heads, G = N/K, H head dim, V vocabulary, L layers, C classes, M segments a row.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxsft.errors import JaxsftError

LEAVES = {"kernel", "bias"}

# Elementwise functions are cheaper to compute again than to store for the backward pass.
recompute = partial(jax.checkpoint, prevent_cse=False)


def _gelu(x):
  # jax.nn.gelu goes through erfc, which costs twice as much on a CPU.
  return 0.5 * x * (1 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


ACTIVATIONS = {  # Hugging Face's `hidden_act` -> function
  "gelu": _gelu,
  "gelu_new": partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


def linear(leaves, x, dtype):
  """x [..., in] -> [..., out] with the leaves of one projection: the seam for adapters.

  leaves: kernel [out, in], maybe bias [out]. A leaf that is not known here raises, because
  leaving it out would silently change the model.
  """
  unknown = set(leaves) - LEAVES
  if unknown:
    raise JaxsftError(
      f"found the leaves {sorted(unknown)} in a projection, expected {sorted(LEAVES)}: "
      "merge or remove what was added to it"
    )
  kernel = leaves["kernel"].astype(dtype)
  # One axis of tokens: with two, XLA:CPU transposes a copy of y's gradient for the kernel's.
  tokens = x.astype(dtype).reshape(-1, x.shape[-1])
  y = lax.dot_general(tokens, kernel, (((1,), (1,)), ((), ())))
  y = y + leaves["bias"].astype(dtype) if "bias" in leaves else y
  return y.reshape(*x.shape[:-1], -1)


class Linear(nn.Module):
  """A projection whose kernel is stored [out, in], as Hugging Face does."""

  features: int
  bias: bool
  dtype: str
  std: float

  @nn.compact
  def __call__(self, x):
    if self.is_initializing():
      shape = (self.features, x.shape[-1])
      self.param("kernel", nn.initializers.normal(self.std), shape)
      if self.bias:
        self.param("bias", nn.initializers.zeros, shape[:1])
    return linear(self.variables["params"], x, self.dtype)


class Embed(nn.Module):
  """Rows of a table; an id outside of it gives NaN, which the step reports."""

  rows: int
  width: int
  dtype: str
  std: float

  @nn.compact
  def __call__(self, ids):
    init = nn.initializers.normal(self.std)
    table = self.param("embedding", init, (self.rows, self.width))
    return jnp.take(table, ids, axis=0, mode="fill").astype(self.dtype)


class LayerNorm(nn.Module):
  """Mean and variance over D in float32 (arXiv:1607.06450)."""

  eps: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])

    @recompute
    def norm(x, scale, bias):
      x = x.astype(jnp.float32)
      x = x - jnp.mean(x, -1, keepdims=True)
      x = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
      return (x * scale + bias).astype(self.dtype)

    return norm(x, scale, bias)


class RMSNorm(nn.Module):
  """Root mean square over D in float32 (arXiv:1910.07467)."""

  eps: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])

    @recompute
    def norm(x, scale):
      x = x.astype(jnp.float32)
      x = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
      return (x * scale).astype(self.dtype)

    return norm(x, scale)


class Mlp(nn.Module):
  """D -> F -> D; gated: activation(gate(x)) * up(x) (arXiv:2002.05202)."""

  width: int
  mlp: int
  activation: str
  gated: bool
  bias: bool
  dtype: str
  std: float

  @nn.compact
  def __call__(self, x):
    act = ACTIVATIONS[self.activation]
    project = partial(Linear, bias=self.bias, dtype=self.dtype, std=self.std)
    up = project(self.mlp, name="up")(x)
    if self.gated:
      gate = project(self.mlp, name="gate")(x)
      y = recompute(lambda gate, up: act(gate) * up)(gate, up)
    else:
      y = recompute(act)(up)
    return project(self.width, name="down")(y)


def at(x, places):
  """x [B,T,…] at places [B,M] -> [B,M,…]; all of x where places is None."""
  if places is None:
    return x
  return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)


# --- positions -------------------------------------------------------------------------


def positions_of(segments):
  """[B,T] segments (0 = padding) -> positions 0, 1, … in each run of one segment, padding 0."""
  index = lax.broadcasted_iota(jnp.int32, segments.shape, 1)
  new = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
  start = lax.cummax(jnp.where(new, index, 0), axis=1)
  return jnp.where(segments == 0, 0, index - start)


@dataclass(frozen=True)
class Rope:
  """Rotary positions as `config.json` states them."""

  kind: str
  """default, linear, dynamic or llama3."""
  theta: float
  factor: float | None = None
  low: float | None = None
  """llama3: low_freq_factor."""
  high: float | None = None
  """llama3: high_freq_factor."""
  original: float | None = None
  """llama3: original_max_position_embeddings."""


def frequencies(rope, head_dim):
  """[H/2] float32 radians a position, computed as transformers' modeling_rope_utils does.

  "dynamic" stretches the base only beyond max_position_embeddings, where this library lets
  no token stand; up to there it is "default".
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  # numpy's float32 power is off by one unit for some, which is seen at position 4000.
  power = (rope.theta ** exponent.astype(np.float64)).astype(np.float32)
  freqs = np.float32(1) / power
  if rope.kind == "linear":
    return freqs / np.float32(rope.factor)
  if rope.kind == "llama3":
    wavelength = np.float32(2 * math.pi) / freqs
    smooth = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
    medium = (1 - smooth) * freqs / rope.factor + smooth * freqs
    long = wavelength > rope.original / rope.low
    short = wavelength < rope.original / rope.high
    scaled = np.where(long, freqs / rope.factor, np.where(short, freqs, medium))
    return scaled.astype(np.float32)
  return freqs


def rotations(rope, head_dim, positions):
  """positions [B,T] -> (cos, sin), each [B,T,1,H/2] float32."""
  angles = positions.astype(jnp.float32)[..., None, None] * frequencies(rope, head_dim)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, rotation):
  """x [B,T,N,H] turned by `rotations`; the halves of H are the pairs, as in Hugging Face."""
  cos, sin = rotation
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


# --- dropout ---------------------------------------------------------------------------


def mix(x):
  """A bijection of uint32 without visible structure: "lowbias32" by Chris Wellons.

  https://nullprogram.com/blog/2018/07/31/. Dropout needs no more, and this fuses into the
  loop that uses it: threefry takes a third of a BERT step on a CPU.
  """
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)


def row_noise(seed, shape, places=None):
  """uint32 of `shape`, a function of seed [2] and the place alone (so of no sharding).

  places [B,M]: of `shape` [B,…,T] only these along T, [B,…,M].
  """
  wanted = shape if places is None else (*shape[:-1], places.shape[1])
  place = jnp.zeros(wanted, jnp.uint32)
  for axis in range(len(shape)):
    index = lax.broadcasted_iota(jnp.uint32, wanted, axis)
    if places is not None and axis == len(shape) - 1:
      index = places.astype(jnp.uint32).reshape(shape[0], *[1] * (axis - 1), -1)
    place = place * np.uint32(shape[axis]) + index
  return mix(mix(place ^ seed[0]) + seed[1])


def keep(rows, columns, rate):
  """Mask [..., columns] from row_noise [...]: False with probability `rate`."""
  column = lax.broadcasted_iota(jnp.uint32, (*rows.shape, columns), rows.ndim)
  bits = mix(rows[..., None] + column * np.uint32(0x9E3779B9))
  return bits >= np.uint32(round(rate * 2**32))


def seed_of(key, site):
  """[2] uint32 from a jax random key and the number of the place where it is used."""
  return jax.random.bits(jax.random.fold_in(key, site), (2,), jnp.uint32)


def dropout(x, rate, key, site, shape=None, places=None):
  """Zeroes a share `rate` of x [..., D] and scales the rest; with key None nothing at all.

  shape, places: of `row_noise`, where x [B,M,D] stands for some places of rows of shape
  [B,T]; it loses there what the whole rows would. None: x is all there is.
  """
  if key is None or rate == 0:
    return x
  seed = seed_of(key, site)

  @recompute
  def drop(x, seed):
    mask = keep(row_noise(seed, shape or x.shape[:-1], places), x.shape[-1], rate)
    return jnp.where(mask, x / (1 - rate), 0).astype(x.dtype)

  return drop(x, seed)


# --- the stack -------------------------------------------------------------------------

REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attention"),
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def run_layers(layer, params, x, per_layer=None, *, places=None, unroll=1, remat="none"):
  """Applies layer(params, x, index, extra, places) -> (x, out) from the first to the last.

  params: dict of leaves stacked [L, …], scanned; or a tuple of dicts, one a layer, which
  become straight code (no slice of a stack is copied; for decoding). per_layer: a tree
  stacked, or a tuple, alike. Returns x and the outs, stacked or as a tuple alike.
  places [B,M]: x is wanted there alone, and outs are not; straight code and an unroll of all
  layers then hand it to the last one. A loop does not: the other layers' slice of the stack
  would be a copy.
  """
  straight = isinstance(params, tuple)
  num_layers = len(params) if straight else jax.tree.leaves(params)[0].shape[0]
  looped = not straight and unroll < num_layers
  if places is not None and looped:
    return at(run_layers(layer, params, x, unroll=unroll, remat=remat)[0], places), None
  some = lambda part: params[part] if straight else jax.tree.map(lambda p: p[part], params)
  if places is not None and num_layers > 1:
    x, _ = run_layers(layer, some(slice(-1)), x, unroll=unroll, remat=remat)
  if REMAT[remat] is not None:  # without a loop, the compiler would undo it
    layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=not looped)
  if places is not None:
    return layer(some(-1), x, num_layers - 1, None, places)[0], None
  if straight:
    outs = []
    for index, one in enumerate(params):
      extra = None if per_layer is None else per_layer[index]
      x, out = layer(one, x, index, extra, None)
      outs.append(out)
    return x, tuple(outs)

  def body(x, slices):
    one, index, extra = slices
    return layer(one, x, index, extra, None)

  xs = (params, jnp.arange(num_layers), per_layer)
  return lax.scan(body, x, xs, unroll=min(unroll, num_layers))
