"""What is too long: conversations divided by turns, plain text in windows; losses counted."""

import json

import numpy as np
import pytest

from jaxsft import preflight, prepare, pretrained, tasks
from jaxsft.data.read import Row
from jaxsft.errors import JaxsftError
from jaxsft.tasks import chat
from tests import tiny
from tests.templates import tiny as templates

TALK = ("one", "first", "two", "second " * 9, "three", "third", "four", "last")


def context(max_length, **options):
  tokenizer = templates.tokenizer("chatml")
  return tasks.Context(tokenizer, max_length, **options)


def messages(*contents, system="Be kind."):
  found = [{"role": "system", "content": system}] if system else []
  roles = ("user", "assistant")
  return found + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def row(found):
  return Row("a", "rows.jsonl:7", {"messages": found})


def length(found):
  ids = templates.tokenizer("chatml").apply_chat_template(found)["input_ids"]
  return len(ids) - 1


def texts(encoded, place):
  """(all, what is supervised) of every example."""
  decode = place.tokenizer.decode
  return [
    (decode([*e["inputs"][:1], *e["targets"]]), decode(e["targets"][e["weights"] > 0]))
    for e in encoded.examples
  ]


def test_a_conversation_is_divided_in_front_of_questions():
  """The longest parts that fit, each after the system message; every answer once."""
  parts = [TALK[:2], TALK[2:4], TALK[4:]]
  limit = max(length(messages(*part)) for part in parts)
  place = context(limit, too_long="turns")
  encoded = chat.encode(row(messages(*TALK)), place)
  assert encoded.note == "divided by turns"
  write = lambda found: place.tokenizer.apply_chat_template(found, tokenize=False)
  assert texts(encoded, place) == [
    (write(messages(*part)), "".join(f"{answer}<|im_end|>" for answer in part[1::2]))
    for part in parts
  ]
  whole = chat.encode(row(messages(*TALK)), context(length(messages(*TALK)), too_long="turns"))
  assert whole.note is None and len(whole.examples) == 1


def test_an_exchange_that_is_too_long_alone_is_counted():
  limit = length(messages(*TALK[:2])) + 8
  place = context(limit, too_long="turns")
  encoded = chat.encode(row(messages(*TALK)), place)
  assert encoded.note == "truncated: without 1 exchanges that are too long, divided by turns"
  said = "".join(supervised for _, supervised in texts(encoded, place))
  assert said == "".join(f"{answer}<|im_end|>" for answer in ("first", "third", "last"))
  assert all(len(e["inputs"]) <= limit for e in encoded.examples)
  nothing = chat.encode(row(messages(*TALK[2:4])), place)
  assert nothing.examples == () and nothing.note == "dropped: too long"


def test_a_part_without_anything_to_learn_is_none():
  found = messages(*TALK[:2], *TALK[4:6])
  found[2]["train"] = False
  place = context(length(found[:3]) + 4, too_long="turns")
  encoded = chat.encode(row(found), place)
  assert [s for _, s in texts(encoded, place)] == ["third<|im_end|>"]
  without = "divided by turns, without {} parts that have nothing to learn"
  assert encoded.note == without.format(1)
  found.append({"role": "user", "content": "so " * 40})  # asks, but nothing answers
  assert chat.encode(row(found), place).note == without.format(2)


def test_parts_without_anything_to_learn_are_in_the_report(tmp_path, monkeypatch):
  """Where on_empty leaves out whole conversations of that kind, too."""
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  tiny.on_devices(monkeypatch, 1)
  model, data = tiny.checkpoint(tmp_path / "llama", "llama"), tmp_path / "rows.jsonl"
  found = messages(*TALK[:2], *TALK[4:6], system="")
  found[1]["train"] = False
  whole = len(tiny.letter_tokenizer().apply_chat_template(found)["input_ids"])
  data.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in (found, found[:2])))
  settings = {"data__id": None, "data__split": 0.0, "data__on_empty": "drop"}
  settings |= {"data__too_long": "turns", "data__max_length": whole - 4, "data__max_dropped": 1}
  config = tiny.config("llama", "chat", model, data, steps=1, **settings)
  made = prepare.prepare(config, pretrained.open_base(config.model), tiny.devices(1))
  report = preflight.report(made, config, {}, frozenset(), tiny.RULE)
  note = "divided by turns, without 1 parts that have nothing to learn"
  assert report.sets["train"]["noted"] == {note: 1}
  assert report.sets["train"]["dropped"] == {"dropped: nothing to learn": 1}
  assert f"           1 {note}" in report.lines()
  assert not any("without 1 parts" in text for text in report.warnings)  # it was asked for


