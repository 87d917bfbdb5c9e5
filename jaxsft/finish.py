"""What surrounds the updates: evaluations, the best parameters, samples, export, last page."""

import dataclasses
import itertools
import json
import resource
import sys

import jax
import numpy as np

from jaxsft import answering, evaluate, export, mixing, results, stack, step, tasks, weights
from jaxsft import job as jobs
from jaxsft.data import read, template_date
from jaxsft.data.cleaning import fields
from jaxsft.errors import JaxsftError
from jaxsft.generation import prompts, stops, writing
from jaxsft.tuning import lora

SAMPLES = 3


def saved_part(state):
  """What a checkpoint holds of a TrainState (or of its shapes): never the frozen leaves."""
  return {
    "step": state.step,
    "trainable": state.trainable,
    "opt_state": state.opt_state,
    "skipped": state.skipped,
    "bad": state.bad,
    "average": state.average,
  }


def evaluate_and_keep_best(job, state, loop, done):
  """`loop` after one evaluation; the best parameters so far are saved apart."""
  params = step.params(state)
  with job.logger.pause():
    generates = answers_are_due(job, done)
    found, metrics = measure(job, params, job.data.held_out, job.data.eval_plan, generates)
    further = _of_sets(job, params, found, generates)
    job.logger.evaluation(done, metrics | further)
    for note in metrics.get("notes", ()):
      job.logger.say(f"note: {note}")
    value = metrics.get(job.metric)
    if not isinstance(value, float) or not np.isfinite(value):
      why = metrics.get("undefined", {}).get(job.metric)
      raise JaxsftError(
        f"the evaluation after update {done} gave {job.metric}={value!r}"
        f"{f' ({why})' if why else ''}, expected a finite number; choose another "
        "config.evaluate.metric or lower config.optim.peak_lr"
      )
    best = loop["best"]
    sign = 1 if job.mode == "max" else -1
    if best is not None and sign * value <= sign * best["value"]:
      return loop | {"stale": loop["stale"] + 1, "last": metrics}
    examples = predictions(job, found)
    best = {"step": done, "metric": job.metric, "value": value, "metrics": metrics}
    best |= {"examples": examples, "export": loop["export"], "sets": further}
    _write_results(job, found, metrics)
    job.checkpoints.save_best(step.result(state), best)
    return loop | {"stale": 0, "best": best, "last": metrics}


def measure(job, params, examples, plan, generates):
  """([tasks.Found], metrics) of a part of the data; `generates`: with answers to some rows."""
  rules = answering.settings(job.config, job.base) | how_answers_end(job) if generates else None
  return evaluate.scored(
    job.eval_step, params, examples, plan, job.mesh,
    network=job.network, task=job.data.task, context=job.data.context, rules=rules,
  )  # fmt: skip


def answers_are_due(job, done):
  """Whether the evaluation after update `done` generates answers."""
  wanted, last = job.config.evaluate, done == job.data.plan.num_steps
  every = wanted.generate_every
  due = every is None or last or (every > 0 and done % every == 0)
  return wanted.generate != 0 and due


def how_answers_end(job):
  """The stop ids and the frame of answers: those of training."""
  return {"stop_ids": stop_ids(job), "frame": answering.frame_of(job.base, job.data.context)}


def stop_ids(job):
  """Every id that ends an answer: those that were supervised, and the checkpoint's own."""
  supervised = job.data.train.counts["stop_ids"]
  return stops.stop_ids(job.base, job.data.context.chat_template, supervised)


def _write_results(job, found, metrics):
  if jax.process_index() == 0:
    place, slices = job.logger.directory / "evaluation", job.config.evaluate.slices
    results.write(place, found, job.data.task, job.data.context, metrics, slices)


def _spread(job, best):
  """ "intervals" and "slices" of the best evaluation, as metrics.json of the run has them."""
  path = job.logger.directory / "evaluation/metrics.json"
  if best is None or not path.exists():
    return {}
  found = json.loads(path.read_text("utf-8"))
  return {name: found[name] for name in ("intervals", "slices") if name in found}


def _of_sets(job, params, found, generates):
  """The numbers of the data sets of a mixture, of the held-out rows' [tasks.Found], and of
  evaluate.sets, with the set's name in front.
  """
  numbers = mixing.by_part(found, job.data.task, job.data.context)
  for name, (examples, plan) in job.data.sets.items():
    _, metrics = measure(job, params, examples, plan, generates)
    numbers |= {f"{name}/{k}": v for k, v in metrics.items() if isinstance(v, float)}
  return numbers


def refuse_bad_updates(job, done):
  """Raises JaxsftError after optim.max_bad_steps non-finite updates in a row.

  Looks at the update before the one just dispatched, so that the device is never waited for.
  """
  last, limit = job.logger.last, job.config.optim.max_bad_steps
  if last.get("bad", 0) >= limit:
    raise JaxsftError(
      f"the {limit} updates up to number {done - 1} were not finite (the last has loss "
      f"{last['loss']} and gradient norm {last['grad_norm']}) and were skipped; lower "
      "config.optim.peak_lr or look at the rows; the last checkpoint is finite"
    )


