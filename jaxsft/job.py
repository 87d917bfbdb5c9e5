"""What a run is made of, built from the config once and then only read."""

import dataclasses
import pathlib
from functools import partial

import jax
import numpy as np

from jaxsft import (
  adapted,
  checkpoint,
  log,
  models,
  optim,
  prepare,
  pretrained,
  sharding,
  stack,
  step,
  tasks,
)
from jaxsft import config as config_lib
from jaxsft.compiled import Compiled
from jaxsft.errors import UsageError
from jaxsft.models import layers
from jaxsft.tuning import lora, rates, select, unfreeze


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything but the state; `train.finetune` says what is built when."""

  config: config_lib.Config
  mesh: jax.sharding.Mesh
  base: pretrained.Pretrained
  data: prepare.Prepared
  network: models.Network
  chosen: select.Choice
  """Which parameters train."""
  rule: optim.Rule
  """How they are updated."""
  train_step: Compiled
  eval_step: Compiled
  logger: log.Log
  checkpoints: checkpoint.Checkpoints
  metric: str
  mode: str
  """"max" or "min"."""

  @property
  def classes(self):
    """Values that a label may have; None where targets are tokens or numbers."""
    context = self.data.context
    values = {"single": len(context.labels), "multi": 2}  # multi: yes or no for each label
    return values.get(context.label_type) if context.labels else None


def best_by(config, data):
  """(metric, "max" or "min") by which the best parameters are chosen."""
  if config.evaluate.generate and data.held_out is None:
    raise UsageError(
      "config.evaluate.generate: no rows are held out to be answered; set config.data.split or "
      "config.data.eval_path"
    )
  return metric_of(config, data.task, data.context)


def metric_of(config, task, context):
  """(metric, "max" or "min") that a config names, or the task declares."""
  wanted, metrics, default = config.evaluate, task.METRICS, task.DEFAULT_METRIC
  of = ""
  if isinstance(default, dict):
    kind = tasks.kind_of(task, context)
    metrics, default, of = metrics[kind], default[kind], f" of labels that are {kind!r}"
  metric = wanted.metric or default
  if metric not in metrics:
    raise UsageError(
      f"config.evaluate.metric: task {config.task!r} has no metric {metric!r}{of}, expected "
      f"one of {', '.join(metrics)}"
    )
  return metric, wanted.mode or metrics[metric]


def make_network(config, base, data):
  """The base's architecture with the task's head and the config's ways of computing it."""
  model = config.model
  network = base.network(
    config.task,
    data.context.labels,
    dtype=model.dtype,
    remat=model.remat,
    unroll=model.unroll,
    attention=model.attention,
  )
  if model.dropout is not None:
    network = models.with_dropout(network, model.dropout)
  return network


def new_head(config, base):
  """Whether the task's head is drawn anew although the file may have one of that name."""
  wanted = tasks.TASKS[config.task].HEAD
  if wanted == "masked_lm":  # the file's, unless the config says otherwise
    return config.model.new_head
  own = (*pretrained.LABELLED, "span")
  return wanted in own and (config.model.new_head or base.kind != wanted)


def shapes_of(config, network):
  """Shapes of all parameters: the network's, and those that config.tune adds."""
  shapes = network.shapes()
  return lora.shapes(shapes, config.tune.lora) if config.tune.method == "lora" else shapes


def choose(config, network):
  """The select.Choice of a config's `tune` group."""
  tune, has_head = config.tune, tasks.TASKS[config.task].HEAD != "lm"
  shapes, stacks = shapes_of(config, network), network.stacks
  if tune.method == "lora":
    return lora.choose(shapes, tune.train, stacks)
  return select.choose(shapes, tune.method, tune.train, stacks=stacks, has_head=has_head)


def load_params(config, base, network, mesh=None):
  """(parameters before the first update, paths of new weights), all in float32."""
  if config.export.format == "peft":
    adapted.refuse_unwritable(base, network, choose(config, network))
  fresh = new_head(config, base)
  params, new = pretrained.load_params(base, network, mesh, fresh, config.seed)
  if config.tune.method == "lora":
    params = lora.add(params, config.tune.lora, config.seed, mesh)
  return params, new


HELD = ("kernel", "embedding")  # ends of the paths of what `hold` casts


def hold(frozen, dtype):
  """The leaves that do not train, those that multiply or are looked up in `dtype`."""
  cast = jax.jit(lambda leaf: leaf.astype(dtype), donate_argnums=0)
  own = lambda path: sharding.path_string(path).endswith(HELD)
  one = lambda path, leaf: cast(leaf) if own(path) and leaf.dtype != dtype else leaf
  return jax.tree_util.tree_map_with_path(one, frozen)


