"""One update: pure, small, jitted once by the verb that calls it.

Nothing here knows of config, data, Hugging Face or Orbax. Losses and metrics are sums with
weights; the one division comes after the last sum.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsft import optim, sharding, stack

OBJECTIVE = ("loss", "auxiliary")  # sums that have a gradient; all others are only shown


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
  """Everything that an update changes or reads; arrays only.

  The annotations say Any because trees of shapes and of shardings have this structure too.
  """

  step: Any
  """Updates done, int32 scalar; also the position in the data and in the schedule."""
  trainable: Any
  """Nested dict of the leaves that train, float32."""
  frozen: Any
  """Nested dict of the leaves that do not."""
  opt_state: Any
  """optax state over `trainable`."""
  skipped: Any
  """Updates skipped because they were not finite, int32 scalar."""
  bad: Any
  """Those in a row until now, int32 scalar."""
  average: Any
  """Of `trainable` over the updates, as Rule.average says; {}: there is none."""


def init_state(trainable, frozen, rule):
  """The state before the first update."""
  zero = jnp.zeros((), jnp.int32)
  average = {} if rule.average is None else jax.tree.map(jnp.copy, trainable)
  return TrainState(zero, trainable, frozen, rule.tx.init(trainable), zero, zero, average)


def result(state):
  """What training has come to, of the leaves that train: their average, or themselves."""
  return state.average or state.trainable


def params(state):
  """The full parameter dict of `result`."""
  return merge(result(state), state.frozen)


def merge(trainable, frozen):
  """The full parameter dict of its two parts; a leaf that is in both is a stack.Parts."""
  merged = dict(frozen)
  for name, value in trainable.items():
    if name in frozen:
      join = merge if isinstance(value, dict) else lambda last, first: stack.Parts(first, last)
      value = join(value, frozen[name])
    merged[name] = value
  return merged


def train_step(state, batch, *, loss, rule, penalty, clip, clip_value=0.0, seed):
  """One update from one batch; returns (state, metrics).

  batch: dict of arrays [A, R, …]: A micro-batches of R rows, whose sums are added before
  the one division, so that A changes memory and nothing else.
  loss(params, micro_batch, key) -> {"loss": (sum, weight), …}, float32 scalars; what is
  minimised is the sum of those in OBJECTIVE, over the weight of "loss".
  rule: optim.Rule.
  penalty: (name, weight), added once to the gradient, before clipping each number to
  +-clip_value and then all to norm `clip` (0: not). A non-finite loss or gradient, or a batch
  without weight, changes nothing but the counters and the average.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  gradient, sums = _gradient(state, batch, loss, key)
  weight = sums["loss"][1]
  scale = 1 / jnp.maximum(weight, 1e-9)
  metrics = {name: total / jnp.maximum(w, 1e-9) for name, (total, w) in sums.items()}
  name, penalty_weight = penalty
  training = optim.training(rule, state.step)
  factor, masks = None, optim.by_rows(state.trainable, training)
  if name != "none" and penalty_weight:
    moving = optim.where(masks, state.trainable, 0)
    metrics["penalty"], factor = optim.penalty(name, penalty_weight, moving)

  def objective_gradient(gradient, params):
    gradient = jax.tree.map(lambda g: g * scale, gradient)
    if factor is not None:
      gradient = optim.add_penalty(gradient, params, factor)
    if clip_value:
      gradient = jax.tree.map(lambda g: jnp.clip(g, -clip_value, clip_value), gradient)
    return optim.where(masks, gradient, 0)

  norm = jnp.sqrt(optim.squared_norm(objective_gradient(gradient, state.trainable)))
  shrink = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-9)) if clip else 1.0
  rate = rule.schedule(state.step)

  def update(gradient, params, opt_state):
    gradient = objective_gradient(gradient, params)
    gradient = jax.tree.map(lambda g: g * shrink, gradient)
    direction, moments = rule.tx.update(gradient, opt_state, params)
    opt_state = optim.kept(training, moments, opt_state, params)
    rates = optim.by_rows(params, rule.rates)
    updates = optim.scaled(direction, rate, rates)
    moved = optax.apply_updates(params, updates)
    return optim.where(masks, moved, params), opt_state

  ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & (weight > 0)
  trainable, opt_state = _if_ok(ok, update, gradient, state.trainable, state.opt_state)
  bad = jnp.where(ok, 0, state.bad + 1)
  state = TrainState(
    step=state.step + 1,
    trainable=trainable,
    frozen=state.frozen,
    opt_state=opt_state,
    skipped=state.skipped + ~ok,
    bad=bad,
    average=_averaged(rule, state, trainable),
  )
  counts = {"weight": weight, "skipped": state.skipped, "bad": bad}
  return state, metrics | {"lr": rate, "grad_norm": norm} | counts


def _gradient(state, batch, loss, key):
  """(gradient of the objective, sums of `loss`), both summed over the micro-batches."""

  def micro_step(micro, index):
    def objective(trainable):
      sums = loss(merge(trainable, state.frozen), micro, jax.random.fold_in(key, index))
      return sum(sums[name][0] for name in OBJECTIVE if name in sums), sums

    return jax.grad(objective, has_aux=True)(state.trainable)

  return _add_up(micro_step, batch)


def _averaged(rule, state, trainable):
  """The average with the newest `trainable` in it."""
  if rule.average is None:
    return {}
  share = rule.average(state.step)
  return jax.tree.map(lambda a, p: a + share * (p - a), state.average, trainable)


def _if_ok(ok, update, gradient, params, opt_state):
  """(params, opt_state) of `update`, or as they were.

  A choice between two arrays fuses into the update's one pass on an accelerator. XLA:CPU
  makes three passes and keeps the old moments for each; a branch there spares the copies.
  """
  if sharding.platform() == "cpu":
    leave = lambda gradient, params, opt_state: (params, opt_state)
    return jax.lax.cond(ok, update, leave, gradient, params, opt_state)
  new = update(gradient, params, opt_state)
  return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, (params, opt_state))


def _add_up(micro_step, batch):
  """Sums of gradients and of metric sums over the leading axis of `batch`."""
  count = jax.tree.leaves(batch)[0].shape[0]
  take = lambda i: jax.tree.map(lambda x: x[i], batch)
  if count == 1:  # no loop, and no second gradient tree to add to
    return micro_step(take(0), 0)

  def add(total, index):
    return jax.tree.map(jnp.add, total, micro_step(take(index), index)), None

  shapes = jax.eval_shape(lambda: micro_step(take(0), 0))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(add, zeros, jnp.arange(count))[0]
