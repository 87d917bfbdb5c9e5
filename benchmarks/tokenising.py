"""Conversations to packed rows beside `datasets.map` and TRL's packing: rows a second.

    python benchmarks/tokenising.py --rows=FILE --tokenizer=DIR --peers=PEERS/bin/python

FILE is JSONL with "question" and "answer" (GSM8K's train.jsonl), read --copies times, each
copy with its number in front of the question, so that none is a duplicate. Both sides make
tokens and the mask of the answer with the tokenizer's chat template, in as many processes as
there are cores, keep them on disk, and pack rows of --length tokens best-fit; nothing is cached
between runs. jaxsft's side is all that a run does before its plan is made, checks included; the
peer's is what SFTTrainer does with prompts and completions (trl/trainer/sft_trainer.py), then
trl.pack_dataset.
"""

import json
import os
import pathlib
import time

import rounds


def write_rows(settings):
  """The file that both sides read."""
  file = pathlib.Path(settings["workdir"], "rows.jsonl")
  found = [json.loads(line) for line in pathlib.Path(settings["rows"]).open()]
  with file.open("w") as out:
    for copy in range(settings["copies"]):
      for row in found:
        asked = f"({copy}) {row['question']}"
        out.write(json.dumps({"prompt": asked, "completion": row["answer"]}) + "\n")
  return str(file)


def ours(settings):
  file = write_rows(settings)
  os.environ["JAXSFT_CACHE"] = settings["workdir"]
  began = time.perf_counter()
  from jaxsft import encoding, sources, tasks, tokenizer
  from jaxsft.config import Data
  from jaxsft.data import order, pack

  words = tokenizer.load_tokenizer(pathlib.Path(settings["tokenizer"]))
  context, marks = tasks.Context(words, settings["length"]), [time.perf_counter()]
  rows = sources.read_data(Data(path=file, split=0.0), tasks.TASKS["chat"]).train
  marks.append(time.perf_counter())
  store = encoding.encode(rows, tasks.TASKS["chat"], context).store
  marks.append(time.perf_counter())
  plan = order.plan_training(
    store.lengths,
    seed=0,
    batch_size=8,
    batch_unit="rows",
    packing="pack",
    max_length=settings["length"],
  )
  packed = [row for step in range(plan.num_steps) for row in plan.rows(step)]
  marks.append(time.perf_counter())
  filled = pack.efficiency(packed, store.lengths, settings["length"])
  return result(len(rows), began, marks, filled, int(store.lengths.sum()))


def peer(settings):
  file = write_rows(settings)
  os.environ["HF_HOME"] = settings["workdir"]
  began = time.perf_counter()
  import datasets
  import transformers
  import trl

  datasets.disable_progress_bars()
  words = transformers.AutoTokenizer.from_pretrained(settings["tokenizer"])
  marks = [time.perf_counter()]
  rows = datasets.load_dataset("json", data_files=file, split="train")
  marks.append(time.perf_counter())

  def encode(row):
    render = lambda messages, **how: words.apply_chat_template(
      messages, return_dict=False, **how
    )
    asked = [{"role": "user", "content": row["prompt"]}]
    prompt = render(asked, add_generation_prompt=True)
    whole = render([*asked, {"role": "assistant", "content": row["completion"]}])
    mask = [0] * len(prompt) + [1] * (len(whole) - len(prompt))
    return {"input_ids": whole, "completion_mask": mask}

  names, cores = rows.column_names, len(os.sched_getaffinity(0))
  encoded = rows.map(encode, remove_columns=names, num_proc=cores)
  tokens = sum(map(len, encoded["input_ids"]))
  marks.append(time.perf_counter())
  packed = trl.pack_dataset(encoded, settings["length"], "bfd")
  filled = tokens / (len(packed) * settings["length"])
  marks.append(time.perf_counter())
  return result(len(rows), began, marks, filled, tokens)


def result(count, began, marks, filled, tokens):
  starting, read, encoded, packed = marks
  return {
    "rows": count,
    "tokens": tokens,
    "filled": filled,
    "start": starting - began,
    "read": read - starting,
    "encode": encoded - read,
    "pack": packed - encoded,
    "rate": count / (packed - starting),
  }


SIDES = {"jaxsft": ours, "datasets and trl": peer}


def main():
  parser = rounds.flags(__doc__, copies=8, length=2048)
  parser.add_argument("--rows", required=True, help="JSONL with question and answer")
  parser.add_argument("--tokenizer", required=True, help="Hugging Face directory")
  args = parser.parse_args()
  names = ("copies", "length", "rows", "tokenizer")
  found = rounds.alternate(__file__, SIDES, args, {name: getattr(args, name) for name in names})
  columns = {
    "rows/s": lambda r: r["rate"],
    "read, s": lambda r: r["read"],
    "tokenise, s": lambda r: r["encode"],
    "pack, s": lambda r: r["pack"],
    "places filled, %": lambda r: 100 * r["filled"],
    "peak RSS, GB": lambda r: r["peak_rss"] / 1e9,
  }
  rounds.show(found, columns, "rows/s")
  counts = {
    side: [(r["rows"], r["tokens"]) for r in results] for side, results in found.items()
  }
  print(f"rows and tokens of every round: {counts}")
  rounds.save(args, found)


if __name__ == "__main__":
  rounds.child(SIDES)
  main()
