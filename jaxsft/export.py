"""The model of a run, or one that was loaded, as a Hugging Face directory.

python -m jaxsft.export --run=runs/x --out=DIR [--format=hf|merged|peft] [--dtype=bfloat16]

--format: as config.export.format; without it the run's own, and "hf" where that is "none".
"""

import functools
import json
import pathlib
import typing

import jax

from jaxsft import adapted, command, hf_directory, tasks
from jaxsft import config as config_lib
from jaxsft.config import values
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tuning import lora, merge


def write(base, network, params, directory, facts, dtype, format="hf"):
  """`hf_directory.write` of a network's parameters beside the checkpoint that it came from.

  base: pretrained.Pretrained. facts: finish.export_facts, how the run trained. params: with
  adapters, if there are any, which format="peft" keeps apart; else they are merged.
  """
  base = base.as_trained(facts.get("instruction", ""), facts.get("languages"))
  labels = [] if facts["label_type"] == "number" else facts["labels"]
  store = notes = None
  if format == "peft":
    store = functools.partial(
      adapted.store, base=base, network=network, params=params, adapter=facts["adapter"]
    )
  elif lora.has(params):
    params, error = merge.merged(network, params, dtype)
    notes = {"merged": {"largest_difference_of_logits": error}}
  return hf_directory.write(
    directory,
    source_config=base.config,
    family=base.family,
    arch=base.arch,
    head=network.head,
    params=params,
    tokenizer=base.tokenizer,
    chat_template=facts["chat_template"],
    stop_ids=facts["stop_ids"],
    labels=labels,
    label_type=facts["label_type"],
    threshold=facts.get("threshold", 0.5),
    answering=facts.get("answering"),
    dtype=dtype,
    generation_config=base.generation,
    store=store,
    notes=notes,
  )


def save(model, directory, dtype="float32"):
  """`write` of a pretrained.Model; returns the names of the files."""
  from jaxsft.generation import stops

  writes, template = model.network.head.kind == "lm", model.context.chat_template
  facts = {
    "labels": model.context.labels,
    "label_type": model.context.label_type,
    "threshold": model.context.threshold,
    "answering": tasks.answering(model.context),
    "chat_template": None,
    "instruction": model.context.instruction,
    "languages": None,
    "stop_ids": stops.stop_ids(model.base, template) if writes else [],
  }
  return write(model.base, model.network, model.params, directory, facts, dtype)


def export_run(run, directory, dtype=None, format=None):
  """`write` of a run's best parameters, or of its last where it evaluated nothing.

  format: as in config.export; None: the run's own. Raises JaxsftError where the run has saved
  no parameters.
  """
  from jaxsft import checkpoint, finish, job, pretrained, step
  from jaxsft.tuning import select

  run = pathlib.Path(run)
  for name in ("config.json", "data.json"):
    if not (run / name).is_file():
      raise JaxsftError(
        f"--run={run}: has no {name}, expected a run directory, the --workdir of a training"
      )
  config = config_lib.from_dict(json.loads((run / "config.json").read_text("utf-8")))
  config = config_lib.override(config, "export.format", format or _usual(config))
  config = config_lib.override(config, "export.dtype", dtype or config.export.dtype)
  config_lib.check(config)
  base = pretrained.open_base(config.model)
  with checkpoint.Checkpoints(run, read_only=True) as checkpoints:
    best, latest = checkpoints.best(), checkpoints.latest()
    if best is None and latest is None:
      if checkpoints.steps() or any(checkpoints.best_directory.glob("[0-9]*")):
        raise JaxsftError(
          f"--run={run}: every checkpoint and the best parameters are damaged (see above); "
          "restore the directory from a copy, or train again"
        )
      raise JaxsftError(f"--run={run}: has saved no parameters yet; let it reach a checkpoint")
    facts = (best or checkpoints.loop(latest))["export"]
    network = base.network(config.task, facts["labels"])
    shapes = job.shapes_of(config, network)
    chosen = job.choose(config, network)
    trainable, frozen = select.split(shapes, chosen)
    if best is not None:
      trainable, _ = checkpoints.restore_best(trainable)
    else:
      rule = job.make_rule(config, network, chosen, total=1)
      state = jax.eval_shape(functools.partial(step.init_state, rule=rule), trainable, frozen)
      saved = checkpoints.restore(latest, finish.saved_part(state))[0]
      trainable = step.result(step.TrainState(**saved, frozen=frozen))
  params = trainable
  if frozen:
    params = job.trained_params(config, base, network, chosen, trainable)
  facts |= {"adapter": job.adapter_facts(config, base, chosen)}
  settings = config.export
  return write(base, network, params, directory, facts, settings.dtype, settings.format)


def _usual(config):
  """The format of a run that does not say another; "none" is for the end of training."""
  return "hf" if config.export.format == "none" else config.export.format


def main(argv):
  flags = {"run": "", "out": "", "format": None, "dtype": None}
  _, flags = command.parse(argv, flags, needs_config=False)
  kinds = typing.get_type_hints(config_lib.Export)
  for name in ("dtype", "format"):
    if flags[name] is not None:
      values.check(flags[name], kinds[name], f"--{name}")
  if flags["format"] == "none":
    raise UsageError("--format=none: would write nothing; expected hf, merged or peft")
  files = export_run(flags["run"], flags["out"], flags["dtype"], flags["format"])
  print(f"{flags['out']}: {', '.join(files)}")


if __name__ == "__main__":
  command.run(main)
