"""A task fine-tuned with Hugging Face's Trainer: the other side of quality.py.

    python trainer_quality.py job.json out.json

job: {"task", "model", "labels", "train": [fields], "held_out": [fields], "settings"}, the rows
and the settings of jaxsft's own run. out: an answer for each held-out row, in their order: a
label or a number, tags, a text. Tokenised, batched and decoded as Hugging Face's example
scripts do: dynamic padding, no packing.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import trainer_side
import transformers

AUTO = {
  "classify": transformers.AutoModelForSequenceClassification,
  "tag": transformers.AutoModelForTokenClassification,
  "answer": transformers.AutoModelForQuestionAnswering,
  "seq2seq": transformers.AutoModelForSeq2SeqLM,
  "chat": transformers.AutoModelForCausalLM,
}


class Rows(torch.utils.data.Dataset):
  def __init__(self, rows):
    self.rows = rows

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    return self.rows[i]


def arguments(kind, settings, **extra):
  """Those of trainer_side, over epochs and with the config's warmup."""
  return trainer_side.arguments(
    kind,
    settings | {"steps": -1},
    settings["optim"],
    num_train_epochs=settings["epochs"],
    per_device_train_batch_size=settings["batch_size"],
    per_device_eval_batch_size=64,
    warmup_steps=settings["optim"]["warmup"],  # a share, where it is below 1
    seed=settings["seed"],
    **extra,
  )


def classify(job, tokenizer):
  """(training rows, held-out rows, collator, outputs -> answers)."""
  names = job["labels"]

  def encode(row):
    found = dict(
      tokenizer(
        row["text"], row.get("text_pair"), truncation=True, max_length=job["max_length"]
      )
    )
    return found | {"labels": row["label"] if not names else names.index(row["label"])}

  def decode(outputs):
    logits = outputs.predictions
    return logits[:, 0].tolist() if not names else [names[i] for i in logits.argmax(-1)]

  parts = ([encode(row) for row in job[part]] for part in ("train", "held_out"))
  return *parts, transformers.DataCollatorWithPadding(tokenizer), decode


def tag(job, tokenizer):
  names = job["labels"]

  def encode(row):
    found = tokenizer(
      row["tokens"], is_split_into_words=True, truncation=True, max_length=job["max_length"]
    )
    labels, before = [], None
    for word in found.word_ids():
      first = word is not None and word != before
      labels.append(names.index(row["tags"][word]) if first else -100)
      before = word
    return dict(found) | {"labels": labels}

  train, held_out = ([encode(row) for row in job[part]] for part in ("train", "held_out"))
  places = [
    tokenizer(
      row["tokens"], is_split_into_words=True, truncation=True, max_length=job["max_length"]
    ).word_ids()
    for row in job["held_out"]
  ]

  def decode(outputs):
    answers = []
    for row, words, ids in zip(
      job["held_out"], places, outputs.predictions.argmax(-1), strict=True
    ):
      tags = ["O"] * len(row["tokens"])
      for at in reversed(range(len(words))):
        if words[at] is not None:
          tags[words[at]] = names[ids[at]]
      answers.append(tags)
    return answers

  return train, held_out, transformers.DataCollatorForTokenClassification(tokenizer), decode


def answer(job, tokenizer):
  def windows(row):
    return tokenizer(
      row["question"],
      row["context"],
      truncation="only_second",
      max_length=job["max_length"],
      stride=job["stride"],
      return_overflowing_tokens=True,
      return_offsets_mapping=True,
    )

  def encode(row):
    found = windows(row)
    for k, offsets in enumerate(found["offset_mapping"]):
      ids, sides = found["input_ids"][k], found.sequence_ids(k)
      start = end = 0
      if row["answers"]:
        first = row["answers"][0]["start"]
        last = first + len(row["answers"][0]["text"])
        inside = [i for i, side in enumerate(sides) if side == 1]
        if inside and offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last:
          start = max(i for i in inside if offsets[i][0] <= first)
          end = min(i for i in inside if offsets[i][1] >= last)
      example = {"input_ids": ids, "attention_mask": found["attention_mask"][k]}
      if "token_type_ids" in found:
        example["token_type_ids"] = found["token_type_ids"][k]
      yield example | {"start_positions": start, "end_positions": end}

  train = [example for row in job["train"] for example in encode(row)]
  held_out, owner, spots = [], [], []
  for number, row in enumerate(job["held_out"]):
    found = windows(row)
    for k, example in enumerate(encode(row)):
      held_out.append(example)
      owner.append(number)
      sides = found.sequence_ids(k)
      spots.append(
        [o if s == 1 else None for o, s in zip(found["offset_mapping"][k], sides, strict=True)]
      )

  def decode(outputs):
    starts, ends = outputs.predictions[:2]
    best = [(-np.inf, "")] * len(job["held_out"])
    null = [np.inf] * len(job["held_out"])
    for k, number in enumerate(owner):
      null[number] = min(null[number], starts[k][0] + ends[k][0])
      inside = spots[k]
      for i in np.argsort(-starts[k])[:20]:
        for j in np.argsort(-ends[k])[:20]:
          fits = i < len(inside) and j < len(inside) and inside[i] and inside[j]
          if (
            fits
            and i <= j < i + job["max_answer"]
            and starts[k][i] + ends[k][j] > best[number][0]
          ):
            text = job["held_out"][number]["context"][inside[i][0] : inside[j][1]]
            best[number] = (starts[k][i] + ends[k][j], text)
    may_be_none = any(not row["answers"] for row in job["train"])
    return [
      "" if may_be_none and nothing > score else text
      for (score, text), nothing in zip(best, null, strict=True)
    ]

  return train, held_out, transformers.DataCollatorWithPadding(tokenizer), decode


