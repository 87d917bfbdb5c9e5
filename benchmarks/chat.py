"""The chat config's training beside Hugging Face's Trainer and TRL's SFTTrainer.

    python benchmarks/chat.py --smollm2=DIR --peers=PEERS/bin/python --json=FILE

SmolLM2-135M-Instruct, all weights, float32, 4 rows of 512 tokens an update, AdamW, cosine,
loss on the assistant's tokens; dropout and penalty 0. jaxsft reads its GGUF file, the peers
DIR. Sides, in the order of what they share with jaxsft:

  jaxsft          packed rows
  trainer-packed  the very same rows: positions start anew with every conversation, which
                  transformers 5 turns into a block-diagonal mask where there is no cache
  trainer         the same conversations an update, padded by DataCollatorForSeq2Seq
  trl             SFTTrainer with packing=True (strategy bfd): its own rows and order. It lays
                  its 4 rows end to end as one of 2048, kept apart in the same way
  trl-checkpoint  the same with gradient checkpointing, which is TRL's default

--single: 4 conversations an update, one a row, on every side (jaxsft, trainer and trl without
packing), so that all losses can be compared.
Tokens are those that predict something: a conversation of n tokens counts n - 1.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import jaxsft_side
import rounds

LENGTH = 512


def make_config(settings):
  packing = {"data.packing": "none"} if settings["single"] else {}
  overrides = {"steps": settings["steps"], "evaluate.max_new_tokens": 0}
  return jaxsft_side.config_of("configs/chat_smollm2.py", overrides | packing)


def exchange(settings):
  """Writes the conversations as tokens, the rows of every update, and the update rule."""
  from jaxsft import prepare, pretrained, start

  config = make_config(settings)
  base = pretrained.open_pretrained(config.model.path, config.model.sha256)
  data = prepare.prepare(config, base, start.mesh_of(config.mesh))
  examples, messages = [], {row.id: row.fields["messages"] for row in data.train.rows}
  for i, name in enumerate(data.train.store.ids):
    example = {key: value.tolist() for key, value in data.train.store.example(i).items()}
    examples.append(example | {"messages": messages[name]})
  value = {
    "examples": examples,
    "rows": [data.plan.rows(step) for step in range(data.plan.num_steps)],
    "optim": dataclasses.asdict(config.optim),
    "batch_size": config.batch_size,
  }
  pathlib.Path(settings["exchange"]).write_text(json.dumps(value))
  taken = [examples[i]["weights"] for rows in value["rows"] for row in rows for i in row]
  return {"share": sum(map(sum, taken)) / sum(map(len, taken))}


def ours(settings):
  return jaxsft_side.finetune(make_config(settings), settings)


def load(settings):
  """(what `exchange` wrote, its conversations as Trainer wants them, model, tokenizer)."""
  import torch
  import transformers

  given = json.loads(pathlib.Path(settings["exchange"]).read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(settings["smollm2"])
  model = transformers.AutoModelForCausalLM.from_pretrained(
    settings["smollm2"], dtype=torch.float32
  )
  model.config.use_cache = False  # with a cache, positions would not keep packed rows apart
  # torch gives the pad token's embedding no gradient where it is an input. Here that token is
  # <|im_end|>, which ends every turn: without this line another gradient would be compared.
  model.get_input_embeddings().padding_idx = None
  examples = []
  for example in given["examples"]:
    ids = [example["inputs"][0], *example["targets"]]
    messages = example["messages"]
    if tokenizer.apply_chat_template(messages, return_dict=False) != ids:
      raise SystemExit(f"the peers' tokens differ from jaxsft's in {messages}")
    examples.append({"input_ids": ids, "labels": [-100, *masked(example)]})
  return given, examples, model, tokenizer


def masked(example):
  """Targets of an example with -100 where nothing is supervised."""
  pairs = zip(example["targets"], example["weights"], strict=True)
  return [target if weight else -100 for target, weight in pairs]


def pack(given, row):
  """One row of jaxsft's as Trainer's arguments: shift_labels, as ours are shifted already."""
  examples = [given["examples"][i] for i in row]
  result = {
    "input_ids": [t for e in examples for t in e["inputs"]],
    "shift_labels": [t for e in examples for t in masked(e)],
    "position_ids": [t for e in examples for t in range(len(e["inputs"]))],
  }
  rest = LENGTH - len(result["input_ids"])
  result["input_ids"] += [0] * rest
  result["shift_labels"] += [-100] * rest
  result["position_ids"] += range(rest)  # the padding is a conversation without loss
  return result | {"labels": result["shift_labels"]}


def trainer(settings, packed=False, adapt=lambda model: model):
  import datasets
  import trainer_side
  import transformers

  given, examples, model, tokenizer = load(settings)
  flat = [[i for row in rows for i in row] for rows in given["rows"]]
  batches, collator = flat, transformers.DataCollatorForSeq2Seq(tokenizer)
  if packed:
    examples = [pack(given, row) for rows in given["rows"] for row in rows]
    places = iter(range(len(examples)))
    batches = [[next(places) for _ in rows] for rows in given["rows"]]
    collator = transformers.default_data_collator
  lengths = [len(example["inputs"]) for example in given["examples"]]
  counts = iter([(sum(lengths[i] for i in taken), len(taken)) for taken in flat])
  return trainer_side.train(
    transformers.Trainer,
    settings,
    batches,
    lambda inputs: next(counts),
    model=adapt(model),
    args=trainer_side.arguments(transformers.TrainingArguments, settings, given["optim"]),
    train_dataset=datasets.Dataset.from_list(examples),
    processing_class=tokenizer,
    data_collator=collator,
  )


def trl(settings, checkpoint=False):
  import datasets
  import trainer_side
  import trl as library

  given, examples, model, tokenizer = load(settings)
  single = settings["single"]

  def count(inputs):
    if single:
      rows = len(inputs["input_ids"])
      return int(inputs["attention_mask"].sum()) - rows, rows
    starts = int((inputs["position_ids"] == 0).sum())  # every place holds a token
    return inputs["input_ids"].numel() - starts, starts

  options = {
    "per_device_train_batch_size": given["batch_size"],
    "packing": not single,
    "max_length": LENGTH + 1,  # ours counts inputs, TRL all tokens
    "bf16": False,
    "gradient_checkpointing": checkpoint,
  }
  return trainer_side.train(
    library.SFTTrainer,
    settings,
    [[row[0] for row in rows] for rows in given["rows"]] if single else None,
    count,
    model=model,
    args=trainer_side.arguments(library.SFTConfig, settings, given["optim"], **options),
    train_dataset=datasets.Dataset.from_list(examples),
    processing_class=tokenizer,
  )


SIDES = {
  "jaxsft": ours,
  "trainer-packed": lambda settings: trainer(settings, packed=True),
  "trainer": trainer,
  "trl": trl,
  "trl-checkpoint": lambda settings: trl(settings, checkpoint=True),
}


def main():
  parser = rounds.flags(__doc__, steps=12, skip=2)
  parser.add_argument("--smollm2", required=True, help="Hugging Face directory for the peers")
  parser.add_argument("--single", action="store_true", help="one conversation a row")
  args = parser.parse_args()
  sides = {k: SIDES[k] for k in ("jaxsft", "trainer", "trl")} if args.single else SIDES
  with tempfile.TemporaryDirectory() as directory:
    settings = {
      "steps": args.steps,
      "single": args.single,
      "smollm2": args.smollm2,
      "exchange": str(pathlib.Path(directory) / "exchange.json"),
    }
    made = rounds.run_side(__file__, "exchange", args, settings, sys.executable)
    found = rounds.alternate(__file__, sides, args, settings)
  share = made["share"]
  print(
    f"\n{args.steps} updates, {share:.0%} of the tokens supervised; rates without the first "
    f"{args.skip} and compiling"
  )
  columns = {
    "tokens/s": lambda r: rounds.rate(r, "tokens", args.skip),
    "supervised/s": lambda r: rounds.rate(r, "tokens", args.skip) * share,
    "start → compiled, s": lambda r: r["compiled"],
    "start → first update, s": lambda r: r["first_update"],
    "start → last update, s": lambda r: r["last_update"],
    "peak RSS training, GB": lambda r: r["rss"] / 1e9,
    "peak RSS, GB": lambda r: r["peak_rss"] / 1e9,
  }
  rounds.show(found, columns, "tokens/s")
  pairs = [("jaxsft", "trainer-packed"), ("jaxsft", "trainer")]
  pairs += [("jaxsft", "trl")] if args.single else []
  rounds.save(args, found, rounds.curves(found, pairs))


if __name__ == "__main__":
  rounds.child({"exchange": exchange, **SIDES})
  main()
