"""A run taken apart: what `train.finetune` builds from a config, on a mesh of one's choice."""

import dataclasses

import jax
import numpy as np

from jaxsft import evaluate, prepare, pretrained, sharding, step, train
from jaxsft import job as jobs
from jaxsft.tuning import select


def job(config, mesh):
  """The `Job` of a config on a mesh, without a directory to write to."""
  model = config.model
  base = pretrained.open_base(model)
  data = prepare.prepare(config, base, mesh)
  metric, mode = jobs.best_by(config, data)
  network = jobs.make_network(config, base, data)
  chosen = jobs.choose(config, network)
  rule = jobs.make_rule(config, network, chosen, data.plan.num_steps)
  with jax.set_mesh(mesh):
    train_step = jobs.make_train_step(config, data.task, data.options, network, rule)
    eval_step = evaluate.make_eval_step(network, data.task, data.options, mesh)
  return jobs.Job(
    config, mesh, base, data, network, chosen, rule, train_step, eval_step,
    None, None, metric, mode,
  )  # fmt: skip


def params(job):
  """The checkpoint's weights, with a new head where the task needs one."""
  return jobs.load_params(job.config, job.base, job.network, job.mesh)[0]


def state(job):
  """The state before the first update."""
  trainable, frozen = select.split(params(job), job.chosen)
  split = trainable, jobs.hold(frozen, job.config.tune.base_dtype)
  make = lambda a, b: step.init_state(a, b, job.rule)
  places = sharding.shardings_for(jax.eval_shape(make, *split), job.mesh)
  return jax.jit(make, out_shardings=places)(*split)


def updates(job, change=lambda batch: batch):
  """(trainable leaves by path, [metrics]) after all updates of the plan, on the host."""
  with jax.set_mesh(job.mesh):
    now, seen = state(job), []
    for batch in train.batches(job, 0):
      now, metrics = job.train_step(now, change(batch))
      seen.append(jax.device_get(metrics))
  return host(now.trainable), seen


def host(tree):
  """{"a/b": numpy array} of a tree."""
  return {path: np.asarray(leaf) for path, leaf in select.paths(tree)}


def with_plan(job, plan):
  """The job with another plan of the same updates."""
  return dataclasses.replace(job, data=dataclasses.replace(job.data, plan=plan))
