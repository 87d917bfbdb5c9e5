"""What the training benchmarks run on jaxsft's side: its real entry, with a clock beside it."""

import json
import pathlib
import resource
import sys
import time


def config_of(path, overrides):
  """The config file `path` of this repository with overrides and as little else as possible.

  Every update is recorded; nothing is exported and no checkpoint is saved before the end.
  Dropout and penalty are 0, as their randomness and its absence elsewhere cannot be compared.
  """
  import jaxsft

  root = pathlib.Path(__file__).resolve().parent.parent
  fixed = {
    "log.every": 1,
    "checkpoint.every": 0,
    "evaluate.every": 0,
    "export.format": "none",
    "model.dropout": 0.0,
    "optim.penalty": "none",
    "optim.warmup": 0,
  }
  return jaxsft.load_config(root / path, fixed | overrides)


def finetune(config, settings):
  """Runs `jaxsft.finetune`; returns losses, times and counts of every update.

  "seconds" (of every update's end) leaves out compiling, as metrics.jsonl does; what is
  measured from the process's start ("first_update", "last_update", "compiled") holds all.
  "rss" is the peak until the last update, before evaluation and saving.
  """
  from jaxsft import compiled, log, train
  from jaxsft import job as jobs

  marks = {}

  class Clock(log.Log):
    def step(self, step, *values):
      super().step(step, *values)
      marks.setdefault("first_update", time.time())  # the first call waits for its update

    def flush(self):
      super().flush()
      if "first_update" in marks and "last_update" not in marks:
        marks["last_update"], marks["rss"] = time.time(), peak_rss()

  class Timed(compiled.Compiled):
    def __call__(self, *args):
      began, before = time.time(), self.seconds
      result = super().__call__(*args)
      if self.seconds > before:
        marks.setdefault("compiled", began + self.seconds - before)
      return result

  log.Log, jobs.Compiled = Clock, Timed
  run = train.finetune(config, pathlib.Path(settings["workdir"]) / "run")
  text = (run.directory / "metrics.jsonl").read_text()
  lines = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
  rss = marks.pop("rss")
  result = {name: value - settings["started"] for name, value in marks.items()}
  return result | {
    "rss": rss,
    "losses": [line["loss"] for line in lines],
    "seconds": [line["train_seconds"] for line in lines],
    "tokens": [line["tokens"] for line in lines],
    "examples": [line["examples"] for line in lines],
    "compile_seconds": run.result["compile_seconds"],
    "metrics": run.result["metrics"],
  }


def peak_rss():
  """Bytes that this process had in memory at most until now."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