def first_state(job):
  """(the state before the first update, paths of new weights)."""
  params, new = load_params(job.config, job.base, job.network, job.mesh)
  params = select.split(params, job.chosen)  # lets go of leaves that are cut
  params = params[0], hold(params[1], job.config.tune.base_dtype)
  init = partial(step.init_state, rule=job.rule)
  places = sharding.shardings_for(jax.eval_shape(init, *params), job.mesh)
  return jax.jit(init, out_shardings=places, donate_argnums=(0, 1))(*params), new


def trained_params(config, base, network, chosen, trainable, mesh=None):
  """All parameters of a run in float32: the trained ones and, read again, the frozen ones.

  Adapters are on the checkpoint's own weights, and for a format "peft" as PEFT has them.
  """
  start, _ = load_params(config, base, network, mesh)
  params = stack.whole(step.merge(trainable, select.split(start, chosen)[1]))
  if config.tune.method == "lora" and config.export.format == "peft":
    params = lora.plain(params, start, config.tune.lora.init)
  return params


def adapter_facts(config, base, chosen):
  """What `adapted.store` needs to know of a run."""
  path = config.model.path
  named = not path.startswith("pypi:") and not pathlib.Path(path).exists()  # on the hub
  return {
    "base": path if named else str(base.path.resolve()),
    "revision": config.model.revision,
    "dropout": config.tune.lora.dropout,
    "rslora": config.tune.lora.rslora,
    "chosen": chosen.paths,
  }


def make_rule(config, network, chosen, total):
  """The optim.Rule of a config's `optim` and `tune` groups for what is chosen to train."""
  settings, shapes = config.optim, shapes_of(config, network)
  starts = unfreeze.starts(
    shapes,
    chosen,
    network.stacks,
    patterns=config.tune.unfreeze,
    every=config.tune.unfreeze_every,
    has_head=tasks.TASKS[config.task].HEAD != "lm",
  )
  trainable = select.split(shapes, chosen)[0]
  schedule = optim.make_schedule(
    settings.schedule,
    peak_lr=settings.peak_lr,
    end_lr=settings.end_lr,
    warmup=settings.warmup,
    decay=settings.decay,
    total=total,
  )
  tx = optim.make_transformation(
    settings.name,
    b1=settings.b1,
    b2=settings.b2,
    eps=settings.eps,
    weight_decay=settings.weight_decay,
    params=trainable,
    starts=starts,
  )
  factors = rates.multipliers(
    shapes,
    chosen,
    network.stacks,
    layer_decay=settings.layer_decay,
    patterns=settings.rates,
    more=lora.rates(chosen.paths, config.tune.lora),
  )
  average = optim.averaging(total, settings.ema, settings.swa)
  return optim.Rule(tx, schedule, factors, chosen.masks, starts, average)


def make_train_step(config, task, options, network, rule):
  """Compiled (state, batch) -> (state, metrics); the state's memory is reused.

  options: of tasks.options_of.
  """
  share = layers.share_of(config.tune.lora.dropout)

  def loss(params, batch, key):
    params = lora.dropping(params, share, jax.random.fold_in(key, 2))
    return task.loss(network, params, batch, options, key)

  one = partial(
    step.train_step,
    loss=loss,
    rule=rule,
    penalty=(config.optim.penalty, config.optim.penalty_weight),
    clip=config.optim.clip,
    clip_value=config.optim.clip_value,
    seed=config.seed,
  )

  def update(state, batch):
    state, metrics = one(state, batch)
    return sharding.pin(state), metrics

  return Compiled(update, donate_argnums=0)


CHANGEABLE = ("every", "patience", "batch_size", "slices", "prompts", "sets")
"""Keys of `evaluate` on which the numbers that evaluations compare do not depend."""


def resumable(found):
  """The settings that a resumed run must share with the one it goes on from, of a
  config_lib.to_dict.

  Those of evaluations are among them: a best value is only compared with values like it.
  """
  values = config_lib.completed(found)
  for group in ("log", "checkpoint", "export", "mesh"):
    del values[group]
  values["evaluate"] = {k: v for k, v in values["evaluate"].items() if k not in CHANGEABLE}
  return values


def of_now(loop):
  """A checkpoint's loop, its settings as this version would have kept them: those that came
  later did nothing then, as their defaults do nothing.
  """
  hashes = loop.get("hashes", {})
  if isinstance(hashes.get("config"), dict):
    hashes = hashes | {"config": resumable(hashes["config"])}
  return loop | {"hashes": hashes}


