"""The update rule: schedule, which leaves decay, and the optax transformation.

The transformation gives a direction; `step.train_step` multiplies it by the learning rate of
its own update counter. So there is one counter, and a skipped update advances the schedule
and the data but not the moments.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxsft.errors import UsageError
from jaxsft.sharding import path_string


@dataclass(frozen=True)
class Rule:
  """How the leaves that train are updated."""

  tx: Any
  """optax transformation to a direction."""
  schedule: Any
  """Update index -> learning rate."""
  rates: Any = field(default_factory=dict)
  """{path: factor of the learning rate, or one for each row}; the others have 1."""
  masks: Any = field(default_factory=dict)
  """{path: whether each row of the leaf trains}; of the others all do."""
  starts: Any = field(default_factory=dict)
  """{path: the first update that changes the leaf, or each row of it}; the others: 0."""
  average: Any = None
  """See `averaging`."""


def training(rule, step):
  """{path: whether the leaf, or each row of it, is changed by update `step`}; others are."""
  found = {path: np.array(mask) for path, mask in rule.masks.items()}
  for path, start in rule.starts.items():
    found[path] = found.get(path, True) & (step >= start)
  return found


def by_rows(tree, values):
  """A tree like `tree` (of shapes) of values[path], [L] shaped [L,1,…]; None where none is."""

  def one(path, leaf):
    value = values.get(path_string(path))
    rows = np.ndim(value) and (-1, *[1] * (len(leaf.shape) - 1))
    return jnp.reshape(value, rows) if rows else value

  return jax.tree_util.tree_map_with_path(one, tree)


def where(masks, tree, other):
  """`tree` with the rows that do not train as in the tree, or the number, `other`.

  masks: of `by_rows`.
  """
  other = jax.tree.map(lambda _: other, tree) if isinstance(other, int) else other
  one = lambda x, mask, y: x if mask is None else jnp.where(mask, x, y)
  return jax.tree.map(one, tree, masks, other)


def kept(masks, new, old, params):
  """The optimiser's state `new`, as in `old` for what does not train.

  masks: of `training`; params: the leaves that train. A moment's path ends in that of its
  leaf, the longest of those it ends in.
  """
  if not masks:
    return new

  names = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

  def one(path, x, y):
    path = f"/{path_string(path)}"
    mask = masks.get(max((p for p in names if path.endswith(f"/{p}")), key=len, default=None))
    if np.ndim(mask) and not x.ndim:  # an age: all rows that train start at once
      mask = jnp.any(mask)
    if mask is None or (np.ndim(mask) and x.shape[:1] != mask.shape):
      return x
    rows = np.ndim(mask) and (-1, *[1] * (x.ndim - 1))
    return jnp.where(jnp.reshape(mask, rows) if rows else mask, x, y)

  return jax.tree_util.tree_map_with_path(one, new, old)


def scaled(direction, rate, rates):
  """The updates: minus `rate` times the direction, and times the factors, of `by_rows`."""
  one = lambda d, factor: -rate * d if factor is None else -rate * factor * d
  return jax.tree.map(one, direction, rates)


def make_schedule(name, *, peak_lr, end_lr, warmup, decay, total):
  """Learning rate as a function of the update index (0 … total-1), float32.

  warmup: share of `total` if below 1, else a number of updates; the first update has
  peak/warmup, never 0. linear and cosine reach `end_lr` at update `total`, one past the
  last; wsd holds the peak and falls linearly over the last `decay` share (warmup-stable-
  decay, arXiv:2404.06395).
  """
  warm = round(warmup * total) if warmup < 1 else int(warmup)
  warm = min(warm, total)
  shapes = {
    "constant": lambda x: jnp.ones_like(x),
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)),
    "wsd": lambda x: jnp.minimum(1.0, (1 - x) * span / max(decay * total, 1)),
  }
  shape, floor, span = shapes[name], end_lr, max(total - warm, 1)
  if name == "constant":
    floor = 0.0

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = peak_lr * (step + 1) / max(warm, 1)
    fall = floor + (peak_lr - floor) * shape(jnp.clip((step - warm) / span, 0.0, 1.0))
    return jnp.where(step < warm, rise, fall)

  return schedule


def kind(path):
  """ "bias", "norm", "embedding", "adapter" or "matrix", by the place of the leaf, not by its
  values."""
  *_, parent, leaf = ["", *path.split("/")]
  if leaf.startswith("lora_"):
    return "adapter"
  if "norm" in parent:
    return "norm"
  return {"bias": "bias", "embedding": "embedding"}.get(leaf, "matrix")


def decays_at(path):
  """Whether the leaf there decays and is penalised: matrices and embeddings, nothing else."""
  return kind(path) in ("matrix", "embedding")


def decays(params):
  """Tree of bools: `decays_at` of every leaf."""
  return jax.tree_util.tree_map_with_path(lambda path, _: decays_at(path_string(path)), params)


def make_transformation(name, *, b1, b2, eps, weight_decay, params, starts=None):
  """optax transformation to a direction; multiply by minus the learning rate.

  params: the trainable leaves (arrays or shapes). adamw: Loshchilov & Hutter,
  arXiv:1711.05101; adafactor: arXiv:1804.04235; lion: arXiv:2302.06675; sgd with momentum b1;
  muon for the matrices of layers, adamw for the rest. starts: of a Rule. Raises UsageError
  where muon finds no such matrix.
  """
  adam = partial(_adam, b1, b2, eps, starts or {})
  rules = {
    "adamw": adam,
    "adafactor": lambda: optax.chain(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    "lion": lambda: optax.scale_by_lion(b1, b2, mu_dtype=jnp.float32),
    "sgd": lambda: optax.trace(b1),
    "muon": lambda: _muon(b1, adam(), params),
  }
  decay = optax.add_decayed_weights(weight_decay, mask=decays(params))
  return optax.chain(rules[name](), decay) if weight_decay else optax.chain(rules[name]())


def _adam(b1, b2, eps, starts):
  """Adam's moments; of leaves that start later they are taken for as young as they are.

  Otherwise their first updates would be sqrt(1 - b2) / (1 - b1) times too small a divisor's:
  with the usual values three times too large. An age counts the updates of the moments, which
  `kept` holds until the leaf starts, and which skipped updates do not change.
  """
  adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)
  if not starts:
    return adam

  def init(params):
    return adam.init(params), {p: jnp.zeros(np.shape(s), jnp.int32) for p, s in starts.items()}

  def update(gradient, state, params=None):
    direction, moments = adam.update(gradient, state[0], params)
    ages = {path: age + 1 for path, age in state[1].items()}

    def late(d, age, mu, nu):
      unbiased = lambda moment, decay: moment / (1 - decay ** age.astype(jnp.float32))
      return d if age is None else unbiased(mu, b1) / (jnp.sqrt(unbiased(nu, b2)) + eps)

    grown = by_rows(direction, ages)
    return jax.tree.map(late, direction, grown, moments.mu, moments.nu), (moments, ages)

  return optax.GradientTransformation(init, update)


def _muon(b1, adam, params):
  """Momentum made orthogonal by Newton-Schulz (Muon, kellerjordan.github.io/posts/muon), each
  layer's and each expert's matrix [out, in] by itself.

  Scaled by 0.2 sqrt(max(out, in)) to the size of AdamW's updates, so that AdamW's learning
  rates and decay serve (arXiv:2502.16982). adam: of the other leaves.
  """
  whole = MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
  axes = lambda tree: jax.tree.map(lambda _: whole, tree)

  def label(path, _):
    path = path_string(path)
    hidden = re.search(r"(^|/)layers/", path) and kind(path) == "matrix"
    return "muon" if hidden else "adamw"

  labels = jax.tree_util.tree_map_with_path(label, params)
  if "muon" not in jax.tree.leaves(labels):
    raise UsageError(
      "config.optim.name='muon': found no matrix of a layer among what trains, expected some; "
      "choose 'adamw', or another config.tune.method"
    )
  size = lambda x: 0.2 * max(x.shape[-2:]) ** 0.5
  muon = optax.chain(
    scale_by_muon(beta=b1, mu_dtype=jnp.float32, weight_dimension_numbers=axes),
    optax.stateless(lambda updates, _: jax.tree.map(lambda x: size(x) * x, updates)),
  )
  return optax.partition({"muon": muon, "adamw": adam}, labels)


def averaging(total, ema=0.0, swa=0.0):
  """Update index -> share of the newest weights in the average of weights; None: no average.

  ema: decay of an exponential mean, at first min(ema, (1+t)/(10+t)), so that a short run does
  not stay where it began. swa: share of the updates, the last ones, after each of which the
  weights count the same (arXiv:1803.05407).
  """
  if ema:
    return lambda t: 1 - jnp.minimum(ema, (1.0 + t) / (10.0 + t))
  first = total - max(round(swa * total), 1)
  return (lambda t: 1 / jnp.maximum(t - first + 1.0, 1.0)) if swa else None


def squared_norm(tree):
  """Sum of squares of all leaves, float32 scalar."""
  return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree))


def penalty(name, weight, params):
  """(value, factor) of λ‖θ‖₂ ("l2") or λ‖θ‖₂² ("l2_squared") over the leaves that decay.

  The gradient of a leaf that decays is factor · leaf, of another 0. The norm is
  sqrt(Σθ² + 1e-12): at θ = 0 the plain one has no gradient.
  """
  square = squared_norm(jax.tree.map(lambda x, d: x if d else None, params, decays(params)))
  if name == "l2":
    norm = jnp.sqrt(square + 1e-12)
    return weight * norm, weight / norm
  return weight * square, jnp.float32(2 * weight)


def add_penalty(gradient, params, factor):
  """The gradient with that of `penalty`: factor · leaf where a leaf decays."""
  add = lambda g, p, d: g + factor * p if d else g
  return jax.tree.map(add, gradient, params, decays(params))
