"""The doctor of a config's data; or what a checkpoint is and what training it takes.

  python -m jaxsft.inspect --config=configs/x.py [--config.a.b=v …] [--json=FILE] [--html=FILE]

Prepares the rows as training would and prints what it finds in three grades: what refuses to
train, what warns, what is noted (docs/doctor.md). --html is a page with the tokens as the model
will see them. Exit codes: 0 training would start, 1 it would not.

  python -m jaxsft.inspect --model=DIR_OR_NAME [--rows=8] [--length=512] [--json=FILE]

Prints the family, the sizes, the memory of training with each tuning method, and how far
the family's logits and gradients are from torch transformers' in the tests. Weights are not
read, only their names and shapes.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from jaxsft import command, families, log, models, pretrained, start
from jaxsft.doctor import examination, page
from jaxsft.errors import UsageError
from jaxsft.tuning import select

PARITY = pathlib.Path(families.__file__).with_name("parity.json")
METHODS = ("all", "head")
SHOWN = 10  # labels
OF_MODEL = ("rows", "length", "sha256", "revision", "allow_pytorch_bin")  # flags
REMATS = ("none", "dots", "full")
FLOAT = 4  # bytes of a trained weight, its gradient, and each of AdamW's two moments


def describe(base, rows, length):
  """A dict of everything that `main` prints of a `pretrained.Pretrained`.

  Memory is in bytes: of weights, gradient sums and moments by the shapes, and of what the
  backward pass keeps of a batch of `rows` x `length` tokens, as jax.vjp says, for each
  setting of model.remat.
  """
  kind = base.kind if base.kind != "none" else models.KINDS[type(base.arch)][1]
  network = base.network_of(kind, max(len(base.labels), 2))
  shapes = dict(select.paths(network.shapes()))
  source = base.source
  return {
    "path": str(base.path),
    "adapter_of": None if base.adapted is None else str(base.adapted.base.path),
    "family": base.config["model_type"],
    "class": (base.config.get("architectures") or ["unknown"])[0],
    "architecture": network.module.__name__.rpartition(".")[2],
    "head": base.kind,
    "labels": list(base.labels),
    "task": base.task,
    "sizes": sizes(base.arch),
    "parameters": sum(leaf.size for leaf in shapes.values()),
    "dtype": sorted({info.dtype for info in source.tensors.values()}),
    "heads": [kind for kind in models.KINDS[type(base.arch)] if kind != "none"],
    "training": [_training(network, shapes, method) for method in METHODS],
    "kept": {"rows": rows, "length": length, **_kept(network, rows, length)},
    "parity": parity(base.config["model_type"]),
  }


def sizes(arch):
  """{"layers": …} of an architecture: its whole numbers but zeros, by their names."""
  found = {}
  for name, value in vars(arch).items():
    if value and isinstance(value, int) and not isinstance(value, bool):
      found[name] = value
    elif hasattr(value, "__dataclass_fields__"):
      found |= {f"{name}.{inner}": number for inner, number in sizes(value).items()}
  return found


def parity(family):
  """{part: {"logits": …, "gradients": …}} that the tests found; {} where none is recorded."""
  return json.loads(PARITY.read_text("utf-8")).get(family, {}) if PARITY.is_file() else {}


def _training(network, shapes, method):
  """Bytes of weights, gradients and moments with one of METHODS, or why there is none."""
  try:
    chosen = select.choose(network.shapes(), method, stacks=network.stacks)
  except UsageError:
    return {"method": method, "trainable": 0}
  trained = sum(chosen.trained(path, leaf) for path, leaf in shapes.items())
  return {
    "method": method,
    "trainable": trained,
    "weights": FLOAT * sum(leaf.size for leaf in shapes.values()),
    "gradients": FLOAT * trained,
    "moments": 2 * FLOAT * trained,
  }


def _kept(network, rows, length):
  """{setting of model.remat: bytes kept for the backward pass}; nothing is computed."""
  found = {}
  for remat in REMATS:
    one = dataclasses.replace(network, remat=remat)
    # What does not grow with the batch are the weights, which are counted apart.
    found[remat] = _residuals(one, 2 * rows, length) - _residuals(one, rows, length)
  return found


def _residuals(network, rows, length):
  """Bytes of everything that the backward pass of a batch needs, weights among it."""
  tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  batch = {"inputs": tokens, "segments": tokens, "positions": tokens}
  if network.has_source:
    batch |= {f"source{end}": tokens for end in ("", "_segments", "_positions")}

  def pull(params, batch):
    return jax.vjp(lambda params: jnp.sum(network.hidden(params, batch)), params)[1]

  leaves = jax.tree.leaves(jax.eval_shape(pull, network.shapes(), batch))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def main(argv):
  flags = {"model": None, "rows": 8, "length": 512, "json": None, "html": None}
  flags |= {"sha256": None, "revision": None, "allow_pytorch_bin": False}
  config, found = command.parse(argv, flags, needs_config=False)
  start.quiet()
  if (config is None) == (found["model"] is None):
    raise UsageError("expected --config=configs/….py for its data, or --model=… for a model")
  if config is None:
    _model(found)
    return
  if given := [name for name in OF_MODEL if found[name] != flags[name]]:
    raise UsageError(f"--{given[0]}: is for --model, not for --config")
  _data(config, found["json"], found["html"])


def _data(config, json_file, html_file):
  """Prints and writes the examination of a config's data; exits with 1 where it is refused."""
  result = log.scrub(examination.examine(config))
  print(examination.text(result))
  if json_file:
    log.write_json(json_file, result)
  if html_file:
    page.write(html_file, result)
    print(f"page       {html_file}")
  if examination.refused(result):
    sys.exit(1)


