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
  "gelu_fast": partial(jax.nn.gelu, approximate=True),
  "gelu_python": _gelu,
  "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "tanh": jnp.tanh,
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
    up = project(self.mlp, name="up")(x)
    if self.gated:
      gate = project(self.mlp, name="gate")(x)
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


def run_layers(
  layer,
  params,
  x,
  per_layer=None,
  *,
  kinds=None,
  repeats=None,
  places=None,
  unroll=1,
  remat="none",
):
  """Applies layer(params, x, index, kind, extra, places) -> (x, out) from first to last.

  params: dict of leaves stacked [L, …], scanned; or a tuple of dicts, one a layer, which
  become straight code (no slice of a stack is copied; for decoding). per_layer: a tree
  stacked, or a tuple, alike. kinds: what a layer is beside its weights, static, one a layer
  (None: nothing); where they alternate, the scan goes over whole periods, and what is left
  of a last period is straight code. repeats: the number of times that one layer's params,
  without an L axis, are applied. Returns x and the outs, stacked or as a tuple alike.
  places [B,M]: x is wanted there alone, and outs are not; straight code and an unroll of all
  layers then hand it to the last one. A loop does not: the other layers' slice of the stack
  would be a copy.
  """
  straight = isinstance(params, tuple)
  if repeats is not None:
    params, straight = (params,) * repeats, unroll >= repeats
  num_layers = len(params) if isinstance(params, tuple) else stack_size(params)
  kinds = (None,) * num_layers if kinds is None else tuple(kinds)
  options = {"unroll": unroll, "remat": remat}
  looped = not straight and unroll < num_layers
  if places is not None and looped:
    again = params[0] if repeats is not None else params
    x, _ = run_layers(layer, again, x, kinds=kinds, repeats=repeats, **options)
    return at(x, places), None
  some = lambda tree, part: (
    tree[part] if isinstance(tree, tuple) else jax.tree.map(lambda p: p[part], tree)
  )
  if places is not None and num_layers > 1:
    x, _ = run_layers(layer, some(params, slice(-1)), x, kinds=kinds[:-1], **options)
  if REMAT[remat] is not None:  # without a loop, the compiler would undo it
    layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=not looped, static_argnums=3)
  if places is not None:
    return layer(some(params, -1), x, num_layers - 1, kinds[-1], None, places)[0], None
  if straight:
    return _straight(layer, params, x, per_layer, kinds, range(num_layers))
  if repeats is not None:
    params = params[0]
    body = lambda x, index: layer(params, x, index, kinds[0], None, None)
    assert len(set(kinds)) == 1, "a layer that is shared is of one kind"
    return lax.scan(body, x, jnp.arange(num_layers), unroll=unroll)
  return _scan(layer, params, x, per_layer, kinds, unroll)


def stack_size(params):
  """L of a tree whose leaves are stacked [L, …]."""
  return jax.tree.leaves(params)[0].shape[0]


def _straight(layer, params, x, per_layer, kinds, indices):
  outs = []
  for place, index in enumerate(indices):
    extra = None if per_layer is None else per_layer[place]
    x, out = layer(params[place], x, index, kinds[index], extra, None)
    outs.append(out)
  return x, tuple(outs)


def _scan(layer, params, x, per_layer, kinds, unroll):
  """A scan over whole periods of `kinds`, and straight code for the layers that are left."""
  num_layers, period = len(kinds), _period(kinds)
  whole = num_layers // period
  index = jnp.arange(num_layers)
  xs = (params, index, per_layer)
  if period == 1:
    body = lambda x, slices: layer(slices[0], x, slices[1], kinds[0], slices[2], None)
    return lax.scan(body, x, xs, unroll=min(unroll, num_layers))

  def body(x, slices):
    outs = []
    for place in range(period):
      one, index, extra = jax.tree.map(lambda leaf, place=place: leaf[place], slices)
      x, out = layer(one, x, index, kinds[place], extra, None)
      outs.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

  fold = lambda leaf: leaf[: whole * period].reshape(whole, period, *leaf.shape[1:])
  steps = max(1, min(-(-unroll // period), whole))
  x, outs = lax.scan(body, x, jax.tree.map(fold, xs), unroll=steps)
  outs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outs)
  rest = range(whole * period, num_layers)
  if rest:
    take = lambda tree: [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in rest]
    extras = None if per_layer is None else take(per_layer)
    x, last = _straight(layer, take(params), x, extras, kinds, rest)
    join = lambda some, *more: jnp.concatenate([some, jnp.stack(more)])
    outs = jax.tree.map(join, outs, *last)
  return x, outs


def _period(kinds):
  """The smallest p such that kinds[i] = kinds[i % p] for all i."""
  fits = lambda p: all(kind == kinds[i % p] for i, kind in enumerate(kinds))
  return next(p for p in range(1, len(kinds) + 1) if fits(p))
