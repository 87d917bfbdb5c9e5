"""The quickstart's training beside Hugging Face's Trainer.

    python benchmarks/quickstart.py --minilm=DIR --peers=PEERS/bin/python --json=FILE

Same model, rows, batches of 32 in the same order, new head, float32, AdamW, rate and
schedule; dropout and penalty 0. Sides: jaxsft (packs the sentences of a batch); trainer
(its default, padding to the longest of the batch); trainer-grouped (batches of similar
length in the Trainer's own order: so its losses are not compared).
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import jaxsft_side
import rounds

OVERRIDES = {"epochs": 1, "data.packing": "auto"}


def make_config(settings):
  steps = {"steps": settings["steps"]} if settings["steps"] else {}
  return jaxsft_side.config_of("configs/quickstart.py", OVERRIDES | steps)


def exchange(settings):
  """Writes what the peers need: rows, order, the new head, and the update rule."""
  import numpy as np

  from jaxsft import job as jobs
  from jaxsft import prepare, pretrained, start

  config = make_config(settings)
  mesh = start.mesh_of(config.mesh)
  base = pretrained.open_pretrained(config.model.path, config.model.sha256)
  data = prepare.prepare(config, base, mesh)
  network = jobs.make_network(config, base, data)
  head = pretrained.load_params(base, network, mesh, True, config.seed)[0]["head"]
  rows = {row.id: row.fields for row in data.train.rows}
  labels = data.context.labels
  value = {
    "rows": [
      {"text": rows[i]["text"], "label": labels.index(rows[i]["label"])}
      for i in data.train.store.ids
    ],
    "lengths": data.train.store.lengths.tolist(),
    "order": [data.plan.examples(i).tolist() for i in range(data.plan.num_steps)],
    "head": {name: np.asarray(leaf).tolist() for name, leaf in head.items()},
    "optim": dataclasses.asdict(config.optim),
    "batch_size": config.batch_size,
    "limit": base.limit,
  }
  pathlib.Path(settings["exchange"]).write_text(json.dumps(value))
  return {"steps": data.plan.num_steps}


def ours(settings):
  return jaxsft_side.finetune(make_config(settings), settings)


def trainer(settings, **extra):
  import datasets
  import torch
  import trainer_side
  import transformers

  given = json.loads(pathlib.Path(settings["exchange"]).read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(settings["minilm"])
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    settings["minilm"],
    num_labels=len(given["head"]["bias"]),
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    classifier_dropout=0.0,
    dtype=torch.float32,
  )
  with torch.no_grad():
    model.classifier.weight.copy_(torch.tensor(given["head"]["kernel"]))
    model.classifier.bias.copy_(torch.tensor(given["head"]["bias"]))
  tokenize = lambda rows: tokenizer(rows["text"], truncation=True, max_length=given["limit"])
  rows = datasets.Dataset.from_list(given["rows"])
  rows = rows.map(tokenize, batched=True, remove_columns=["text"])
  lengths = [len(ids) for ids in rows["input_ids"]]
  if lengths != given["lengths"]:
    raise SystemExit("the peers' tokens differ from jaxsft's in number: not comparable")
  return trainer_side.train(
    transformers.Trainer,
    settings,
    None if extra else given["order"],
    lambda inputs: (int(inputs["attention_mask"].sum()), len(inputs["labels"])),
    model=model,
    args=trainer_side.arguments(
      transformers.TrainingArguments,
      settings,
      given["optim"],
      per_device_train_batch_size=given["batch_size"],
      **extra,
    ),
    train_dataset=rows,
    processing_class=tokenizer,
    data_collator=transformers.DataCollatorWithPadding(tokenizer),
  )


def grouped(settings):
  return trainer(settings, train_sampling_strategy="group_by_length")


SIDES = {"jaxsft": ours, "trainer": trainer, "trainer-grouped": grouped}


def main():
  parser = rounds.flags(__doc__, steps=100, skip=5)
  parser.add_argument("--minilm", required=True, help="Hugging Face directory for the peers")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    settings = {
      "steps": args.steps,  # 0: the whole epoch
      "minilm": args.minilm,
      "exchange": str(pathlib.Path(directory) / "exchange.json"),
    }
    made = rounds.run_side(__file__, "exchange", args, settings, sys.executable)
    settings["steps"] = made["steps"]
    found = rounds.alternate(__file__, SIDES, args, settings)
  print(f"\n{made['steps']} updates; rates without the first {args.skip} and compiling")
  columns = {
    "examples/s": lambda r: rounds.rate(r, "examples", args.skip),
    "tokens/s": lambda r: rounds.rate(r, "tokens", args.skip),
    "start → compiled, s": lambda r: r["compiled"],
    "start → first update, s": lambda r: r["first_update"],
    "start → last update, s": lambda r: r["last_update"],
    "compiling, s": lambda r: r["compile_seconds"],
    "peak RSS training, GB": lambda r: r["rss"] / 1e9,
    "peak RSS, GB": lambda r: r["peak_rss"] / 1e9,
  }
  rounds.show(found, columns, "examples/s")
  rounds.save(args, found, rounds.curves(found, [("jaxsft", "trainer")]))


if __name__ == "__main__":
  rounds.child({"exchange": exchange, **SIDES})
  main()