def _model(flags):
  """Prints and writes what a checkpoint is."""
  if flags["html"] is not None:
    raise UsageError("--html: is for --config, not for --model")
  for name in ("rows", "length"):
    if flags[name] < 1:
      raise UsageError(f"--{name}={flags[name]}: expected at least 1")
  base = pretrained.open_pretrained(
    flags["model"], flags["sha256"], flags["revision"], flags["allow_pytorch_bin"]
  )
  found = describe(base, flags["rows"], min(flags["length"], base.limit))
  print(text(found))
  if flags["json"]:
    log.write_json(flags["json"], found)


def text(found):
  """The lines of `main` for a dict of `describe`."""
  sizes = ", ".join(f"{name} {value:,}" for name, value in found["sizes"].items())
  kept, labels = found["kept"], ", ".join(found["labels"][:SHOWN])
  more = len(found["labels"]) - SHOWN
  labels += f" and {more} more" if more > 0 else ""
  of = found["adapter_of"]
  lines = [
    f"{found['path']}: {found['class']}",
    *([f"adapter     of {of}, whose sizes and weights are meant here"] if of else []),
    f"family      {found['family']} ({found['architecture']})",
    f"sizes       {sizes}",
    f"parameters  {found['parameters']:,}, stored as {', '.join(found['dtype'])}",
    f"head        {found['head']}" + (f": {labels}" if labels else ""),
    f"heads       {', '.join(found['heads'])}",
    f"training    in float32 with AdamW, of {kept['rows']} x {kept['length']} tokens a batch:",
  ]
  for one in found["training"]:
    if one["trainable"]:
      state = one["weights"] + one["gradients"] + one["moments"]
      lines.append(
        f"  {one['method']:5} {one['trainable']:,} weights train; {_size(one['weights'])} of "
        f"weights + {_size(one['gradients'])} gradients + {_size(one['moments'])} moments "
        f"= {_size(state)}"
      )
    else:
      lines.append(f"  {one['method']:5} this model has no head of its own to train")
  keeps = ", ".join(f"{_size(kept[remat])} with remat={remat!r}" for remat in REMATS)
  lines.append(f"  kept for the backward pass besides: {keeps}")
  if found["parity"]:
    for part, numbers in found["parity"].items():
      shown = ", ".join(f"{name} {value:.0e}" for name, value in numbers.items())
      lines.append(f"parity      {part}: {shown} (largest difference from torch transformers)")
  else:
    lines.append("parity      not recorded for this family")
  return "\n".join(lines)


def _size(count):
  """Bytes as text."""
  for unit in ("bytes", "kB", "MB", "GB"):
    if count < 1000 or unit == "GB":
      return f"{count:.3g} {unit}"
    count /= 1000


if __name__ == "__main__":
  command.run(main)
