"""Mixtures of experts: every token goes through its few chosen experts, none is dropped.

Tokens are sorted by expert, so that each expert sees a run of rows; shapes stay static. Under
a mesh every device of the "expert" axis holds some of the experts, takes the tokens of its
neighbours on that axis, and hands back what its own experts say.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsft import sharding
from jaxsft.errors import JaxsftError
from jaxsft.models import layers

BLOCK = 128  # rows of one expert that are multiplied at a time, at most


@dataclass(frozen=True)
class Experts:
  """The mixture that replaces an MLP; no field has a default."""

  count: int
  """E."""
  per_token: int
  """k, the experts of the largest router probabilities."""
  mlp: int
  """F of each."""
  normalise: bool
  """Whether the weights of a token's experts sum to one (Mixtral, norm_topk_prob)."""
  auxiliary: float
  """What the load-balancing loss is multiplied by in the objective."""


class Kernel(nn.Module):
  """One kernel [E, out, in]; a leaf that is not known here raises, as in layers.linear."""

  shape: tuple
  std: float

  @nn.compact
  def __call__(self):
    if self.is_initializing():
      self.param("kernel", nn.initializers.normal(self.std), self.shape)
    leaves = self.variables["params"]
    if set(leaves) != {"kernel"}:
      raise JaxsftError(
        f"found the leaves {sorted(leaves)} in the experts, expected ['kernel']: merge or "
        "remove what was added to them"
      )
    return leaves["kernel"]


class Bank(nn.Module):
  """The kernels of all experts: up and gate [E,F,D], down [E,D,F]."""

  width: int
  experts: Experts
  std: float

  @nn.compact
  def __call__(self):
    E, F, D = self.experts.count, self.experts.mlp, self.width
    up, gate = (Kernel((E, F, D), self.std, name=name)() for name in ("up", "gate"))
    return up, gate, Kernel((E, D, F), self.std, name="down")()


class Mixture(nn.Module):
  """x [B,T,D] -> ([B,T,D], the router's sums over the tokens where real [B,T] is not 0)."""

  width: int
  experts: Experts
  activation: str
  dtype: str
  std: float

  @nn.compact
  def __call__(self, x, real):
    E, k = self.experts.count, self.experts.per_token
    router = layers.Linear(E, False, "float32", self.std, name="router")
    probabilities = jax.nn.softmax(router(x), -1)
    weights, chosen = lax.top_k(probabilities, k)
    if self.experts.normalise:
      weights = weights / jnp.sum(weights, -1, keepdims=True)
    kernels = Bank(self.width, self.experts, self.std, name="experts")()
    kernels = tuple(kernel.astype(self.dtype) for kernel in kernels)
    y = _spread(x, chosen, weights, kernels, layers.ACTIVATIONS[self.activation])
    real = (real != 0).astype(jnp.float32)
    each = jnp.broadcast_to(real[..., None], chosen.shape)
    sums = {
      "chosen": jnp.zeros(E).at[chosen.reshape(-1)].add(each.reshape(-1)),
      "probabilities": jnp.einsum("bt,bte->e", real, probabilities),
    }
    return y, sums


def balance(sums, real):
  """(sum, weight) of the load-balancing loss (arXiv:2101.03961, equations 4 to 6).

  sums: those of `Mixture`, stacked [L, E]; real [B,T]. The loss is E times the dot product of
  the share of tokens and the mean probability of every expert, over all layers at once.
  """
  tokens = jnp.sum(real != 0).astype(jnp.float32)
  num_layers, E = sums["chosen"].shape
  rows = jnp.maximum(tokens, 1) * num_layers
  share, mean = (jnp.sum(sums[name], 0) / rows for name in ("chosen", "probabilities"))
  return E * jnp.sum(lax.stop_gradient(share) * mean) * tokens, tokens


# --- over the mesh ---------------------------------------------------------------------


