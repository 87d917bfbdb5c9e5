"""The parts that every Transformer here is made of.

Letters: B batch, T query position, S key position, D width, F mlp width, N query heads,
K kv heads, G = N/K, H head dim, V vocabulary, L layers, C classes, M segments a row.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxsft.errors import JaxsftError

ADAPTED = "adapted"
"""Name of a product with its adapter's: remat="dots" keeps it instead of its two parts."""
ADAPTER = {"lora_a", "lora_b", "lora_scale"}
LEAVES = {"kernel", "bias", "lora_magnitude", "lora_drop"} | ADAPTER

# Elementwise functions are cheaper to compute again than to store for the backward pass.
recompute = partial(jax.checkpoint, prevent_cse=False)


def _gelu(x):
  # jax.nn.gelu goes through erfc, which costs twice as much on a CPU.
  return 0.5 * x * (1 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


ACTIVATIONS = {  # Hugging Face's `hidden_act` -> function
  "gelu": _gelu,
  "gelu_new": partial(jax.nn.gelu, approximate=True),
  "gelu_fast": partial(jax.nn.gelu, approximate=True),
  "gelu_python": _gelu,
  "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "tanh": jnp.tanh,
}


def linear(leaves, x, dtype, low=None):
  """x [..., in] -> [..., out] with the leaves of one projection: the seam for adapters.

  leaves: kernel [out, in], maybe bias [out] and those of an adapter, see `_adapted`. low: of
  `together`. A leaf that is not known here raises, because leaving it out would silently
  change the model.
  """
  unknown = set(leaves) - LEAVES
  if not ADAPTER <= set(leaves):  # a part of an adapter is none
    unknown = set(leaves) - {"kernel", "bias"}
  if unknown:
    raise JaxsftError(
      f"found the leaves {sorted(unknown)} in a projection, expected {sorted(LEAVES)}: "
      "merge or remove what was added to it"
    )
  # One axis of tokens: with two, XLA:CPU transposes a copy of y's gradient for the kernel's.
  y = _product(x.astype(dtype).reshape(-1, x.shape[-1]), leaves["kernel"])
  if "lora_a" in leaves:
    y = _adapted(leaves, x.astype(dtype), y, low)
  y = y + leaves["bias"].astype(dtype) if "bias" in leaves else y
  return y.reshape(*x.shape[:-1], -1)


def _product(tokens, matrix):
  """tokens [n,in], matrix [out,in] -> [n,out] in the tokens' type."""
  return lax.dot_general(tokens, matrix.astype(tokens.dtype), (((1,), (1,)), ((), ())))


def _adapted(leaves, x, y, low):
  """y [n,out] = x W^T with LoRA's scale (drop(x) A^T) B^T added (arXiv:2106.09685).

  lora_a A [R,in], lora_b B [out,R], lora_scale a number; lora_drop [3] uint32: a seed and the
  share of 2^32 that is dropped, there while training alone. lora_magnitude m [out]: the sum
  is turned to m / |row of W + scale B A|, whose norm has no gradient (DoRA, arXiv:2402.09353,
  section 4.3). No gradient of the shape of W is made.
  """
  if low is None:
    low = _product(
      _dropped(x, leaves.get("lora_drop")).reshape(-1, x.shape[-1]), leaves["lora_a"]
    )
  scale = leaves["lora_scale"]
  y = y + _product(low.reshape(len(y), -1) * scale.astype(y.dtype), leaves["lora_b"])
  if "lora_magnitude" not in leaves:
    return checkpoint_name(y, ADAPTED)
  whole = leaves["kernel"].astype(jnp.float32) + scale * (leaves["lora_b"] @ leaves["lora_a"])
  norm = jnp.linalg.norm(lax.stop_gradient(whole), axis=1)
  return checkpoint_name(y * (leaves["lora_magnitude"] / norm).astype(y.dtype), ADAPTED)


def together(params, names, x, dtype):
  """{name: x A^T [...,R]} of the projections `names` of one x, in one product.

  params: {name: leaves}. {} for those without an adapter, and where an adapter drops its own
  parts of x: skinny products are bound by reading x, so that three cost as much as three x.
  """
  names = [name for name in names if "lora_a" in params.get(name, {})]
  if len(names) < 2 or any("lora_drop" in params[name] for name in names):
    return {}
  parts = [params[name]["lora_a"] for name in names]
  low = _product(x.astype(dtype).reshape(-1, x.shape[-1]), jnp.concatenate(parts))
  ends = np.cumsum([len(part) for part in parts])[:-1]
  return dict(zip(names, jnp.split(low, ends, axis=1), strict=True))


class Linear(nn.Module):
  """A projection whose kernel is stored [out, in], as Hugging Face does."""

  features: int
  bias: bool
  dtype: str
  std: float

  @nn.compact
  def __call__(self, x, low=None):
    if self.is_initializing():
      shape = (self.features, x.shape[-1])
      self.param("kernel", nn.initializers.normal(self.std), shape)
      if self.bias:
        self.param("bias", nn.initializers.zeros, shape[:1])
    return linear(self.variables["params"], x, self.dtype, low)


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


@dataclass(frozen=True)
class Norm:
  """How a vector of D is normalised."""

  kind: str
  """"layer": mean and variance (arXiv:1607.06450); "rms": root mean square
  (arXiv:1910.07467)."""
  eps: float
  bias: bool
  """"layer" only: whether it has a bias."""
  offset: float
  """Added to the scale: 1 for Gemma, which stores scale - 1."""


class Normalise(nn.Module):
  """Norm over the last axis, computed in float32."""

  norm: Norm
  dtype: str

  @nn.compact
  def __call__(self, x):
    norm = self.norm
    start = nn.initializers.constant(1 - norm.offset)
    scale = self.param("scale", start, x.shape[-1:])
    bias = None
    if norm.bias:
      bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])

    @recompute
    def normalise(x, scale, bias):
      x = x.astype(jnp.float32)
      if norm.kind == "layer":
        x = x - jnp.mean(x, -1, keepdims=True)
      x = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + norm.eps)
      x = x * (scale + np.float32(norm.offset) if norm.offset else scale)
      return (x if bias is None else x + bias).astype(self.dtype)

    return normalise(x, scale, bias)


