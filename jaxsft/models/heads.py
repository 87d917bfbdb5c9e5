"""From hidden states to logits and losses: vocabulary, one vector a segment, or a token.

The loss over a vocabulary works on chunks of tokens: [B,T,V] never exists.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsft import sharding
from jaxsft.models import layers

ROWS = sharding.ROWS


@dataclass(frozen=True)
class Head:
  """What reads the hidden states: one pool for sentences, then the same steps for all.

  dropout_in -> dense and its activation -> norm -> dropout -> projection. Leaves: dense,
  dense_norm, and head ("sequence", "token", "span") or lm_head ("lm", "masked_lm").
  """

  kind: Literal["none", "lm", "masked_lm", "sequence", "token", "span"]
  classes: int = 0
  """C of "sequence" and "token"; a "span" has two, start and end."""
  pool: Literal["first", "last", "mean"] = "first"
  """What stands for a segment: a token, or the mean of its tokens."""
  dropout_in: float = 0.0
  """Before the dense layer."""
  dense: str | None = None
  """Activation of a dense layer before the projection (BERT's pooler, a masked-LM
  transform), kept also where no head uses it; None: there is none."""
  dense_bias: bool = True
  dense_width: int | None = None
  """Its outputs; None: as many as its inputs."""
  norm: layers.Norm | None = None
  """After the dense layer."""
  dropout: float = 0.0
  """Before the projection."""
  bias: bool = True
  """Of the projection."""
  logits_bias: bool = False
  """Whether "lm" adds a constant to its logits, which does not train (BART's
  final_logits_bias)."""


def shapes(head, width, vocab, tied):
  """{module: (in, out, bias)} of the head's projections from `width`."""
  found = {}
  if head.dense is not None:
    out = head.dense_width or width
    found["dense"] = (width, out, head.dense_bias)
    width = out
  if head.kind in ("sequence", "token", "span"):
    found["head"] = (width, 2 if head.kind == "span" else head.classes, head.bias)
  if head.kind in ("lm", "masked_lm"):
    bias = head.logits_bias if head.kind == "lm" else head.bias
    if bias or not tied:
      found["lm_head"] = (None if tied else width, vocab, bias)
  return found


def init(key, head, width, vocab, tied, std):
  """Parameters of `shapes` and of the norm: normal kernels, zero biases, neutral scales.

  Of a tied lm_head there is the bias alone.
  """
  params = {}
  for i, (name, (inputs, out, bias)) in enumerate(shapes(head, width, vocab, tied).items()):
    params[name] = {}
    if inputs is not None:
      draw = jax.random.normal(jax.random.fold_in(key, i), (out, inputs))
      params[name]["kernel"] = std * draw
    if bias:
      params[name]["bias"] = jnp.zeros(out)
  if head.norm is not None:
    module = layers.Normalise(head.norm, "float32")
    x = jnp.zeros((1, head.dense_width or width))
    params["dense_norm"] = module.init(key, x)["params"]
  return params


def transform(params, x, head, key=None):
  """x [...,D] as the head's projection takes it: dropouts, dense layer and norm."""
  if head.kind in ("none", "lm"):
    return x
  x = layers.dropout(x, head.dropout_in, key, 1)
  if head.dense is not None:
    x = layers.ACTIVATIONS[head.dense](layers.linear(params["dense"], x, x.dtype))
  if head.norm is not None:
    module = layers.Normalise(head.norm, x.dtype.name)
    x = module.apply({"params": params["dense_norm"]}, x)
  return layers.dropout(x, head.dropout, key, 0)


