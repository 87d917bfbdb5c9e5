"""The model of a run, or one that was loaded, as a Hugging Face directory.

python -m jaxsft.export --run=runs/x --out=DIR [--dtype=bfloat16]
"""

import functools
import json
import pathlib
import typing

import jax

from jaxsft import command, hf_directory, stack, tasks
from jaxsft import config as config_lib
from jaxsft.config import values
from jaxsft.errors import JaxsftError, UsageError


def write(base, network, params, directory, facts, dtype):
  """`hf_directory.write` of a network's parameters beside the checkpoint that it came from.

  base: pretrained.Pretrained. facts: finish.export_facts, how the run trained.
  """
  base = base.as_trained(facts.get("instruction", ""), facts.get("languages"))
  labels = [] if facts["label_type"] == "number" else facts["labels"]
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


def export_run(run, directory, dtype=None):
  """`write` of a run's best parameters, or of its last where it evaluated nothing.

  Raises JaxsftError where the run has saved neither.
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
    shapes = network.shapes()
    chosen = job.choose(config, network)
    trainable, frozen = select.split(shapes, chosen)
    if best is not None:
      trainable, _ = checkpoints.restore_best(trainable)
    else:
      rule = job.make_rule(config, network, chosen, total=1)
      state = jax.eval_shape(functools.partial(step.init_state, rule=rule), trainable, frozen)
      saved = checkpoints.restore(latest, finish.saved_part(state))[0]
      trainable = step.result(step.TrainState(**saved, frozen=frozen))
  if frozen:
    frozen = select.split(pretrained.load_params(base, network)[0], chosen)[1]
  params = stack.whole(step.merge(trainable, frozen))
  return write(base, network, params, directory, facts, dtype or config.export.dtype)


def main(argv):
  flags = {"run": "", "out": "", "format": "hf", "dtype": None}
  _, flags = command.parse(argv, flags, needs_config=False)
  if flags["format"] != "hf":
    raise UsageError(f"--format={flags['format']}: only hf is built so far")
  if flags["dtype"] is not None:
    kind = typing.get_type_hints(config_lib.Export)["dtype"]
    values.check(flags["dtype"], kind, "--dtype")
  files = export_run(flags["run"], flags["out"], flags["dtype"])
  print(f"{flags['out']}: {', '.join(files)}")


if __name__ == "__main__":
  command.run(main)