class Mlp(nn.Module):
  """D -> F -> D; gated: activation(gate(x)) * up(x) (arXiv:2002.05202).

  drop: what dropout does to the [..., F] before the last product; None: nothing.
  """

  width: int
  mlp: int
  activation: str
  gated: bool
  bias: bool
  dtype: str
  std: float

  @nn.compact
  def __call__(self, x, drop=None):
    act = ACTIVATIONS[self.activation]
    project = partial(Linear, bias=self.bias, dtype=self.dtype, std=self.std)
    low = together(self.variables.get("params", {}), ("up", "gate"), x, self.dtype)
    up = project(self.mlp, name="up")(x, low.get("up"))
    if self.gated:
      gate = project(self.mlp, name="gate")(x, low.get("gate"))
      y = recompute(lambda gate, up: act(gate) * up)(gate, up)
    else:
      y = recompute(act)(up)
    return project(self.width, name="down")(y if drop is None else drop(y))


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


def sinusoids(rows, width):
  """float32 [rows,D] of arXiv:1706.03762 with all sines in front of all cosines."""
  half = -(-width // 2)
  angle = np.arange(rows)[:, None] / 10000 ** (2 * np.arange(half) / width)
  return np.concatenate([np.sin(angle), np.cos(angle[:, : width - half])], 1).astype(np.float32)


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


def keep(rows, columns, share):
  """Mask [..., columns] from row_noise [...]: False with probability `share` / 2^32."""
  column = lax.broadcasted_iota(jnp.uint32, (*rows.shape, columns), rows.ndim)
  return mix(rows[..., None] + column * np.uint32(0x9E3779B9)) >= share


def share_of(rate):
  """The `share` of `keep` for a probability."""
  return np.uint32(round(rate * 2**32))


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
    mask = keep(row_noise(seed, shape or x.shape[:-1], places), x.shape[-1], share_of(rate))
    return jnp.where(mask, x / (1 - rate), 0).astype(x.dtype)

  return drop(x, seed)


def _dropped(x, how):
  """x [...,D] with dropout by `how` [3] uint32: a seed and the share; None: as it is."""
  if how is None:
    return x

  @recompute
  def drop(x, how):
    rate = how[2].astype(jnp.float32) / np.float32(2**32)
    mask = keep(row_noise(how[:2], x.shape[:-1]), x.shape[-1], how[2])
    return jnp.where(mask, x / (1 - rate), 0).astype(x.dtype)

  return drop(x, how)