def project(hidden, kernel, *, bias=None, softcap=None):
  """hidden [...,D], kernel [V,D] -> logits [...,V] in float32; all of them at once."""
  dims = (((hidden.ndim - 1,), (1,)), ((), ()))
  kernel = kernel.astype(hidden.dtype)
  logits = lax.dot_general(hidden, kernel, dims, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def segment_places(segments, max_segments, pool):
  """[B,T] segments -> [B,M] index of each segment's first or last token; absent: 0."""
  mine = segments[:, None, :] == jnp.arange(1, max_segments + 1)[None, :, None]
  if pool == "first":
    return jnp.argmax(mine, -1)
  last = segments.shape[1] - 1 - jnp.argmax(mine[..., ::-1], -1)
  return jnp.where(jnp.any(mine, -1), last, 0)


def segment_means(x, segments, max_segments):
  """x [B,T,D], segments [B,T] -> [B,M,D], the mean of each segment's tokens; absent: 0."""
  mine = segments[:, None, :] == jnp.arange(1, max_segments + 1)[None, :, None]
  total = jnp.einsum("bmt,btd->bmd", mine.astype(x.dtype), x)
  return total / jnp.maximum(jnp.sum(mine, -1), 1)[..., None].astype(x.dtype)


def class_logits(params, x, head, key=None):
  """x [B,M,D] (one vector a segment) or [B,T,D] -> [B,M|T,C] float32."""
  x = transform(params, x, head, key)
  return layers.linear(params["head"], x, x.dtype).astype(jnp.float32)


def segment_sums(values, segments, max_segments):
  """{name: [B,T]} -> {name: [B,M] float32}, the sum over each segment's tokens."""
  mine = segments[:, None, :] == jnp.arange(1, max_segments + 1)[None, :, None]
  add = lambda x: jnp.sum(jnp.where(mine, x.astype(jnp.float32)[:, None, :], 0), -1)
  return {name: add(x) for name, x in values.items()}


# --- cross-entropy over a vocabulary ---------------------------------------------------


@dataclass(frozen=True)
class _Terms:
  softcap: float | None
  label_smoothing: float
  z_loss: float
  chunk: int


def cross_entropy(
  hidden,
  kernel,
  targets,
  weights,
  *,
  chunk,
  bias=None,
  softcap=None,
  label_smoothing=0.0,
  z_loss=0.0,
):
  """Sums over the supervised tokens, in float32, differentiable in hidden, kernel, bias.

  hidden [B,T,D], kernel [V,D], bias [V] or None; targets [B,T] int32, weights [B,T].
  Returns {"loss": (sum of weight x loss, sum of weights), "accuracy": (hits, tokens)}: the
  first of equal largest logits is the answer, tokens are those of positive weight.
  Smoothing spreads its share evenly over the V classes (arXiv:1512.00567), z_loss adds
  z_loss x log(Z)^2 (arXiv:2204.02311), softcap bends logits to cap x tanh(logit / cap).
  Each device holds the logits of about `chunk` tokens at a time; tokens of weight 0 are
  moved to the row's end and skipped there.
  """
  terms = _Terms(softcap, label_smoothing, z_loss, chunk)
  loss, hits = _sums(hidden, kernel, bias, targets, weights, terms)
  tokens = jnp.sum(weights > 0, dtype=jnp.float32)
  return {
    "loss": (loss, jnp.sum(weights, dtype=jnp.float32)),
    "accuracy": (hits, tokens),
  }


def token_losses(hidden, kernel, targets, weights, *, chunk, bias=None, softcap=None):
  """(nll [B,T], right [B,T]) float32 of the supervised tokens, 0 elsewhere; no gradient.

  Arguments as of `cross_entropy`; the plain cross-entropy and 1 where the target is the
  likeliest token. At most about `chunk` tokens of a device have logits at a time.
  """
  rows = P(_row_axes())
  return _on_rows(
    partial(_local_token_losses, terms=_Terms(softcap, 0.0, 0.0, chunk)),
    (rows, rows),
    (hidden, kernel, bias, targets, weights),
  )


def _local_token_losses(hidden, kernel, bias, targets, weights, *, terms, axes=()):
  B, T, D = hidden.shape
  size, order, used, needed = _supervised_first(weights, terms.chunk, axes)
  cast = kernel.astype(hidden.dtype)

  def step(i, found):
    take = lambda x: lax.dynamic_slice_in_dim(x, i * size, size, 1)
    index, weight = take(order), take(used)
    x = jnp.take_along_axis(hidden, index[..., None], 1).reshape(-1, D)
    target = jnp.take_along_axis(targets, index, 1).reshape(-1)
    logits = project(x, cast, bias=bias, softcap=terms.softcap)
    loss, right, _ = _token_values(logits, target, terms)
    place = lambda whole, new: lax.dynamic_update_slice_in_dim(
      whole, jnp.where(weight > 0, new.reshape(B, size), 0), i * size, 1
    )
    return tuple(place(*pair) for pair in zip(found, (loss, right), strict=True))

  zeros = jnp.zeros(order.shape, jnp.float32)
  found = lax.fori_loop(0, needed, step, (zeros, zeros))
  back = jnp.argsort(order[:, :T], axis=1)
  return tuple(jnp.take_along_axis(x, back, 1) for x in found)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _sums(hidden, kernel, bias, targets, weights, terms):
  return _spread(hidden, kernel, bias, targets, weights, terms, (False,) * 3)[0]


def _sums_forward(hidden, kernel, bias, targets, weights, terms):
  # The gradients are made here, with the logits at hand: three products, not four.
  wanted = (hidden.perturbed, kernel.perturbed, bias is not None and bias.perturbed)
  values = [None if x is None else x.value for x in (hidden, kernel, bias)]
  return _spread(*values, targets.value, weights.value, terms, wanted)


def _sums_backward(terms, grads, cotangents):
  scale = cotangents[0]
  scaled = [None if g is None else (g * scale).astype(g.dtype) for g in grads]
  return (*scaled, None, None)


_sums.defvjp(_sums_forward, _sums_backward, symbolic_zeros=True)


def _spread(hidden, kernel, bias, targets, weights, terms, wanted):
  """`_local` on every device's own rows; kernel gradients are summed once, at the end."""
  rows = P(_row_axes())
  return _on_rows(
    partial(_local, terms=terms, wanted=wanted),
    (P(), (rows if wanted[0] else P(), P(), P())),
    (hidden, kernel, bias, targets, weights),
  )


def _row_axes():
  """Axes of the mesh that rows are spread over; () without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(a for a in ROWS if not mesh.empty and mesh.shape.get(a, 1) > 1)


def _on_rows(local, out_specs, args):
  """local(hidden, kernel, bias, targets, weights, axes=…) on every device's own rows."""
  axes = _row_axes()
  if not axes:
    return local(*args)
  rows = P(axes)
  return jax.shard_map(
    partial(local, axes=axes),
    in_specs=(rows, P(), P(), rows, rows),
    out_specs=out_specs,
    axis_names=set(axes),
    check_vma=False,
  )(*args)


def _supervised_first(weights, chunk, axes):
  """(S, order [B,n], weights in it [B,n], pieces of [B,S] that have a supervised token).

  n is a multiple of S, which is such that B x S is about `chunk`.
  """
  B, T = weights.shape
  order = jnp.argsort(weights == 0, axis=1, stable=True)
  size = max(1, min(T, round(chunk / B)))
  pad = lambda x: jnp.pad(x, ((0, 0), (0, -T % size)))
  order, used = pad(order), pad(jnp.take_along_axis(weights, order, 1))
  needed = -(-jnp.max(jnp.sum(used != 0, 1)) // size)
  if axes:
    needed = lax.pmax(needed, axes)  # every device takes part in every product
  return size, order, used, needed


def _local(hidden, kernel, bias, targets, weights, *, terms, wanted, axes=()):
  """((loss, hits), gradients in hidden, kernel and bias where wanted)."""
  B, T, D = hidden.shape
  size, order, used, needed = _supervised_first(weights, terms.chunk, axes)
  cast = kernel.astype(hidden.dtype)

  def step(i, carry):
    (loss, hits), (dh, dk, db) = carry
    take = lambda x: lax.dynamic_slice_in_dim(x, i * size, size, 1)
    index, weight = take(order), take(used).reshape(-1).astype(jnp.float32)
    x = jnp.take_along_axis(hidden, index[..., None], 1).reshape(-1, D)
    target = jnp.take_along_axis(targets, index, 1).reshape(-1)
    logits = project(x, cast, bias=bias, softcap=terms.softcap)
    part, log_z = _token_losses(logits, target, weight, terms)
    carry = (loss + part[0], hits + part[1])
    if not any(wanted):
      return carry, (dh, dk, db)
    d = _token_gradients(logits, log_z, target, weight, terms)
    db = db + jnp.sum(d, 0) if wanted[2] else db
    d = d.astype(hidden.dtype)
    if wanted[0]:
      dx = (d @ cast).reshape(B, size, D)
      dh = lax.dynamic_update_slice_in_dim(dh, dx, i * size, 1)
    if wanted[1]:
      dims = (((0,), (0,)), ((), ()))
      dk = dk + lax.dot_general(d, x, dims, preferred_element_type=jnp.float32)
    return carry, (dh, dk, db)

  zeros = (
    jnp.zeros((*order.shape, D), hidden.dtype) if wanted[0] else None,
    jnp.zeros(kernel.shape, jnp.float32) if wanted[1] else None,
    jnp.zeros(bias.shape, jnp.float32) if wanted[2] else None,
  )
  start = ((jnp.float32(0), jnp.float32(0)), zeros)
  sums, (dh, dk, db) = lax.fori_loop(0, needed, step, start)
  if wanted[0]:  # back into the row's own order
    dh = jnp.take_along_axis(dh, jnp.argsort(order[:, :T], axis=1)[..., None], 1)
  if axes:
    sums, dk, db = lax.psum((sums, dk, db), axes)
  dk = dk.astype(kernel.dtype) if wanted[1] else None
  return sums, (dh, dk, db.astype(bias.dtype) if wanted[2] else None)


def _token_losses(logits, target, weight, terms):
  """(sum of weight x loss, hits) and log Z of logits [n,V] with targets [n]."""
  loss, right, log_z = _token_values(logits, target, terms)
  return (jnp.sum(loss * weight), jnp.sum(right * (weight > 0))), log_z


def _token_values(logits, target, terms):
  """[n] each: the loss, 1 where the target is the likeliest (else 0), log Z."""
  V, eps = logits.shape[-1], terms.label_smoothing
  top = jnp.max(logits, -1, keepdims=True)
  log_z = top[..., 0] + jnp.log(jnp.sum(jnp.exp(logits - top), -1))
  loss = log_z - (1 - eps) * jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
  if eps:
    loss = loss - eps * jnp.mean(logits, -1)
  if terms.z_loss:
    loss = loss + terms.z_loss * jnp.square(log_z)
  # argmax, as a plain minimum: XLA:CPU runs it several times faster.
  ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  answer = jnp.min(jnp.where(logits == top, ids, V), -1)
  return loss, (answer == target).astype(jnp.float32), log_z


def _token_gradients(logits, log_z, target, weight, terms):
  """Gradient of the weighted sum by the logits before the softcap [n,V]."""
  V, eps = logits.shape[-1], terms.label_smoothing
  scale = (1 + 2 * terms.z_loss * log_z)[..., None]
  ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  wanted = jnp.where(ids == target[..., None], np.float32(1 - eps), 0) + np.float32(eps / V)
  d = (jnp.exp(logits - log_z[..., None]) * scale - wanted) * weight[..., None]
  if terms.softcap is not None:
    d = d * (1 - jnp.square(logits / terms.softcap))
  return d
