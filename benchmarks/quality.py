"""Real data, real small models: what a fine-tune reaches here, and with Hugging Face's Trainer.

    python benchmarks/quality.py --data=DATA --models=MODELS --peers=PEERS/bin/python \
        [--only=sst2,rte] [--seeds=1] [--json=FILE]

Both sides get the same rows, checkpoint, batch size, epochs, rate, schedule, decay, clipping;
dropout as the checkpoint has it, no penalty. Their answers to the held-out rows are scored by
one code (jaxsft.metrics). DATA has a folder for each data set, MODELS a Hugging Face directory
for each checkpoint; RESULTS.md says where both come from.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import quality_data

from jaxsft import config as config_lib
from jaxsft import train
from jaxsft.metrics import answers, classification, tagging, text

OPTIM = {"schedule": "linear", "warmup": 0.06, "penalty_weight": 0.0}


@dataclasses.dataclass(frozen=True)
class Experiment:
  task: str
  model: str
  rows: str
  """Function of quality_data, with (training rows, held-out rows) as its result."""
  score: str
  peak_lr: float
  batch_size: int = 16
  epochs: float = 3
  before: bool = False
  """Whether the checkpoint is asked before it is trained."""
  more: dict = dataclasses.field(default_factory=dict)
  """Further keys of the config."""


MINILM, M3E, T5 = "all-minilm-l6-v2", "m3e-small", "flan-t5-small-titler"
SMOLLM2 = "smollm2-135m-instruct"
NUMBER = {"data.label_type": "number"}
GENERATE = {
  "evaluate.generate": -1,
  "evaluate.max_new_tokens": 64,
  "data.too_long": "truncate",
}
EXPERIMENTS = {
  "sst2": Experiment("classify", MINILM, "sst2", "accuracy", 1e-4, batch_size=32, epochs=1),
  "rte": Experiment("classify", MINILM, "rte", "accuracy", 1e-4),
  "mrpc": Experiment("classify", MINILM, "mrpc", "accuracy", 1e-4),
  "stsb": Experiment("classify", MINILM, "stsb", "pearson", 1e-4, more=NUMBER),
  "sentiment_zh": Experiment(
    "classify", M3E, "chnsenticorp", "accuracy", 5e-5, epochs=1,
    more={"data.max_length": 128, "data.too_long": "truncate"},
  ),
  "conll2003": Experiment("tag", MINILM, "conll2003", "f1", 2e-4, epochs=2),
  "wnut17": Experiment("tag", MINILM, "wnut17", "f1", 2e-4),
  "weibo_ner": Experiment("tag", M3E, "weibo_ner", "f1", 2e-4, epochs=5),
  "squad": Experiment(
    "answer", MINILM, "squad", "f1", 2e-4, epochs=2,
    more={"data.max_length": 256, "data.stride": 64},
  ),
  "squad2": Experiment(
    "answer", MINILM, "squad2", "f1", 2e-4, epochs=2,
    more={"data.max_length": 256, "data.stride": 64, "evaluate.null_threshold": 0.0},
  ),
  "multi30k": Experiment(
    "seq2seq", T5, "multi30k", "bleu", 5e-4, epochs=2, before=True,
    more=GENERATE | {"data.instruction": "translate English to German: "},
  ),
  "scitldr": Experiment(
    "seq2seq", T5, "scitldr", "rougeL", 5e-4, batch_size=8, epochs=2, before=True,
    more=GENERATE | {"data.instruction": "summarize: ", "data.max_length": 384},
  ),
  "gsm8k": Experiment(
    "chat", SMOLLM2, "gsm8k", "format_accuracy", 1e-4, batch_size=8, epochs=1, before=True,
    more={
      "evaluate.generate": -1,
      "evaluate.max_new_tokens": 192,
      "evaluate.text_metrics": ("format_accuracy", "answer_accuracy"),
      "batch_unit": "examples",
    },
  ),
}  # fmt: skip


def score(experiment, held_out, said, labels):
  """The number that is compared, from answers to the held-out rows in their order."""
  name = experiment.score
  if experiment.task == "classify":
    gold = [row["label"] for row in held_out]
    if name == "pearson":
      return classification.number(said, [float(g) for g in gold])["pearson"]
    return sum(a == b for a, b in zip(said, gold, strict=True)) / len(gold)
  if experiment.task == "tag":
    return tagging.scores(said, [row["tags"] for row in held_out])["f1"]
  if experiment.task == "answer":
    gold = [[a["text"] for a in row["answers"]] for row in held_out]
    return answers.scores(said, gold)["f1"]
  if experiment.task == "chat":
    gold = [row["completion"] for row in held_out]
    return float(text.number_rows(said, gold)[name].mean())
  gold = [row.get("targets") or [row["target"]] for row in held_out]
  if name == "bleu":
    return text.bleu(said, gold)["bleu"]
  return text.rouge(said, gold)[name]


def said_by_jaxsft(experiment, directory, held_out):
  """Answers to the held-out rows, from what the run has left.

  A row without words that the tokenizer knows has none: its tags count as O.
  """
  lines = (directory / "evaluation/predictions.jsonl").read_text().splitlines()
  said = {int(row["id"].rpartition(":")[2]): row for row in map(json.loads, lines)}
  if experiment.task == "tag":
    for number, row in enumerate(held_out, 1):
      said.setdefault(number, {"tags": ["O"] * len(row["tags"])})
  own = {"tag": "tags", "answer": "answer", "seq2seq": "text", "chat": "text"}
  key = own.get(experiment.task)
  key = key or ("number" if experiment.score == "pearson" else "label")
  return [said[number][key] for number in range(1, 1 + len(held_out))]


def ours(experiment, args, files, seed, directory):
  keys = {
    "task": experiment.task,
    "seed": seed,
    "epochs": experiment.epochs,
    "batch_size": experiment.batch_size,
    "model.path": f"{args.models}/{experiment.model}",
    "model.new_head": experiment.task in ("classify", "tag"),
    "data.path": str(files[0]),
    "data.eval_path": str(files[1]),
    "data.split": 0.0,
    "optim.peak_lr": experiment.peak_lr,
    "evaluate.every": 0,
    "checkpoint.every": 0,
    "export.format": "none",
    "log.tensorboard": False,
  }
  keys |= {f"optim.{name}": value for name, value in OPTIM.items()} | experiment.more
  config = config_lib.Config()
  for key, value in keys.items():
    config = config_lib.override(config, key, value)
  train.finetune(config_lib.check(config), directory)
  return config


def theirs(experiment, args, parts, labels, config, directory):
  job = {
    "task": experiment.task,
    "model": config.model.path,
    "labels": labels,
    "train": parts[0],
    "held_out": parts[1],
    "max_length": 512 if config.data.max_length == "auto" else config.data.max_length,
    "before": experiment.before,
    "settings": {
      "workdir": str(directory),
      "epochs": config.epochs,
      "batch_size": config.batch_size,
      "seed": config.seed,
      "optim": dataclasses.asdict(config.optim),
    },
  }
  job |= {"stride": experiment.more.get("data.stride", 0), "max_answer": 30}
  job |= {"instruction": experiment.more.get("data.instruction", ""), "num_beams": 1}
  job |= {"max_new_tokens": experiment.more.get("evaluate.max_new_tokens", 0)}
  directory.mkdir()
  (directory / "job.json").write_text(json.dumps(job))
  script = pathlib.Path(__file__).with_name("trainer_quality.py")
  command = [args.peers, str(script), str(directory / "job.json"), str(directory / "out.json")]
  subprocess.run(command, check=True)
  return json.loads((directory / "out.json").read_text())


def run(name, args):
  """{"jaxsft": [scores], "trainer": [scores], …} of one experiment."""
  experiment = EXPERIMENTS[name]
  parts = getattr(quality_data, experiment.rows)(pathlib.Path(args.data))
  labels = quality_data.labels(experiment.task, [*parts[0], *parts[1]], experiment.score)
  found = {"jaxsft": [], "trainer": [], "before": [], "rows": [len(part) for part in parts]}
  found |= {"jaxsft_seconds": [], "trainer_seconds": []}
  with tempfile.TemporaryDirectory() as root:
    root = pathlib.Path(root)
    files = [root / "train.jsonl", root / "held_out.jsonl"]
    for file, rows in zip(files, parts, strict=True):
      file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(args.seeds):
      began = time.monotonic()
      config = ours(experiment, args, files, seed, root / f"ours-{seed}")
      found["jaxsft_seconds"].append(round(time.monotonic() - began))
      said = said_by_jaxsft(experiment, root / f"ours-{seed}", parts[1])
      found["jaxsft"].append(score(experiment, parts[1], said, labels))
      print(name, "jaxsft", found["jaxsft"][-1], found["jaxsft_seconds"][-1], "s", flush=True)
      began = time.monotonic()
      other = theirs(experiment, args, parts, labels, config, root / f"theirs-{seed}")
      found["trainer_seconds"].append(round(time.monotonic() - began))
      found["trainer"].append(score(experiment, parts[1], other["after"], labels))
      if other["before"] is not None:
        found["before"].append(score(experiment, parts[1], other["before"], labels))
      print(
        name, "Trainer", found["trainer"][-1], found["trainer_seconds"][-1], "s", flush=True
      )
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ("data", "models", "only", "json"):
    parser.add_argument(f"--{name}", default="")
  parser.add_argument("--peers", default=sys.executable)
  parser.add_argument("--seeds", type=int, default=1)
  args = parser.parse_args()
  names = [name for name in re.split(",", args.only) if name] or list(EXPERIMENTS)
  every = {}
  for name in names:
    every[name] = run(name, args)
    if args.json:
      pathlib.Path(args.json).write_text(json.dumps(every, indent=1))
  print("\n| data | rows | metric | before | jaxsft | `Trainer` |\n|---|---|---|---|---|---|")
  show = lambda values: ", ".join(f"{v:.4g}" for v in values) or "–"
  for name, found in every.items():
    rows = f"{found['rows'][0]:,} / {found['rows'][1]:,}"
    mean = f" (mean {statistics.mean(found['jaxsft']):.4g})" if args.seeds > 1 else ""
    print(
      f"| {name} | {rows} | {EXPERIMENTS[name].score} | {show(found['before'])} | "
      f"{show(found['jaxsft'])}{mean} | {show(found['trainer'])} |"
    )


if __name__ == "__main__":
  main()
