"""Chats learnt by heart are answered word for word, and ended, by whoever loads the export."""

import json

import numpy as np
import pytest

import jaxsft
from jaxsft import train
from tests import tiny

LONGEST = 96
ROOM = 24


@pytest.fixture(scope="module")
def taught(files, tmp_path_factory):
  """The run directory of a tiny Llama that has seen a few chats often."""
  root = tmp_path_factory.mktemp("taught")
  data = tiny.chats(root / "chats.jsonl", count=len(tiny.CHATS), turns=False)
  config = tiny.config(
    "llama",
    "chat",
    files("llama", "chat")[0],
    data,
    steps=150,
    data__split=0.0,
    optim__schedule="linear",
    optim__warmup=5.0,
    optim__penalty="none",
    log__every=50,
  )
  with pytest.MonkeyPatch.context() as patch:
    tiny.on_devices(patch, 1)
    return train.finetune(config, root / "run")


def conversation(asked):
  return [{"role": "user", "content": asked}]


def test_it_was_learnt(taught):
  assert taught.result["metrics"]["loss"] < 0.05
  assert taught.result["metrics"]["token_accuracy"] == 1.0


@pytest.mark.parametrize("where", ["run directory", "export"])
def test_argmax_of_what_was_loaded_from_disk(taught, where):
  """Only from disk: template, stop ids, tokenizer and weights are the export's own."""
  model = jaxsft.load(taught.directory if where == "run directory" else taught.export)
  generation = json.loads((taught.export / "generation_config.json").read_text())
  stops = set(np.atleast_1d(generation["eos_token_id"]).tolist())
  texts, rows = [], []
  for asked, answered in tiny.CHATS:
    prompt = model.tokenizer.apply_chat_template(
      conversation(asked), add_generation_prompt=True, tokenize=False
    )
    rows.append(model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    texts.append(answered)
  lengths = [len(row) for row in rows]
  tokens = np.zeros((len(rows), LONGEST), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  ended = [None] * len(rows)
  for _ in range(ROOM):
    segments = (np.arange(LONGEST) < np.array(lengths)[:, None]).astype(np.int32)
    logits = model.logits(tokens, segments=segments)
    for i, length in enumerate(lengths):
      if ended[i] is not None:
        continue
      chosen = int(logits[i, length - 1].argmax())
      if chosen in stops:
        ended[i] = model.tokenizer.decode(tokens[i, len(rows[i]) : length])
      else:
        tokens[i, length] = chosen
        lengths[i] += 1
  assert ended == texts


def test_generate(taught):
  model = jaxsft.load(taught.directory)
  for asked, answered in tiny.CHATS:
    assert model.generate(conversation(asked), max_new_tokens=ROOM) == answered


def test_torch_transformers(taught, oracle):
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(taught.export).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(taught.export)
  for asked, answered in tiny.CHATS:
    prompt = tokenizer.apply_chat_template(
      conversation(asked), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with oracle.no_grad():
      out = model.generate(**prompt, max_new_tokens=ROOM, do_sample=False)
    new = out[0, prompt["input_ids"].shape[1] :]
    assert len(new) < ROOM  # it stopped by itself
    assert tokenizer.decode(new, skip_special_tokens=True) == answered
    assert tokenizer.decode(new) == f"{answered}<|im_end|>"
