"""A run that is killed anywhere and started again ends as if nothing had happened."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxsft import checkpoint, manifest
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 7

# Where the first run ends: at what, and the how-many-th time. Saves are after updates 2, 4, 6
# and 7, evaluations after 3, 6 and 7.
KILLS = ("update:5", "evaluate:3", "written:3", "saved:2")
MORE = (
  *("update:1", "update:2", "update:7", "best:1", "measured:2", "written:1", "written:4"),
  *("removing:2", "removing:6", "saved:1", "saved:4", "exporting:1"),
)


@pytest.fixture(scope="module")
def configs(files, tmp_path_factory):
  """Config files: dropout on, checkpoints and evaluations at different times."""
  root = tmp_path_factory.mktemp("configs")
  model, data = files("bert", "classify")
  base = tiny.config(
    "bert",
    "classify",
    model,
    data,
    steps=STEPS,
    model__dropout=0.2,
    checkpoint__every=2,
    evaluate__every=3,
    evaluate__metric="loss",
    export__format="hf",
  )
  found = {"base": base}
  sharded = dataclasses.replace(base.mesh, fsdp=2, tensor=2)
  plain = dataclasses.replace(base.model, dropout=0.0)
  found["plain"] = dataclasses.replace(base, model=plain)
  found["sharded"] = dataclasses.replace(base, model=plain, mesh=sharded)
  found["seed"] = dataclasses.replace(base, seed=1)
  found["batch"] = dataclasses.replace(base, batch_size=4)
  more = tiny.sentences(root / "more.jsonl", count=61)
  found["data"] = dataclasses.replace(base, data=dataclasses.replace(base.data, path=str(more)))
  other = tiny.checkpoint(root / "other", "bert", seed=5)
  found["weights"] = dataclasses.replace(
    base, model=dataclasses.replace(base.model, path=str(other))
  )
  return {
    name: tiny.write_config(root / f"{name}.py", config) for name, config in found.items()
  }


class Chains:
  """Runs one after another and side by side, to be done by tests/contract/runner.py."""

  def __init__(self, root, configs):
    self.root, self.configs = root, configs
    self.chains, self.places = [], {}

  def add(self, *jobs):
    """jobs: (name, config, directory) and maybe devices, where to kill it, and flags."""
    chain = []
    for name, config, directory, *rest in jobs:
      devices, kill, flags = [*rest, *(1, None, ())[len(rest) :]]
      out = self.root / f"{name}.txt"
      self.places[name] = (self.root / directory, out)
      argv = [f"--config={self.configs[config]}", f"--workdir={self.root / directory}", *flags]
      given = {"name": name, "argv": argv, "devices": devices, "kill": kill, "out": str(out)}
      chain.append(given)
    self.chains.append(chain)

  def run(self):
    """{name: (exit status, run directory, what it printed)}."""
    listed = self.root / "jobs.json"
    listed.write_text(json.dumps(self.chains))
    with open(self.root / "runner.txt", "w") as out:
      subprocess.run(
        [sys.executable, "-m", "tests.contract.runner", str(listed)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=out,
        stderr=out,
        check=False,
        timeout=1500,
      )
    done = self.root / "jobs.json.done"
    assert done.exists(), (self.root / "runner.txt").read_text()
    return {
      name: (status, self.places[name][0], self.places[name][1].read_text())
      for name, status in json.loads(done.read_text()).items()
    }


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
  """All runs of this file but those of `more_runs`."""
  chains = Chains(tmp_path_factory.mktemp("runs"), configs)
  chains.add(("whole", "base", "whole"))
  for kill in KILLS:
    chains.add((kill, "base", kill, 1, kill), (f"again {kill}", "base", kill))
  # An early end that is asked for, and then the attempts to go on with something else.
  changed = [(name, name, "term") for name in ("seed", "batch", "data", "weights")]
  chains.add(("term", "base", "term", 1, "term:3"), *changed, ("again term", "base", "term"))
  # Eight devices at first, then one. Dropout off: its masks are drawn for a layout of rows.
  chains.add(("plain", "plain", "plain"))
  chains.add(("eight", "sharded", "eight", 8, "update:5"), ("one", "plain", "eight"))
  return chains.run()


@pytest.fixture(scope="module")
def more_runs(configs, tmp_path_factory):
  """The whole run, and those that end at MORE."""
  chains = Chains(tmp_path_factory.mktemp("more"), configs)
  chains.add(("whole", "base", "whole"))
  for kill in MORE:
    chains.add((kill, "base", kill, 1, kill), (f"again {kill}", "base", kill))
  return chains.run()


def leaves(directory, step=STEPS):
  """{path: bytes as saved} of a checkpoint, through its manifest: names, types, checksums."""
  checkpoint.Checkpoints(directory, read_only=True)
  return manifest.read(directory / "checkpoints" / str(step))


def metrics(directory):
  """The lines of metrics.jsonl without what a clock decides."""
  timed = ("train_seconds", "tokens_per_second", "examples_per_second", "mfu")
  lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def result(directory):
  """result.json without what a clock or the number of starts decides."""
  kept = ("task", "metrics", "best", "examples", "steps", "skipped", "tokens", "examples_seen")
  found = json.loads((directory / "result.json").read_text())
  return {key: found[key] for key in kept}


def same(directory, whole):
  assert leaves(directory) == leaves(whole)
  assert metrics(directory) == metrics(whole)
  assert result(directory) == result(whole)
  for file in ("model.safetensors", "config.json", "tokenizer.json"):
    assert (directory / "export" / file).read_bytes() == (whole / "export" / file).read_bytes()
  loops = [
    json.loads((d / "checkpoints" / str(STEPS) / "loop.json").read_text())
    for d in (directory, whole)
  ]
  assert loops[0] == loops[1]


def test_the_uninterrupted_run(runs):
  status, directory, text = runs["whole"]
  assert status == 0, text
  steps = [(line["kind"], line["step"]) for line in metrics(directory)]
  assert [s for k, s in steps if k == "train"] == list(range(1, STEPS + 1))
  assert [s for k, s in steps if k == "eval"] == [3, 6, 7]


def goes_on(runs, kill):
  status, directory, text = runs[kill]
  assert status == -9, text
  status, _, text = runs[f"again {kill}"]
  assert status == 0, text
  # The first save is after update 2.
  early = ("update:1", "update:2", "written:1")
  assert ("going on after update" in text) == (kill not in early)
  same(directory, runs["whole"][1])


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_started_again(runs, kill):
  goes_on(runs, kill)


@pytest.mark.full
@pytest.mark.parametrize("kill", MORE)
def test_killed_anywhere_else(more_runs, kill):
  goes_on(more_runs, kill)


def test_asked_to_stop(runs):
  status, directory, text = runs["term"]
  assert status == 3, text
  assert "stopped after update 3, which is saved" in text
  status, _, text = runs["again term"]
  assert status == 0 and "going on after update 3" in text
  same(directory, runs["whole"][1])


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ("seed", "seed: 0 then, 1 now"),
    ("batch", "batch_size: 8 then, 4 now"),
    ("data", "the data"),
    ("weights", "the base weights"),
  ],
)
def test_going_on_with_something_else_is_refused(runs, changed, said):
  status, _, text = runs[changed]
  assert status == 1, text
  assert "found a checkpoint of another run" in text and said in text
  assert "choose a new --workdir" in text and "Traceback" not in text


def test_going_on_with_fewer_devices(runs):
  assert runs["eight"][0] == -9, runs["eight"][2]
  status, directory, text = runs["one"]
  assert status == 0 and "going on after update 4" in text, text
  whole = runs["plain"][1]
  kept = ("loss", "grad_norm", "lr", "weight", "tokens", "examples", "eval_loss")
  for ours, theirs in zip(metrics(directory), metrics(whole), strict=True):
    assert ours["kind"] == theirs["kind"] and ours["step"] == theirs["step"]
    for name in set(kept) & set(theirs):
      assert ours[name] == pytest.approx(theirs[name], rel=2e-4), name
  from safetensors import numpy

  files = [d / "export" / "model.safetensors" for d in (directory, whole)]
  a, b = (numpy.load_file(file) for file in files)
  for name in b:
    if "key.bias" not in name:  # its gradient is rounding only, which Adam makes full steps of
      np.testing.assert_allclose(a[name], b[name], atol=1e-3, err_msg=name)
