"""What surrounds the updates: evaluations, the best parameters, samples, export, last page."""

import itertools
import resource
import sys

import jax
import numpy as np

from jaxsft import evaluate, export, generate, results, step, tasks, weights
from jaxsft.data import forms
from jaxsft.data import messages as conversations
from jaxsft.errors import JaxsftError

SAMPLES = 3


def saved_part(state):
  """What a checkpoint holds of a TrainState (or of its shapes): never the frozen leaves."""
  return {
    "step": state.step,
    "trainable": state.trainable,
    "opt_state": state.opt_state,
    "skipped": state.skipped,
    "bad": state.bad,
  }


def evaluate_and_keep_best(job, state, loop, done):
  """`loop` after one evaluation; the best parameters so far are saved apart."""
  held_out, data = job.data.held_out, job.data
  params = step.merge(state.trainable, state.frozen)
  with job.logger.pause():
    found = evaluate.measure(job.eval_step, params, held_out, data.eval_plan, job.mesh)
    metrics = data.task.metrics(found, data.context)
    job.logger.evaluation(done, metrics | _of_further_sets(job, params))
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
    best |= {"examples": examples, "export": loop["export"]}
    if jax.process_index() == 0:
      place, slices = job.logger.directory / "evaluation", job.config.evaluate.slices
      results.write(place, found, data.task, data.context, metrics, slices)
    job.checkpoints.save_best(state.trainable, best)
    return loop | {"stale": 0, "best": best, "last": metrics}


def _of_further_sets(job, params):
  """The numbers of evaluate.sets, with the set's name in front."""
  numbers = {}
  for name, (examples, plan) in job.data.sets.items():
    found = evaluate.measure(job.eval_step, params, examples, plan, job.mesh)
    metrics = job.data.task.metrics(found, job.data.context)
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
  """The first held-out rows with what the model says of them; [] where it says text."""
  task, shown = job.data.task, []
  for one in found[:SAMPLES] if task.GOLD else ():
    given, gold = tasks.given_and_gold(one.row, task)
    shown.append(given | gold | task.decode(one, job.data.context))
  return shown


def sample_prompts(job):
  """Prompts of the config, or the beginnings of three held-out conversations, if there are."""
  if job.config.evaluate.prompts:
    return list(job.config.evaluate.prompts)
  part = job.data.held_out or job.data.train
  found, talks = [], (row for row in part.rows if forms.form(row.fields) != "text")
  for row in itertools.islice(talks, SAMPLES):
    messages = conversations.conversation(row.fields)
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    found.append(messages[:last])
  return found


def show_samples(job, state, when):
  """Answers of a chat model to a few prompts, printed and returned; {} for other tasks."""
  if job.config.task != "chat" or not job.config.evaluate.max_new_tokens:
    return {}
  config, prompts = job.config.evaluate, sample_prompts(job)
  limit = job.base.limit - config.max_new_tokens
  template = job.data.context.chat_template
  fits = [len(generate.encode(p, job.base.tokenizer, template)) <= limit for p in prompts]
  if not all(fits):
    job.logger.say(f"{fits.count(False)} sample prompts are too long to be answered")
    prompts = [p for p, fit in zip(prompts, fits, strict=True) if fit]
  if not prompts:
    return {}
  params = step.merge(state.trainable, state.frozen)
  with job.logger.pause():
    texts = generate.answers(
      job.network,
      params,
      job.base.tokenizer,
      prompts,
      stop_ids=stop_ids(job),
      template=template,
      max_new_tokens=config.max_new_tokens,
    )
  asked = [p if isinstance(p, str) else p[-1]["content"] for p in prompts]
  shown = [{"prompt": p, "answer": text} for p, text in zip(asked, texts, strict=True)]
  job.logger.samples(when, shown)
  return shown


def stop_ids(job):
  """Every id that ends an answer: those that were supervised, and the checkpoint's own."""
  return sorted(set(job.data.train.counts["stop_ids"]) | set(generate.stop_ids(job.base)))


def finish(job, state, loop, seconds):
  """Exports the best parameters and writes and shows result.json; returns it."""
  best, done = loop["best"], int(state.step)
  job.logger.flush()
  if best is not None and best["step"] != done:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.trainable
    )
    trainable, _ = job.checkpoints.restore_best(abstract)
    state = step.TrainState(
      state.step, trainable, state.frozen, state.opt_state, state.skipped, state.bad
    )
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
  if job.config.export.format != "none":
    result["export"] = str(job.logger.directory / "export")
    write_export(job, state, result["export"])
  return job.logger.close_with(result, seconds)


def write_export(job, state, directory):
  """The Hugging Face directory of a run, read back and compared; process 0 writes it."""
  params = step.merge(state.trainable, state.frozen)
  if jax.process_count() > 1:
    params = jax.tree.map(weights.params.on_host, params)
  if jax.process_index() == 0:
    facts = export_facts(job)
    export.write(job.base, job.network, params, directory, facts, job.config.export.dtype)


def export_facts(job):
  """What an export needs to know beside the weights; JSON, kept with every checkpoint."""
  context, chat = job.data.context, job.config.task == "chat"
  return {
    "labels": list(context.labels),
    "label_type": context.label_type,
    "threshold": context.threshold,
    "chat_template": context.chat_template,
    "stop_ids": stop_ids(job) if chat else [],
  }
