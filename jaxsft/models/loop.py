"""One layer after another: a loop over a stack, or straight code.

Letters: B batch, M segments a row, L layers.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsft import stack
from jaxsft.models import layers

REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attention", layers.ADAPTED),
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

  params: dict of leaves stacked [L, …], scanned (one part after the other where they are
  stack.Parts); or a tuple of dicts, one a layer, which become straight code (no slice of a
  stack is copied; for decoding). per_layer: a tree stacked, or a tuple, alike. kinds: what a
  layer is beside its weights, static, one a layer (None: nothing); where they alternate, the
  scan goes over whole periods, and what is left of a last period is straight code. repeats:
  the number of times that one layer's params, without an L axis, are applied. Returns x and
  the outs, stacked or as a tuple alike. places [B,M]: x is wanted there alone, and outs are
  not; straight code and an unroll of all layers then hand it to the last one. A loop does
  not: the other layers' slice of the stack would be a copy.
  """
  if stack.cut(params):
    options = {"kinds": kinds, "places": places, "unroll": unroll, "remat": remat}
    return _run_pieces(layer, stack.pieces(params), x, per_layer, **options)
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
    return layers.at(x, places), None
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


def _run_pieces(layer, pieces, x, per_layer, *, kinds, places, **options):
  """`run_layers` of [(params, slice of the layers)], one after another."""
  outs = []
  for params, part in pieces:
    after = lambda one, x, index, *rest, first=part.start: layer(one, x, index + first, *rest)
    last = part == pieces[-1][1]
    x, out = run_layers(
      after,
      params,
      x,
      jax.tree.map(lambda leaf, part=part: leaf[part], per_layer),
      kinds=None if kinds is None else kinds[part],
      places=places if last else None,
      **options,
    )
    outs.append(out)
  if places is not None:
    return x, None
  return x, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outs)


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
