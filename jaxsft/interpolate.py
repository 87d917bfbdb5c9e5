"""A tuned model and the pretrained one it came from, combined; every combination is measured.

  python -m jaxsft.interpolate --model=DIR_OR_RUN --config=configs/x.py --out=DIR
    [--base=PRETRAINED] [--alphas=0:1:11] [--max_forgetting=0.02]
    [--general=text.txt | --general_config=configs/y.py]

Makes M = alpha M_p + (1 - alpha) M_t (p pretrained, t tuned) for every alpha, measures each on
the rows that `evaluate` measures and on a general text, and writes the best by the task's
metric as a Hugging Face directory, DIR/model, with the table and the curve beside it. 0 (the
tuned model) and 1 (the pretrained one) are always measured. Without --base it is config.model.

  --alpha=A                        this alpha is written, whatever the numbers are
  --alphas_of='{"embed": 0.0, "layers.0-5": 0.5}'   an alpha of their own for these parameters
  --groups layers.0-5 layers.6-11  after the best alpha: the best one of each group, in turn
  --how=linear                     slerp: along the arc instead of the line; of several
                                   --model=A,B,C: soup, greedy_soup, task_arithmetic, ties, dare
  --density=0.2                    ties, dare: share of what tuning changed that stays
  --sign=total                     ties: how a sign wins; or frequency
  --seed=0 --dtype=float32         of dare's draw; of the weights that are written

docs/combining.md says what each means.
"""

import dataclasses
import json
import math
import pathlib
import sys
import typing
from typing import NamedTuple

import jax

from jaxsft import (
  alpha_page,
  command,
  evaluate,
  export,
  forgetting,
  hf_directory,
  log,
  pretrained,
  start,
  weights,
)
from jaxsft import config as config_lib
from jaxsft.config import values
from jaxsft.errors import UsageError
from jaxsft.tuning import alphas, combine, endpoints

FLAGS = {
  "model": (), "base": None, "how": "linear", "alphas": "0:1:11", "alpha": None,
  "alphas_of": None, "groups": (), "general": None, "general_config": None,
  "max_forgetting": None, "density": 0.2, "sign": "total", "seed": 0, "dtype": "float32",
  "out": "",
}  # fmt: skip
SOUPS = ("soup", "greedy_soup")
OF_MANY = (*SOUPS, "task_arithmetic", "ties", "dare")
HOWS = ("linear", "slerp", *OF_MANY)
USED_BY = {"density": ("ties", "dare"), "sign": ("ties",), "seed": ("dare",)}
AGAINST = {
  "alpha": ("alphas", "groups", "max_forgetting"),
  "alphas_of": ("groups",),
  "general": ("general_config",),
}


def main(argv):
  config, flags = command.parse(argv, FLAGS)
  how, grid, own = _settings(flags, command.named(argv, FLAGS))
  start.quiet()
  start.compilation_cache()
  out = pathlib.Path(flags["out"])
  hf_directory.check_target(out / "model")
  if jax.process_count() > 1:
    raise UsageError("interpolate runs in one process; start it without other hosts")

  # 1. The checkpoints, which must fit each other, and what measures them.
  tuned = [evaluate.open_model(name, config) for name in flags["model"]]
  base = flags["base"]
  base = pretrained.open_pretrained(base) if base else pretrained.open_base(config.model)
  endpoints.check(base, tuned)
  judge = forgetting.of_task(config)
  general = forgetting.of_general(flags["general"], flags["general_config"], config, base)
  model = pretrained.model_of(tuned[0], start.mesh_of(config.mesh))
  ends = endpoints.ends(base, tuned, model.network)
  place = weights.params.flatten(model.params)
  shardings = {path: leaf.sharding for path, leaf in place.items()}
  model = dataclasses.replace(model, params=None)  # from here on it is what lies in `place`
  for key, of in (("--alphas_of", own), ("--groups", dict.fromkeys(flags["groups"], 0.0))):
    alphas.assign(ends.shapes, ends.stacks, of, 0.0, key)  # refuses, before hours of measuring
  line = Line(ends, how, {}, place, shardings, judge(model), general(model, ends))

  # 2. The tuned end, every alpha between it and the pretrained model, and each group's own.
  rows, notes = [], []
  members = _greedy(line, flags["model"], notes) if how.name == "greedy_soup" else None
  line.end.update(endpoints.tuned_end(ends, how, members))
  every = [(1.0, {}), (0.0, {}), *((alpha, own) for alpha in grid)]
  measured = [measure(line, rows, alpha, of) for alpha, of in every]
  find = lambda: alphas.choose(rows, line.task.mode, flags["max_forgetting"])
  chosen = find() if flags["alpha"] is None else measured[-1]
  for pattern in flags["groups"]:
    for alpha in grid:
      if alpha != chosen["alpha"]:
        measure(line, rows, chosen["alpha"], chosen["alphas_of"] | {pattern: alpha})
    chosen = find()

  # 3. The chosen one is made again, written, read back and compared.
  fill(line, chosen["alpha"], chosen["alphas_of"])
  model = dataclasses.replace(model, params=weights.params.nest(place))
  export.save(model, out / "model", flags["dtype"])
  rows.sort(key=lambda row: (bool(row["alphas_of"]), row["alpha"]))
  result = {
    "how": how.name, "models": list(flags["model"]), "base": str(base.path),
    "metric": line.task.metric, "mode": line.task.mode,
    "general": line.general and {"metric": line.general.metric, "mode": line.general.mode},
    "chosen": chosen, "notes": [*notes, *_of_heads(ends, base)],
    "written": str(out / "model"), "table": rows,
  }  # fmt: skip
  alpha_page.write(out, result)
  print("\n".join([*alpha_page.lines(result), *result["notes"]]), file=sys.stderr)
  shown = {key: value for key, value in result.items() if key != "table"}
  print(json.dumps(log.plain(shown), indent=2))


