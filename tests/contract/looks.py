"""Three looks at what a config makes: its examples, its update, what a run leaves behind."""

import dataclasses
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft import evaluate, start, step, train
from jaxsft import job as jobs
from jaxsft.data import feed
from jaxsft.generation import writing
from tests import tiny
from tests.contract import build


def digest(*values):
  return hashlib.sha256(repr(values).encode()).hexdigest()


def at_data(config, work):
  """Everything about the examples, their order and their arrays."""
  job = build.job(config, tiny.devices(1))
  data, parts = job.data, []
  for part, plan in ((data.train, data.plan), (data.held_out, data.eval_plan)):
    if part is None:
      continue
    layout = [plan.batch(k) for k in range(plan.num_steps)]
    shapes = [plan.shape(k) for k in range(plan.num_steps)]
    parts.append((part.store.ids, part.store.fingerprint, layout, shapes))
  first = next(iter(train.batches(job, 0)))
  arrays = {k: np.asarray(v).tolist() for k, v in sorted(first.items())}
  return digest(parts, data.context.labels, job.base.identity(), arrays)


def at_step(config, work):
  """The update as the tracer sees it, constants and all, where its arrays lie, and how
  adapters begin."""
  job = build.job(config, start.mesh_of(config.mesh))
  halves = train.select.split(jobs.shapes_of(config, job.network), job.chosen)
  hold = lambda frozen: jobs.hold(frozen, config.tune.base_dtype)
  state = jax.eval_shape(lambda a, b: step.init_state(a, hold(b), job.rule), *halves)
  places = train.sharding.shardings_for(state, job.mesh)
  with jax.set_mesh(job.mesh):
    first = next(iter(train.batches(job, 0)))
    traced = str(job.train_step.trace(state, first).jaxpr)
  rates = [float(job.rule.schedule(i)) for i in range(20)]
  began = build.host(build.params(job)) if config.tune.method == "lora" else {}
  sums = {path: float(abs(leaf).sum()) for path, leaf in began.items() if "lora" in path}
  return digest(re.sub(r"0x[0-9a-f]+", "", traced), str(places), rates, sums)


class StandIn:
  """In the place of a compiled function."""

  seconds, bytes, count = 0.0, 0, 0

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)


def at_run(config, work):
  """What a run leaves behind and asks for; updates and evaluations only pretend."""
  asked, calls = [], []

  def update(state, batch):
    now = jax.tree.map(lambda x: x + 0.01, state.trainable)
    done = int(state.step) + 1
    metrics = {"loss": 1 / done, "grad_norm": 1.0, "lr": 0.1, "weight": 8.0, "skipped": 0}
    metrics = {k: jnp.float32(v) for k, v in metrics.items()}
    metrics["bad"] = jnp.int32(min(3, done) if config.steps == 12 else 0)
    return dataclasses.replace(state, step=state.step + 1, trainable=now), metrics

  def look(params, batch):
    calls.append(1)
    places, shape = {"example_ids": batch["example_ids"]}, batch["example_ids"].shape
    if config.task == "chat":
      found = {"nll": len(calls) * 1.0, "tokens": 1.0, "right": 0.5 + 0.1 * (len(calls) == 2)}
      return {name: jnp.full(shape, x) for name, x in found.items()}, places
    if config.task == "answer":
      x = batch["inputs"] * 1.7 + batch["positions"]
      places |= {name: batch[name] for name in ("segments", "positions")}
      return {"logits": jnp.stack([jnp.sin(x), jnp.cos(x)], -1)}, places
    tilt = len(calls) * (1.0 if len(calls) in (2, 4) else -1.0)
    logits = tilt * jnp.arange(3 if config.data.label_type == "multi" else 2, dtype=float)
    return {"logits": jnp.broadcast_to(logits, (*shape, len(logits)))}, places

  def texts(network, params, tokenizer, prompts, *, max_new_tokens, **rules):
    chosen = {name: rules.get(name) for name in ("num_beams", "length_penalty")}
    asked.append((prompts, max_new_tokens, chosen))
    return [[writing.Answer("it is sevens meows woofs", 0.0, False)]] * len(prompts)

  deliver = feed.batches

  def batches(make, first, stop, prefetch):
    asked.append(prefetch)
    return deliver(make, first, stop, prefetch)

  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    patch.setattr(jobs, "make_train_step", lambda *_: StandIn(update))
    patch.setattr(evaluate, "make_eval_step", lambda *_: StandIn(look))
    patch.setattr(writing, "written", texts)
    patch.setattr(feed, "batches", batches)
    result = train.finetune(config, work).result
  timed = ("train_seconds", "tokens_per_second", "examples_per_second")
  lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
  lines = [{k: v for k, v in line.items() if k not in timed} for line in lines]
  files = sorted(
    re.sub(r"tfevents.*", "tfevents", path.relative_to(work).as_posix())
    for path in work.rglob("*")
    if "/arrays/" not in path.as_posix()  # Orbax draws names there
  )
  weights = work / "export" / "model.safetensors"
  exported = weights.read_bytes() if weights.exists() else None
  best = result["best"]
  held_out = work / "evaluation" / "metrics.json"
  measured = held_out.read_text() if held_out.exists() else None
  shown = result["examples"]
  return digest(lines, files, best, asked, result["steps"], exported, measured, shown)


LOOKS = {"data": at_data, "step": at_step, "run": at_run}