def predictions(job, found):
  """The first held-out rows with what the model says of them; [] where it says nothing."""
  task, context = job.data.task, job.data.context
  said = ((one, task.decode(one, context)) for one in (found if task.GOLD else ()))
  shown = []
  for one, words in itertools.islice((pair for pair in said if pair[1]), SAMPLES):
    given, gold = tasks.given_and_gold(one.row, task)
    shown.append(given | gold | words)
  return shown


def samples(job):
  """[(what is shown of a prompt, its ids, gold answers)]: the config's, or of held-out rows."""
  task, context = job.data.task, job.data.context
  own = [fields.prompt(one, context.text_steps) for one in job.config.evaluate.prompts]
  if task.SOURCE and own:
    rows = [read.Row("", "config.evaluate.prompts", {"source": text}) for text in own]
  elif own:
    how = (job.base.tokenizer, context.chat_template, context.control_tokens == "escape")
    ids = [prompts.encode(prompt, *how) for prompt in own]
    return [(text, mine, ()) for text, mine in zip(own, ids, strict=True)]
  else:
    rows = (job.data.held_out or job.data.train).rows
  asked = ((row, task.prompt(row, context)) for row in rows)
  asked = ((row, ids) for row, ids in asked if ids is not None)
  asked = asked if own else itertools.islice(asked, SAMPLES)
  return [(task.asked(row), ids, task.references(row)) for row, ids in asked]


def show_samples(job, state, when):
  """Answers to a few prompts, printed and returned; [] for tasks that write none."""
  limit = job.config.evaluate.max_new_tokens
  if not hasattr(job.data.task, "prompt") or not limit:
    return []
  known = samples(job)
  fit = [one for one in known if not prompts.room(job.network, len(one[1]), limit)]
  if len(fit) < len(known):
    job.logger.say(f"{len(known) - len(fit)} sample prompts are too long to be answered")
  if not fit:
    return []
  params = step.params(state)
  rules = answering.settings(job.config, job.base) | how_answers_end(job)
  del rules["count"]
  with job.logger.pause():
    asked = [ids for _, ids, _ in fit]
    said = writing.written(job.network, params, job.base.tokenizer, asked, **rules)
  shown = []
  for (text, _, gold), (best,) in zip(fit, said, strict=True):
    shown.append({"prompt": text, "answer": best.text} | ({"gold": gold[0]} if gold else {}))
  job.logger.samples(when, shown)
  return shown


def finish(job, state, loop, seconds):
  """Exports the best parameters and writes and shows result.json; returns it."""
  best, done = loop["best"], int(state.step)
  job.logger.flush()
  if best is not None and best["step"] != done:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), step.result(state)
    )
    found, _ = job.checkpoints.restore_best(abstract)
    state = dataclasses.replace(state, **{"average" if state.average else "trainable": found})
  if best is not None and job.config.evaluate.generate and "answered" not in best["metrics"]:
    params = step.params(state)
    with job.logger.pause():
      found, metrics = measure(job, params, job.data.held_out, job.data.eval_plan, True)
      further = _of_sets(job, params, found, True)
    best = best | {"metrics": metrics, "examples": predictions(job, found), "sets": further}
    _write_results(job, found, metrics)
  answers = show_samples(job, state, "after training")
  result = {
    "task": job.config.task,
    "metrics": best["metrics"] if best else job.logger.last,
    "best": best and {k: best[k] for k in ("step", "metric", "value")},
    "examples": best["examples"] if best and best["examples"] else answers,
    "steps": done,
    "skipped": int(state.skipped),
    "tokens": loop["tokens"],
    "examples_seen": loop["examples"],
    "compile_seconds": job.train_step.seconds + job.eval_step.seconds,
    "compilations": job.train_step.count + job.eval_step.count,
    "device_bytes": max(job.train_step.bytes, job.eval_step.bytes),
    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    * (1 if sys.platform == "darwin" else 1024),
  }
  result |= _spread(job, best)
  if best is not None and best["sets"]:
    result["sets"] = best["sets"]
  if job.config.export.format != "none":
    result["export"] = str(job.logger.directory / "export")
    write_export(job, state, result["export"])
  return job.logger.close_with(result, seconds)


def write_export(job, state, directory):
  """The Hugging Face directory of a run, read back and compared; process 0 writes it."""
  config, base, network = job.config, job.base, job.network
  params = stack.whole(step.params(state))
  if lora.has(params) or config.tune.base_dtype != "float32":
    params = jobs.trained_params(
      config, base, network, job.chosen, step.result(state), job.mesh
    )
  if jax.process_count() > 1:
    params = jax.tree.map(weights.params.on_host, params)
  if jax.process_index() == 0:
    facts = export_facts(job) | {"adapter": jobs.adapter_facts(config, base, job.chosen)}
    settings = config.export
    export.write(base, network, params, directory, facts, settings.dtype, settings.format)


def export_facts(job):
  """What an export needs to know beside the weights; JSON, kept with every checkpoint."""
  context, writes = job.data.context, hasattr(job.data.task, "prompt")
  return {
    "labels": list(context.labels),
    "label_type": context.label_type,
    "threshold": context.threshold,
    "answering": tasks.answering(context),
    "chat_template": template_date.undated(context.chat_template),
    "stop_ids": stop_ids(job) if writes else [],
    "instruction": context.instruction,
    "languages": context.languages,
  }