def seq2seq(job, tokenizer, model):
  def encode(row):
    source = tokenizer(
      job["instruction"] + row["source"], truncation=True, max_length=job["max_length"]
    )
    return dict(source) | {"labels": tokenizer(text_target=row["target"])["input_ids"]}

  collator = transformers.DataCollatorForSeq2Seq(tokenizer, model=model)
  decode = lambda outputs: tokenizer.batch_decode(
    np.where(outputs.predictions < 0, tokenizer.pad_token_id, outputs.predictions),
    skip_special_tokens=True,
  )
  return (
    [encode(r) for r in job["train"]],
    [encode(r) for r in job["held_out"]],
    collator,
    decode,
  )


def chat(job, tokenizer):
  """Loss on the answer and the token that ends its turn."""
  render = lambda messages, **how: tokenizer.apply_chat_template(
    messages, return_dict=False, **how
  )

  def encode(row):
    asked = [{"role": "user", "content": row["prompt"]}]
    whole = render([*asked, {"role": "assistant", "content": row["completion"]}])
    prompt = render(asked, add_generation_prompt=True)
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
    labels = [-100] * len(prompt) + whole[len(prompt) : end] + [-100] * (len(whole) - end)
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels}

  prompts = [
    render([{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)
    for row in job["held_out"]
  ]
  parts = ([encode(row) for row in job[part]] for part in ("train", "held_out"))
  return *parts, transformers.DataCollatorForSeq2Seq(tokenizer), prompts


def continued(model, tokenizer, prompts, job, size=16):
  """The likeliest continuation of each prompt, `size` at a time, padded at the left."""
  answers = []
  for k in range(0, len(prompts), size):
    part = prompts[k : k + size]
    longest = max(map(len, part))
    ids, mask = torch.full((len(part), longest), 0), torch.zeros(len(part), longest)
    for i, prompt in enumerate(part):
      ids[i, longest - len(prompt) :], mask[i, longest - len(prompt) :] = (
        torch.tensor(prompt),
        1,
      )
    with torch.no_grad():
      out = model.generate(
        ids,
        attention_mask=mask.long(),
        max_new_tokens=job["max_new_tokens"],
        do_sample=False,
        num_beams=job["num_beams"],
        pad_token_id=tokenizer.pad_token_id,
      )
    answers += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
  return answers


def main(job_file, out):
  job = json.loads(pathlib.Path(job_file).read_text())
  task, settings = job["task"], job["settings"]
  transformers.set_seed(settings["seed"])
  tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
  heads = {}
  if task in ("classify", "tag"):
    heads = {"num_labels": max(1, len(job["labels"])), "ignore_mismatched_sizes": True}
    heads |= {"problem_type": "regression"} if not job["labels"] else {}
  model = AUTO[task].from_pretrained(job["model"], dtype=torch.float32, **heads)
  if task == "seq2seq":
    train, held_out, collator, decode = seq2seq(job, tokenizer, model)
    args = arguments(
      transformers.Seq2SeqTrainingArguments,
      settings,
      predict_with_generate=True,
      generation_num_beams=job["num_beams"],
    )
    model.generation_config.max_new_tokens = job["max_new_tokens"]
    model.generation_config.max_length = None
    kind = transformers.Seq2SeqTrainer
  else:
    train, held_out, collator, decode = globals()[task](job, tokenizer)
    args, kind = arguments(transformers.TrainingArguments, settings), transformers.Trainer
  if task == "chat":  # the pad token ends turns too: without this it would not be trained
    model.get_input_embeddings().padding_idx = None
  trainer = kind(
    model=model,
    args=args,
    train_dataset=Rows(train),
    eval_dataset=Rows(held_out),
    data_collator=collator,
    processing_class=tokenizer,
  )

  def said():
    if task == "chat":
      return continued(model.eval(), tokenizer, decode, job)
    return decode(trainer.predict(Rows(held_out)))

  before = said() if job["before"] else None
  trainer.train()
  answers = said()
  pathlib.Path(out).write_text(json.dumps({"before": before, "after": answers}))


if __name__ == "__main__":
  main(*sys.argv[1:])
