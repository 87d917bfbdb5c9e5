"""Fine-tunes a pretrained model on rows of your own.

  python -m jaxsft.train --config=configs/x.py [--config.a.b=v …] [--workdir=runs/x]
                         [--print_config] [--multihost=auto]

Run again with the same --workdir to go on where it stopped. Exit codes: 0 done, 1 an error
with a sentence, 2 wrong usage, 3 stopped by SIGTERM after saving.
"""

import dataclasses
import pathlib
import time
from functools import partial
from typing import Any

import jax

from jaxsft import (
  agreement,
  answering,
  checkpoint,
  command,
  evaluate,
  finish,
  log,
  preflight,
  prepare,
  pretrained,
  results,
  sharding,
  start,
  step,
)
from jaxsft import config as config_lib
from jaxsft import job as jobs
from jaxsft.data import feed
from jaxsft.errors import JaxsftError, Preempted
from jaxsft.tuning import select


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run."""

  directory: pathlib.Path
  result: dict[str, Any]
  """What result.json holds: final and best metrics, steps, tokens, seconds, memory."""

  @property
  def export(self):
    """The exported Hugging Face directory."""
    return self.directory / "export"


def main(argv):
  flags = {"workdir": None, "print_config": False, "multihost": None}
  config, flags = command.parse(argv, flags)
  if flags["print_config"]:
    print("\n".join(config_lib.describe(config)))
    return
  if flags["multihost"]:
    start.multihost(flags["multihost"])
  finetune(config, flags["workdir"])


def finetune(config, workdir=None):
  """Trains, evaluates, saves and exports; returns a `Run`. workdir None: runs/TASK-DATE."""
  began = time.monotonic()
  config_lib.check(config)
  start.quiet()
  start.compilation_cache()
  workdir = pathlib.Path(workdir or f"runs/{config.task}-{time.strftime('%Y%m%d-%H%M%S')}")
  mesh = start.mesh_of(config.mesh)

  # 1. The checkpoint's description, and the rows as examples on disk, in their order.
  base = pretrained.open_base(config.model)
  data = prepare.prepare(config, base, mesh)
  agreement.check(config, base, data, workdir)
  metric, mode = jobs.best_by(config, data)

  # 2. The network and which of its leaves train: shapes only, no memory yet.
  network = jobs.make_network(config, base, data)
  answering.check(config, data, network)
  rows = {what: part.rows for what, part in data.evaluated.items()}
  results.check_slices(config.evaluate.slices, rows)
  shapes = jobs.shapes_of(config, network)
  chosen = jobs.choose(config, network)

  # 3. The update rule, over the planned number of updates.
  rule = jobs.make_rule(config, network, chosen, data.plan.num_steps)
  report = preflight.report(data, config, shapes, chosen, rule)
  lengths, masked = data.train.store.lengths, data.context.mask_rate
  flops = jobs.flops_per_token(network, shapes, chosen, lengths, masked)

  with (
    jax.set_mesh(mesh),
    log.Log(workdir, config.log, data.plan.num_steps, flops) as logger,
    checkpoint.Checkpoints(workdir, config.checkpoint.keep, logger.say) as checkpoints,
    start.Preemption() as preemption,
  ):
    train_step = jobs.make_train_step(config, data.task, data.options, network, rule)
    eval_step = evaluate.make_eval_step(network, data.task, data.options, mesh)
    job = jobs.Job(
      config, mesh, base, data, network, chosen, rule, train_step, eval_step,
      logger, checkpoints, metric, mode,
    )  # fmt: skip

    # 4. The state: this run's checkpoint, or the pretrained weights, or (new heads) random.
    latest = find_checkpoint(job)
    logger.preflight(config_lib.to_dict(config), report)
    state, loop = make_state(job, latest)
    finish.show_samples(
      job, state, f"after update {latest}" if latest is not None else "before training"
    )

    # 5. The updates, with evaluations and checkpoints between them.
    state, loop = train(job, state, loop, preemption)

    # 6. The best parameters, exported and checked, and what became of it all.
    result = finish.finish(job, state, loop, time.monotonic() - began)
  return Run(workdir, result)


def identity(job):
  """What a run must share with the one that it goes on from."""
  return {
    "config": jobs.resumable(config_lib.to_dict(job.config)),
    "data": job.data.plan.digest(job.data.train.store.fingerprint),
    "weights": job.base.identity(),
  }


def find_checkpoint(job):
  """The update to go on after; None: there is nothing to go on from.

  Asked before anything is written into the directory: what another run left there stays as
  it was. Raises JaxsftError where that run is not this one, or nothing of it is whole.
  """
  checkpoints = job.checkpoints
  latest = checkpoints.latest()
  if latest is not None:
    checkpoint.check_loop(jobs.of_now(checkpoints.loop(latest)), identity(job))
  elif checkpoints.steps():
    raise JaxsftError(
      f"{checkpoints.directory}: every checkpoint of this run is damaged; choose a new "
      "--workdir, or delete the directory to start over"
    )
  return latest


def make_state(job, latest):
  """(state, loop) at the first update to do; `loop` is what the host has to remember.

  latest: the update whose checkpoint is taken, of find_checkpoint.
  """
  config, checkpoints = job.config, job.checkpoints
  if latest is not None:
    init, whole = partial(step.init_state, rule=job.rule), jobs.shapes_of(config, job.network)
    shapes = jax.eval_shape(init, *select.split(whole, job.chosen))
    places = sharding.shardings_for(shapes, job.mesh)
    abstract = jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places
    )
    saved, loop = checkpoints.restore(latest, finish.saved_part(abstract))
    frozen = {}
    if shapes.frozen:
      params, _ = jobs.load_params(config, job.base, job.network, job.mesh)
      frozen = jobs.hold(select.split(params, job.chosen)[1], config.tune.base_dtype)
    frozen = jax.device_put(frozen, places.frozen)
    job.logger.say(f"going on after update {latest}")
    return step.TrainState(**saved, frozen=frozen), loop
  state, new = jobs.first_state(job)
  if new:
    job.logger.say(f"new weights: {', '.join(new)} (not in the checkpoint, drawn by seed)")
  loop = {"hashes": identity(job), "best": None, "stale": 0, "stopped": False}
  return state, loop | {"tokens": 0, "examples": 0, "export": finish.export_facts(job)}


def batches(job, first):
  """Device batches of the updates from `first` on."""
  store, plan = job.data.train.store, job.data.plan
  index, count, accumulate = jax.process_index(), jax.process_count(), job.config.accumulate
  seeded = getattr(job.data.task, "SEEDED", False)
  weighting = "token" if seeded else job.config.loss.weighting

  def make(number):
    _, row_length, segments = plan.shape(number)
    batch = feed.batch(
      store,
      feed.rows_of_process(plan.batch(number), index, count, accumulate),
      row_length=row_length,
      segments=segments,
      accumulate=accumulate,
      weighting=weighting,
      scale=job.data.scale,
    )
    by_token, arch = job.data.task.HEAD == "token", job.network.arch
    sources = getattr(arch, "source_vocab", None)
    feed.validate(batch, arch.vocab, job.base.limit, job.classes, store.ids, by_token, sources)
    if seeded:
      batch["seeds"] = feed.seeds(batch["example_ids"], job.config.seed, number)
    del batch["example_ids"]
    return batch

  hosts = feed.batches(make, first, plan.num_steps, job.config.data.prefetch)
  return sharding.put_batches(hosts, job.mesh, row_axis=1)


def train(job, state, loop, preemption):
  """(state, loop) after the last update, or after the last that improved enough."""
  config, total = job.config, job.data.plan.num_steps
  due = lambda done, every: done == total or (every and done % every == 0)
  lengths, plan = job.data.train.store.lengths, job.data.plan
  first = int(state.step)
  job.logger.start(first, (job.train_step, job.eval_step))
  if loop["stopped"]:
    return state, loop
  for number, batch in enumerate(batches(job, first), start=first):
    state, metrics = job.train_step(state, batch)
    done, examples = number + 1, plan.examples(number)
    loop["tokens"] += int(lengths[examples].sum())
    loop["examples"] += len(examples)
    job.logger.step(done, metrics, loop["tokens"], loop["examples"])
    if done == total:  # nothing is dispatched after it
      job.logger.flush()
    finish.refuse_bad_updates(job, done + (done == total))
    asked = preemption.asked(done)
    if job.data.held_out is not None and due(done, config.evaluate.every):
      loop = finish.evaluate_and_keep_best(job, state, loop, done)
      loop["stopped"] = 0 < config.evaluate.patience <= loop["stale"]
    if loop["stopped"] or asked or due(done, config.checkpoint.every):
      with job.logger.pause():
        job.checkpoints.save(done, finish.saved_part(state), loop)
    if asked and done < total:
      raise Preempted(f"stopped after update {done}, which is saved; run again to go on")
    if loop["stopped"]:
      job.logger.say(f"stopped early: no better {job.metric} in {loop['stale']} evaluations")
      break
  return state, loop


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