def _spread(x, chosen, weights, kernels, act):
  """`_mix` on every device for its rows, its experts and its part of their F."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _mix(x, chosen, weights, kernels, act)
  E, F, _ = kernels[0].shape
  uses = lambda axis, size: mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0
  expert = "expert" if uses("expert", E) else None
  tensor = "tensor" if uses("tensor", F) else None
  rows = P(sharding.ROWS)

  def local(x, chosen, weights, kernels):
    if expert:
      gather = lambda a: lax.all_gather(a, expert, axis=0, tiled=True)
      x, chosen, weights = gather(x), gather(chosen), gather(weights)
      chosen = chosen - lax.axis_index(expert) * kernels[0].shape[0]
    y = _mix(x, chosen, weights, kernels, act)
    y = lax.psum(y, tensor) if tensor else y
    return lax.psum_scatter(y, expert, scatter_dimension=0, tiled=True) if expert else y

  column, row = P(expert, tensor, None), P(expert, None, tensor)
  B, shards = len(x), math.prod(mesh.shape[axis] for axis in sharding.ROWS)
  missing = -B % shards  # few rows, as in generation: those of nobody fill up
  fill = lambda a, value: jnp.pad(
    a, ((0, missing), *[(0, 0)] * (a.ndim - 1)), constant_values=value
  )
  y = jax.shard_map(
    local,
    in_specs=(rows, rows, rows, (column, column, row)),
    out_specs=rows,
    check_vma=False,
  )(fill(x, 0), fill(chosen, -1), fill(weights, 0), kernels)
  return y[:B]


# --- on one device ---------------------------------------------------------------------


def _mix(x, chosen, weights, kernels, act):
  """x [B,T,D] through the experts `chosen` [B,T,k], summed by `weights` -> [B,T,D].

  An expert that is not among the E of `kernels` adds nothing.
  """
  B, T, D = x.shape
  E, k = kernels[0].shape[0], chosen.shape[-1]
  chosen = chosen.reshape(-1)
  chosen = jnp.where((chosen >= 0) & (chosen < E), chosen, E)
  if sharding.platform() == "tpu":
    source, place, product = _runs(chosen, E)
  else:
    source, place, product = _blocks(chosen, E)
  rows = _dispatch(x.reshape(-1, D), source, place, k)
  up, gate, down = kernels
  hidden = layers.recompute(lambda gate, up: act(gate) * up)(
    product(rows, gate), product(rows, up)
  )
  y = _collect(product(hidden, down), source, place).reshape(B, T, k, D)
  return jnp.einsum("btkd,btk->btd", y.astype(jnp.float32), weights).astype(x.dtype)


def _runs(chosen, E):
  """(source, place, product) for rows that are sorted by expert and nothing else.

  chosen [m]. source: for every row the entry of `chosen` that it stands for; place: for
  every entry its row. m and more: none. product(rows, kernel [E,out,in]) -> rows [.., out].
  """
  m = len(chosen)
  sizes = jnp.bincount(chosen, length=E)  # leaves out E, the experts of other devices
  order = jnp.argsort(chosen, stable=True)
  place = jnp.argsort(order, stable=True)
  source = jnp.where(jnp.arange(m) < jnp.sum(sizes), order, m)
  dims = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0],
  )
  product = lambda rows, kernel: lax.ragged_dot_general(rows, kernel, sizes, dims)
  return source, jnp.where(chosen < E, place, m), product


def _blocks(chosen, E):
  """Like `_runs`, where no device multiplies ragged runs: each starts a new block of rows.

  A loop takes the blocks one by one, each with the kernel of its expert, and stops after the
  last that is used.
  """
  m = len(chosen)
  size = max(1, min(BLOCK, 1 << max(m // E, 1).bit_length() - 1))
  count = (m + E * (size - 1)) // size
  sizes = jnp.bincount(chosen, length=E)
  needed = -(-sizes // size)
  ends = jnp.cumsum(needed)
  owner = jnp.minimum(jnp.searchsorted(ends, jnp.arange(count), side="right"), E - 1)
  order = jnp.argsort(chosen, stable=True)
  mine = chosen[order]
  known = jnp.minimum(mine, E - 1)
  first = jnp.cumsum(sizes) - sizes
  within = jnp.arange(m) - first[known]
  row = jnp.where(mine < E, (ends - needed)[known] * size + within, count * size)
  source = jnp.full(count * size, m).at[row].set(order, mode="drop")
  place = jnp.zeros(m, row.dtype).at[order].set(row)

  def product(rows, kernel):
    y = _block_product(rows.reshape(count, size, -1), kernel, owner, ends[-1])
    return y.reshape(count * size, -1)

  return source, place, product


@jax.custom_vjp
def _block_product(x, kernel, owner, used):
  """x [blocks,size,in], kernel [E,out,in], owner [blocks] -> [blocks,size,out]."""

  def step(i, y):
    dims = (((1,), (1,)), ((), ()))
    part = lax.dot_general(x[i], kernel[owner[i]], dims, preferred_element_type=jnp.float32)
    return y.at[i].set(part.astype(x.dtype))

  return lax.fori_loop(0, used, step, jnp.zeros((*x.shape[:2], kernel.shape[1]), x.dtype))


def _block_forward(x, kernel, owner, used):
  return _block_product(x, kernel, owner, used), (x, kernel, owner, used)


def _block_backward(saved, d):
  x, kernel, owner, used = saved
  dot = partial(lax.dot_general, preferred_element_type=jnp.float32)

  def step(i, grads):
    dx, dk = grads
    part = dot(d[i], kernel[owner[i]], (((1,), (0,)), ((), ())))
    dx = dx.at[i].set(part.astype(x.dtype))
    return dx, dk.at[owner[i]].add(dot(d[i], x[i], (((0,), (0,)), ((), ()))))

  zeros = (jnp.zeros_like(x), jnp.zeros(kernel.shape, jnp.float32))
  dx, dk = lax.fori_loop(0, used, step, zeros)
  return dx, dk.astype(kernel.dtype), None, None


_block_product.defvjp(_block_forward, _block_backward)


def _take(x, index):
  """Rows of x; zeros where the index is beyond them."""
  return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dispatch(x, source, place, k):
  """x [n,D] -> [rows,D], entry i of n*k being of token i // k. Backwards it is a gather too."""
  return _take(x, source // k)


_dispatch.defvjp(
  lambda x, source, place, k: (_take(x, source // k), place),
  lambda k, place, d: (_sum_of(_take(d, place), k), None, None),
)


def _sum_of(d, k):
  total = jnp.sum(d.reshape(-1, k, d.shape[-1]).astype(jnp.float32), 1)
  return total.astype(d.dtype)


@jax.custom_vjp
def _collect(y, source, place):
  """y [rows,D] -> [n*k,D], the rows of every entry; 0 for those of other devices."""
  return _take(y, place)


_collect.defvjp(
  lambda y, source, place: (_take(y, place), source),
  lambda source, d: (_take(d, source), None, None),
)