PRODUCTS = ("kernel", "lora_a", "lora_b")


def flops_per_token(network, shapes, chosen, lengths, masked=1.0):
  """Floating-point operations of one training token, as log.flops_per_token counts them.

  A sentence head reads one token of each example; without a loop over layers, only for
  these there is more of the last layer than keys and values (loop.run_layers). masked: share
  of the tokens that a "masked_lm" head projects to the vocabulary.
  """
  arch, lengths = network.arch, np.asarray(lengths, np.float64)
  if lengths.ndim == 2:
    return _flops_of_two_streams(network, shapes, chosen, *lengths.T)
  read = len(lengths) / lengths.sum() if network.head.kind == "sequence" else 1.0
  few = network.head.kind == "sequence" and network.unroll >= arch.layers
  mixture = getattr(arch, "experts", None)
  sizes = {}
  for path, leaf in select.paths(shapes):
    kind = network.head.kind
    table = path == "embed/tokens/embedding" and kind in ("lm", "masked_lm") and network.tied
    if not (path.endswith(PRODUCTS) or table):
      continue
    sizes[path] = leaf.size * (1.0 if path.startswith("layers/") else read)
    if kind == "masked_lm" and (table or path == "lm_head/kernel"):
      sizes[path] *= masked
    if path.startswith("layers/"):
      times = arch.layers / len(leaf) if len(leaf.shape) == 3 else arch.layers  # shared: once
      last = read if few and path.split("/")[-2] not in ("k", "v") else 1.0
      sizes[path] = leaf.size * times * (arch.layers - 1 + last) / arch.layers
    if "/experts/" in path:
      sizes[path] *= mixture.per_token / mixture.count
  seen = [_keys_seen(lengths, kind, network.causal) for kind in _kinds(arch)]
  if few:  # the token that is read sees all of its example: its queries see each token once
    seen[-1] = 1.0
  seen = np.array(seen) * arch.heads.count * arch.heads.dim
  share = select.passed(shapes, chosen)
  depth = round(share["layers/attn/o/kernel"] * arch.layers)  # the top ones
  return _flops(shapes, chosen, sizes, share, seen.sum(), seen[arch.layers - depth :].sum())


def _flops(shapes, chosen, sizes, share, attended, attended_passed):
  """log.flops_per_token where {path: parameters a token} are `sizes`."""
  leaves = dict(select.paths(shapes))
  trained = {path: chosen.trained(path, leaf) / leaf.size for path, leaf in leaves.items()}
  total = lambda part: sum(size * part[path] for path, size in sizes.items())
  return log.flops_per_token(
    sum(sizes.values()), total(share), total(trained), attended, attended_passed
  )


def _flops_of_two_streams(network, shapes, chosen, S, T):
  """`flops_per_token` where examples have S [N] tokens of a source and T of a target, which
  count alike. The encoder multiplies those of the source, and so do the decoder's keys and
  values of it.
  """
  arch, total, sizes = network.arch, S.sum() + T.sum(), {}
  for path, leaf in select.paths(shapes):
    table = path == "embed/tokens/embedding" and network.tied
    if path.endswith(PRODUCTS) or table:
      of_source = path.startswith("encoder/") or "/cross/k/" in path or "/cross/v/" in path
      sizes[path] = leaf.size * (S if of_source else T).sum() / total
  width = lambda stack: stack.layers * stack.heads.count * stack.heads.dim
  below = width(arch.encoder) * (S**2).sum() / total
  above = width(arch.decoder) * (T**2 / 2 + T * S).sum() / total
  share = select.passed(shapes, chosen)
  passed = [share[f"{stack}/layers/attn/o/kernel"] for stack in ("encoder", "decoder")]
  attended_passed = below * passed[0] + above * passed[1]
  return _flops(shapes, chosen, sizes, share, below + above, attended_passed)


def _kinds(arch):
  """What each layer is beside its weights, where the architecture says so."""
  return getattr(arch, "kinds", None) or (None,) * arch.layers


def _keys_seen(lengths, kind, causal):
  """Mean number of positions that a query attends to, over texts of `lengths`."""
  window = getattr(kind, "window", None)
  near = np.minimum(lengths, np.inf if window is None else window)
  if causal:  # 1, 2, … near, near, …; as many as half of them while all are near
    total = near**2 / 2 + (lengths - near) * near
  else:
    near = np.minimum(lengths, 2 * near - 1)
    total = lengths * near
  return float(total.sum() / lengths.sum())
