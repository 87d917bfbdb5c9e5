"""Which learning rate a config bears: a short training whose rate grows, and its losses.

  python -m jaxsft.find_lr --config=configs/x.py --out=DIR [--low=1e-7] [--high=1] [--steps=100]

Trains as the config says (what trains, optimiser, batch, decay, clipping), but update t of n
has the rate low (high / low)^(t / (n - 1)), and nothing is kept of the weights (the range
test of Smith, arXiv:1506.01186). n is --steps, or one pass over the rows where that is
shorter. It ends early where the smoothed loss is over four times its least, or not finite.

What is suggested is the rate with the least smoothed loss, divided by ten: rule "minimum" of
fastai (arXiv:2002.04688); the rate where it falls fastest, its rule "steep", stands beside.
DIR has lr.jsonl (every update), lr.json (what was found) and lr.html (the curve).
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

from jaxsft import (
  command,
  log,
  preflight,
  prepare,
  pretrained,
  report,
  start,
  train,
)
from jaxsft import config as config_lib
from jaxsft import job as jobs
from jaxsft.errors import JaxsftError, UsageError

SMOOTHING = 0.98  # fastai's, and so are the two below
DIVERGED = 4.0
LEFT_OUT = (10, 5)  # a tenth of the updates at the beginning, five at the end
FLAGS = {"out": "", "low": 1e-7, "high": 1.0, "steps": 100}


def main(argv):
  config, flags = command.parse(argv, FLAGS)
  low, high, steps = flags["low"], flags["high"], flags["steps"]
  if not 0 < low < high < float("inf"):
    raise UsageError(f"--low={low} --high={high}: expected 0 < low < high")
  if steps < 20:
    raise UsageError(f"--steps={steps}: expected at least 20, or no curve is to be seen")
  out = pathlib.Path(flags["out"])
  rows = measured(config, low, high, steps)
  out.mkdir(parents=True, exist_ok=True)
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (out / "lr.jsonl").write_text(lines, encoding="utf-8")
  found = suggestion(rows)
  log.write_json(out / "lr.json", found)
  (out / "lr.html").write_text(page(rows, found), encoding="utf-8")
  print(json.dumps(log.plain(found), indent=2))
  print(f"{out}/lr.html has the curve", file=sys.stderr)


def measured(config, low, high, steps):
  """[{"step", "lr", "loss", "smooth"}] of the updates until the loss diverges, numbers finite.

  steps: at most; never more than one pass. Raises JaxsftError where there are fewer than 20.
  """
  start.quiet()
  start.compilation_cache()
  if jax.process_count() > 1:
    raise UsageError("find_lr runs in one process; start it without other hosts")
  at_once = dataclasses.replace(config.tune, unfreeze=None, unfreeze_every=0)
  config = dataclasses.replace(config, epochs=1.0, steps=None, tune=at_once)
  mesh = start.mesh_of(config.mesh)
  base = pretrained.open_base(config.model)
  data = prepare.prepare(config_lib.check(config), base, mesh)
  total = min(steps, data.plan.num_steps)
  if total < 20:
    raise JaxsftError(
      f"one pass over the rows has {total} updates, expected at least 20 to see a curve; lower "
      "config.batch_size for the search, or give more rows"
    )
  network = jobs.make_network(config, base, data)
  chosen = jobs.choose(config, network)
  rule = jobs.make_rule(config, network, chosen, total)
  preflight.report(data, config, jobs.shapes_of(config, network), chosen, rule)
  rise = lambda t: low * (high / low) ** (t / (total - 1))
  rule = dataclasses.replace(rule, schedule=rise)
  with jax.set_mesh(mesh):
    update = jobs.make_train_step(config, data.task, data.options, network, rule)
    job = jobs.Job(
      config, mesh, base, data, network, chosen, rule, update, None, None, None, "loss", "min"
    )
    return _updates(job, jobs.first_state(job)[0], total)


def _updates(job, state, total):
  rows, mean, least = [], 0.0, np.inf
  for number, batch in zip(range(total), train.batches(job, 0), strict=False):
    state, metrics = job.train_step(state, batch)
    loss = float(metrics["loss"])
    mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
    smooth = mean / (1 - SMOOTHING ** (number + 1))
    least = min(least, smooth)
    if not np.isfinite(loss) or int(metrics["skipped"]) or smooth > DIVERGED * least:
      break
    rows.append({"step": number, "lr": float(metrics["lr"]), "loss": loss, "smooth": smooth})
  return rows


def suggestion(rows):
  """{"suggestion", "steepest", "least", "note"} of the rows of `measured`; rates or None."""
  rows = rows[len(rows) // LEFT_OUT[0] : len(rows) - LEFT_OUT[1]]
  if len(rows) < 3:
    raise JaxsftError(
      f"the loss diverged before a curve was to be seen: {len(rows)} updates are left of its "
      "middle; give a lower --low"
    )
  rates, losses = (np.array([row[key] for row in rows]) for key in ("lr", "smooth"))
  best = int(losses.argmin())
  slopes = np.diff(losses) / np.diff(np.log(rates))
  found = {
    "suggestion": float(rates[best] / 10),
    "steepest": float(rates[int(slopes.argmin())]),
    "least": float(rates[best]),
    "note": None,
  }
  if best == 0:
    note = "no rate lowered the loss: give a lower --low, or look at the data"
    return found | {"suggestion": None, "steepest": None, "note": note}
  if best == len(rates) - 1:
    found["note"] = "the loss still falls at the last rate: a higher --high may show more"
  return found


def page(rows, found):
  """lr.html: the smoothed loss over the logarithm of the rate, the suggestion in words."""
  points = [(float(np.log10(row["lr"])), row["smooth"]) for row in rows]
  mark = None
  if found["suggestion"] is not None:
    mark = min(points, key=lambda point: abs(point[0] - np.log10(found["suggestion"])))
  shown = "".join(
    f"<tr><td>{name}</td><td>{'' if value is None else report.shorten(value)}</td></tr>\n"
    for name, value in found.items()
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f"<title>jaxsft: learning rate</title>\n<style>{report.STYLE}</style>\n</head>\n<body>\n"
    "<h1>Learning rate</h1>\n<figure><figcaption>smoothed training loss over log10 of the "
    f"learning rate</figcaption>{report.picture(points, whole=False, mark=mark)}</figure>\n"
    f"<table>\n{shown}</table>\n</body>\n</html>\n"
  )


if __name__ == "__main__":
  command.use_huge_pages()
  command.run(main)