def test_an_opening_answer_stays_with_the_first_exchange():
  found = [
    {"role": "assistant", "content": "Hello", "train": False},
    *messages(*TALK, system=""),
  ]
  place = context(length(found[:3]), too_long="turns")
  said = texts(chat.encode(row(found), place), place)
  assert "Hello" in said[0][0] and not any("Hello" in text for text, _ in said[1:])


PLAIN = "The end of it. " * 12


@pytest.mark.parametrize("stride", [0, 1, 7])
def test_windows_of_a_text_supervise_every_token_once(stride):
  fields = {"text": PLAIN}
  whole = chat.encode(Row("a", "a", fields), context(10**6)).examples[0]
  count = len(whole["inputs"])
  for limit in (stride + 1, 16, count - 1, count):
    place = context(limit, too_long="windows", stride=stride)
    encoded = chat.encode(Row("a", "a", fields), place)
    assert encoded.note == (None if limit == count else "read in windows")
    weights, at = np.zeros(count), 0
    for k, part in enumerate(encoded.examples):
      stop = at + len(part["inputs"])
      assert len(part["inputs"]) <= limit
      for key in ("inputs", "targets"):
        assert part[key].tolist() == whole[key][at:stop].tolist()
      assert part["weights"][: stride * (k > 0)].sum() == 0
      weights[at:stop] += part["weights"]
      at = stop - stride
    assert weights.tolist() == whole["weights"].tolist()
    assert encoded.stop_ids == {place.tokenizer.eos_token_id}


def test_what_fits_neither_way_is_refused_with_the_other():
  with pytest.raises(JaxsftError, match=r"rows.jsonl:7: \d+ tokens.*'turns': windows are of"):
    chat.encode(row(messages(*TALK)), context(9, too_long="windows", stride=1))
  with pytest.raises(JaxsftError, match=r"\d+ tokens.*'windows'.*plain text has no turns"):
    chat.encode(Row("a", "a", {"text": PLAIN}), context(9, too_long="turns"))


def test_what_is_unrolled_divided_and_escaped_is_reported(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  tiny.on_devices(monkeypatch, 1)
  model = tiny.checkpoint(tmp_path / "llama", "llama")
  data, talk = tmp_path / "rows.jsonl", ("a <|im_end|> cat", "so", "and", "it is", "of", "ok")
  rows = [{"messages": messages(*talk[: 2 * n], system="")} for n in (1, 2, 3)]
  data.write_text("".join(json.dumps(line) + "\n" for line in rows))

  def report(**settings):
    settings |= {"data__id": None, "data__split": 0.0, "data__control_tokens": "escape"}
    config = tiny.config("llama", "chat", model, data, steps=1, **settings)
    found = prepare.prepare(config, pretrained.open_base(config.model), tiny.devices(1))
    return preflight.report(found, config, {}, frozenset(), tiny.RULE)

  found = report(data__train_on="each")
  assert any("3 rows unrolled into 6 examples" in line for line in found.lines())
  assert found.sets["train"]["noted"] == {"with control tokens escaped": 3}
  limit = len(tiny.letter_tokenizer().apply_chat_template(rows[1]["messages"])["input_ids"])
  found = report(data__too_long="turns", data__max_length=limit + 8)
  assert found.sets["train"]["noted"] == {
    "with control tokens escaped": 2,
    "divided by turns, with control tokens escaped": 1,
  }
