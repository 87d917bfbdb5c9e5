"""Rows are encoded once, by several processes where they are many, and after a stop go on."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from jaxsft import encoding, pretrained, sources, tasks, tokenizer
from jaxsft.config import Data
from jaxsft.data import order, pack, parts, store
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from tests import tiny


@pytest.fixture(scope="module")
def context(tmp_path_factory):
  base = pretrained.open_pretrained(tiny.checkpoint(tmp_path_factory.mktemp("m"), "bert"))
  return tasks.Context(base.tokenizer, 8, too_long="drop", labels=("neg", "pos"))


def rows(count):
  text = lambda i: "the film " * (1 + i % 4)  # every fourth is too long
  return [
    Row(f"r{i}", f"rows:{i}", {"text": text(i), "label": ("neg", "pos")[i % 2]})
    for i in range(count)
  ]


def made(count, context, kept):
  build = lambda found, counts: store.in_memory(found, counts)
  return encoding.examples(rows(count), tasks.TASKS["classify"], context, build, kept)


def same(one, other):
  assert one.store.ids == other.store.ids
  assert one.store.fingerprint == other.store.fingerprint
  for name in ("notes", "stop_ids", "samples", "noted"):
    assert one.counts[name] == other.counts[name]
  np.testing.assert_array_equal(one.store.tokens["inputs"], other.store.tokens["inputs"])


def test_processes_make_what_one_makes_and_a_stopped_run_goes_on(
  context, tmp_path, monkeypatch
):
  alone = made(23, context, None)
  assert alone.counts["notes"] == {"dropped: too long": 5}
  monkeypatch.setattr(encoding, "MANY", 10)
  monkeypatch.setattr(encoding, "CHUNK", 4)
  kept = parts.Kept(tmp_path, "key")
  same(made(23, context, kept), alone)
  files = sorted(file.name for file in kept.directory.iterdir())
  assert files == [f"{k:06}.npz" for k in range(6)]
  # A run that stopped after four chunks encodes the others; here no process would start.
  asked = []

  def counted(payload, part):
    asked.append([row.id for row in part])
    return encode_chunk(payload, part)

  encode_chunk = encoding._encode_chunk
  monkeypatch.setattr(encoding, "_encode_chunk", counted)
  monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: {0}, raising=False)
  for number in (2, 5):
    (kept.directory / f"{number:06}.npz").unlink()
  same(made(23, context, kept), alone)
  assert asked == [["r8", "r9", "r10", "r11"], ["r20", "r21", "r22"]]


def test_a_damaged_chunk_is_encoded_again(context, tmp_path, monkeypatch):
  monkeypatch.setattr(encoding, "MANY", 10)
  monkeypatch.setattr(encoding, "CHUNK", 4)
  monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: {0}, raising=False)
  kept = parts.Kept(tmp_path, "key")
  whole = made(11, context, kept)
  file = kept.directory / "000001.npz"
  file.write_bytes(file.read_bytes()[:-40])
  same(made(11, context, kept), whole)


def test_what_is_wrong_with_a_row_is_said_by_the_run(context, tmp_path, monkeypatch):
  monkeypatch.setattr(encoding, "MANY", 1)
  strict = dataclasses.replace(context, too_long="error")
  with pytest.raises(JaxsftError, match=r"^rows:3: 10 tokens"):
    made(5, strict, parts.Kept(tmp_path, "key"))


def test_chunks_are_forgotten_when_the_store_is_whole(context, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path))
  monkeypatch.setattr(encoding, "MANY", 1)
  monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: {0}, raising=False)
  found = encoding.encode(rows(5), tasks.TASKS["classify"], context)
  assert len(found.store) == 4
  (only,) = (tmp_path / "stores").iterdir()
  assert json.loads((only / "key.json").read_text())["too_long"] == "drop"


def talk(*said, train=True):
  turns = [{"role": "user", "content": "hi"}]
  turns += [{"role": "assistant", "content": text, "train": train} for text in said]
  return {"messages": turns}


def test_conversations_in_which_nothing_trains(monkeypatch):
  """An error with their place, or left out and counted."""
  chat = tasks.TASKS["chat"]
  context = tasks.Context(tiny.letter_tokenizer(), 100)
  said = [talk("yes"), talk("no", train=False), talk(), {"text": "a cat"}]
  rows = [Row(f"r{i}", f"rows:{i}", fields) for i, fields in enumerate(said)]
  for number, why in ((1, "'train': false"), (2, "no message has the role")):
    with pytest.raises(JaxsftError, match=f"^rows:{number}: .*{why}"):
      encoding.encode_row(rows[number], chat, context)
  dropping = dataclasses.replace(context, on_empty="drop")
  found = encoding.examples(rows, chat, dropping, store.in_memory)
  assert found.store.ids == ["r0", "r3"] and found.counts["notes"] == {encoding.EMPTY: 2}
  call = {"type": "function", "function": {"name": "look", "arguments": {}}}
  turns = [*talk()["messages"], {"role": "assistant", "tool_calls": [call]}]
  calls = Row("c", "rows:8", {"messages": turns})
  quiet = dataclasses.replace(dropping, train_on_tools=False)
  assert encoding.encode_row(calls, chat, quiet).note == encoding.EMPTY
  wrong = Row("w", "rows:9", {"messages": [{"role": "user", "content": 3}]})
  with pytest.raises(JaxsftError, match=r"^rows:9: "):
    encoding.encode_row(wrong, chat, dropping)


def test_examples_without_weight_are_left_out_whatever_the_reason(context, monkeypatch):
  """As when what was to be learnt is cut away."""
  classify, few = tasks.TASKS["classify"], {"inputs": np.ones(3, np.int32)}
  weighed = lambda *weights: few | {"weights": np.array(weights, np.float32)}
  made = [weighed(0, 1, 0), weighed(0, 0, 0)]
  encoded = lambda row, context: tasks.Encoded(tuple(made), "truncated", "", [], frozenset())
  monkeypatch.setattr(classify, "encode", encoded)
  dropping = dataclasses.replace(context, on_empty="drop")
  (row,) = rows(1)
  assert len(encoding.encode_row(row, classify, context).examples) == 2
  one = encoding.encode_row(row, classify, dropping)
  assert one.examples == (made[0],)
  assert one.note == "truncated, without 1 parts that have nothing to learn"
  del made[0]
  none = encoding.encode_row(row, classify, dropping)
  assert none.examples == () and none.note == encoding.EMPTY


INSTRUCTIONS = {
  "gsm8k/train.jsonl": {"prompt": "question", "completion": "answer"},
  "fastchat_sharegpt/dummy_conversation.json": None,
  "llamafactory_demo/alpaca_en_demo.json": None,
  "llamafactory_demo/alpaca_zh_demo.json": None,
  "llamafactory_demo/v1_sft_demo.jsonl": None,
}


@pytest.mark.full
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_rows_of_real_conversations_are_full(name):
  """At least 98 % of the places hold a token, or no packing could do with fewer rows."""
  data, checkpoints = (os.environ.get(f"JAXSFT_{n}") for n in ("DATA", "CHECKPOINTS"))
  if not data or not checkpoints:
    pytest.skip("needs JAXSFT_DATA and JAXSFT_CHECKPOINTS")
  words = tokenizer.load_tokenizer(pathlib.Path(checkpoints, "smollm2-135m-instruct"))
  settings = Data(path=f"{data}/{name}", split=0.0, columns=INSTRUCTIONS[name])
  rows = sources.read_data(settings, tasks.TASKS["chat"]).train
  context = tasks.Context(words, 2048)
  lengths = encoding.examples(rows, tasks.TASKS["chat"], context, store.in_memory).store.lengths
  plan = order.plan_training(
    lengths, seed=0, batch_size=1, batch_unit="rows", packing="pack", max_length=2048
  )
  packed = [row for step in range(plan.num_steps) for row in plan.rows(step)]
  assert sorted(i for row in packed for i in row) == list(range(len(lengths)))
  fewest = -(-int(lengths.sum()) // 2048)
  assert pack.efficiency(packed, lengths, 2048) >= 0.98 or len(packed) == fewest