class Line(NamedTuple):
  """All models from the pretrained one to the tuned end; one of them is in memory."""

  ends: endpoints.Ends
  how: endpoints.How
  end: dict
  """{path: leaf at alpha 0}, on the host."""
  place: dict
  """{path: leaf of the model that was made last}, on the devices."""
  shardings: dict
  task: forgetting.Judge
  general: forgetting.Judge | None


def fill(line, alpha, of):
  """Makes the model at `alpha`, with those of the patterns `of`, in `line.place`."""
  every = alphas.assign(line.ends.shapes, line.ends.stacks, of, alpha)
  leaves = endpoints.between(line.ends, line.end, every, line.how)
  endpoints.put(line.place, leaves, line.shardings)


def measure(line, rows, alpha, of):
  """The row of one combination; it is measured unless it is among `rows` already."""
  if known := [row for row in rows if (row["alpha"], row["alphas_of"]) == (alpha, of)]:
    return known[0]
  fill(line, alpha, of)
  row = {"alpha": alpha, "alphas_of": of} | forgetting.numbers(line.task, line.place)
  if line.general is not None:
    found = forgetting.numbers(line.general, line.place)
    row |= {"general": found["value"], "general_metrics": found["metrics"]}
    first = rows[0]["general"] if rows else found["value"]  # of the pretrained model
    row["forgetting"] = forgetting.share(first, found["value"], line.general.mode)
  rows.append(row)
  said = [f"{row[key]:.6g}" for key in ("value", "general") if row.get(key) is not None]
  print(f"alpha {alpha:g}{f' {of}' if of else ''}: {', '.join(said)}", file=sys.stderr)
  return row


def _greedy(line, names, notes):
  """Numbers of the tuned models of a greedy soup (arXiv:2203.05482), the best first."""

  sign = 1 if line.task.mode == "max" else -1

  def value(members):
    leaves = endpoints.tuned_end(line.ends, line.how, members)
    endpoints.put(line.place, leaves, line.shardings)
    found = forgetting.numbers(line.task, line.place)["value"]
    return -math.inf if found is None else sign * found

  alone = [value([i]) for i in range(len(names))]
  first, *others = sorted(range(len(names)), key=lambda i: -alone[i])
  members, best = [first], alone[first]
  for i in others:
    if (found := value([*members, i])) >= best:
      members, best = [*members, i], found
  for i in [first, *others]:
    what = "in the soup" if i in members else "left out: with it the metric is worse"
    notes.append(f"{names[i]}: {line.task.metric} {sign * alone[i]:.6g} alone, {what}")
  return members


def _of_heads(ends, base):
  """What is said of leaves that the pretrained model lacks."""
  if not ends.own:
    return []
  whence = "averaged over the tuned models" if len(ends.tuned) > 1 else "the tuned model's"
  return [
    f"{', '.join(ends.own)}: {base.path} has no such weights, they are {whence} throughout"
  ]


def _settings(flags, given):
  """(endpoints.How, grid, {pattern: alpha}) of the flags, of which two become numbers."""
  name, models = flags["how"], flags["model"]
  if name not in HOWS:
    raise UsageError(f"--how={name}: expected one of {', '.join(HOWS)}")
  if not models or (len(models) > 1 and name not in OF_MANY):
    raise UsageError(
      f"--model: found {', '.join(models) or 'none'}, expected one as --model=DIR; several are "
      f"combined by --how={', '.join(OF_MANY)}"
    )
  if len(models) == 1 and name in SOUPS:
    raise UsageError(f"--how={name}: found one model, expected several as --model=A,B,…")
  for flag, hows in USED_BY.items():
    if flag in given and name not in hows:
      raise UsageError(
        f"--{flag}: has no effect with --how={name}; it is for {', '.join(hows)}"
      )
  if not 0 < flags["density"] <= 1:
    raise UsageError(f"--density={flags['density']}: expected above 0, at most 1")
  if flags["sign"] not in combine.SIGNS:
    raise UsageError(f"--sign={flags['sign']}: expected one of {', '.join(combine.SIGNS)}")
  for flag, others in AGAINST.items():
    if flag in given and (found := [other for other in others if other in given]):
      raise UsageError(f"--{flag}: cannot be given with --{found[0]}; leave one of them out")
  if "max_forgetting" in given and not {"general", "general_config"} & given:
    raise UsageError("--max_forgetting: of what? give a text as --general=FILE")
  for flag in ("alpha", "max_forgetting"):
    if flag in given:
      flags[flag] = command.number(flag, flags[flag], float)
      if not math.isfinite(flags[flag]):
        raise UsageError(f"--{flag}={flags[flag]}: expected a finite number")
  values.check(flags["dtype"], typing.get_type_hints(config_lib.Export)["dtype"], "--dtype")
  grid = alphas.grid(flags["alphas"]) if flags["alpha"] is None else [flags["alpha"]]
  own = alphas.groups(flags["alphas_of"])
  if name == "slerp" and not all(0 <= alpha <= 1 for alpha in [*grid, *own.values()]):
    raise UsageError("--how=slerp: expected every alpha between 0 and 1, where the arc is")
  how = endpoints.How(name, flags["density"], flags["sign"], flags["seed"])
  return how, grid, own


if __name__ == "__main__":
  command.run(main)
