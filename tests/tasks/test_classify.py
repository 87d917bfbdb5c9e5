"""Classification: rows as they are read, and what is said of one and of all of them."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import jaxsft
from jaxsft import labels, preflight, tasks
from jaxsft.errors import JaxsftError, UsageError
from jaxsft.tasks import classify
from tests import tiny
from tests.contract import build


class Row(NamedTuple):
  id: str
  where: str
  fields: dict[str, Any]


# --- rows ------------------------------------------------------------------------------


def row(**fields):
  return Row("a", "rows.jsonl:7", fields)


def words(**settings):
  """A context with BERT's kind of tokenizer."""
  usual = {"max_length": 30, "labels": ("a", "b", "c")}
  return tasks.Context(tiny.word_tokenizer(), **{**usual, **settings})


def letters(**settings):
  """A context with a chat model's tokenizer and template."""
  usual = {"max_length": 200, "labels": ("a", "b", "c")}
  return tasks.Context(tiny.letter_tokenizer(), **{**usual, **settings})


def test_labels_as_arrays():
  label = lambda value, **settings: classify.label_of(row(label=value), words(**settings))
  assert label("c") == 2 and label("c").dtype == np.int32
  found = label(["c", "a"], label_type="multi")
  assert found.tolist() == [[1, 0, 1]] and found.dtype == np.int32
  assert label([], label_type="multi").tolist() == [[0, 0, 0]]
  assert label(2.5, label_type="number") == 2.5
  for wrong, kind in (("d", "single"), (["a", "d"], "multi")):
    with pytest.raises(JaxsftError, match=r"rows.jsonl:7: label 'd' is unknown, .* a, b, c"):
      label(wrong, label_type=kind)


def turns(*contents):
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_a_conversation_is_the_template_s_text():
  context = letters()
  talk = turns("hi", "yes", "why")  # ends with a question: nothing to train on, much to judge
  found = classify.encode(row(messages=talk, label="b"), context)
  text = context.tokenizer.apply_chat_template(talk, tokenize=False)
  example = found.examples[0]
  assert found.text == text and found.note is None
  assert example["inputs"].tolist() == context.tokenizer.apply_chat_template(talk)["input_ids"]
  assert not example["token_types"].any() and example["label"] == 1
  same = row(conversations=[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}])
  assert classify.encode(same, context).text.startswith("<|im_start|>user\nhi<|im_end|>")


def test_tools_that_the_template_does_not_write():
  talk, tools = turns("hi", "yes"), [{"name": "f"}]
  with pytest.raises(JaxsftError, match=r"rows\.jsonl:7: .*not write the tool.*'leave_out'"):
    classify.encode(row(messages=talk, tools=tools), letters())
  context = letters(unwritten="leave_out")
  found = classify.encode(row(messages=talk, tools=tools), context)
  assert found.note == "with tools that the chat template does not write"
  assert found.text == classify.encode(row(messages=talk), context).text
  cut = letters(unwritten="leave_out", too_long="truncate", max_length=30)
  found = classify.encode(row(messages=turns("one", "first", "two"), tools=tools), cut)
  assert found.note == "truncated, with tools that the chat template does not write"


def test_an_encoder_s_tokenizer_frames_a_conversation():
  template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
  context = words(chat_template=template)
  found = classify.encode(row(messages=turns("the film", "good")), context).examples[0]
  tokenizer = context.tokenizer
  assert found["inputs"].tolist() == tokenizer("the film good")["input_ids"]
  assert found["inputs"][0] == tokenizer.cls_token_id
  context = words(chat_template=f"[CLS] {template}")  # or the template does
  found = classify.encode(row(messages=turns("the film", "good")), context).examples[0]
  assert found["inputs"].tolist() == tokenizer("the film good")["input_ids"][:-1]


def test_a_long_conversation_loses_its_oldest_exchanges():
  talk = turns("one", "first", "two", "second", "three")
  whole = classify.encode(row(messages=talk), letters()).examples[0]["inputs"]
  length = len(classify.encode(row(messages=talk[2:]), letters()).examples[0]["inputs"])
  assert length < len(whole)

  def cut(limit, how):
    return classify.encode(row(messages=talk), letters(too_long=how, max_length=limit))

  found = cut(length, "truncate")
  assert found.note == "truncated" and len(found.examples[0]["inputs"]) == length
  assert "two" in found.text and "first" not in found.text
  assert cut(length, "drop").note == "dropped: too long" and not cut(length, "drop").examples
  assert cut(5, "truncate").note == "dropped: too long"  # the last message has to stay
  with pytest.raises(JaxsftError, match=rf"rows.jsonl:7: {len(whole)} tokens, the limit is 20"):
    cut(20, "error")


def test_rows_without_anything_to_read_are_told():
  for fields, sentence in (
    ({"txt": "a"}, r"no field 'text' and no conversation.*did you mean 'txt'.*data.columns"),
    ({"messages": "hi"}, r"messages is str 'hi', expected a list"),
    ({"messages": turns("<|im_end|>")}, r"control token '<\|im_end\|>'"),
    ({"messages": turns("a"), "conversations": [{}]}, "expected one of them"),
  ):
    with pytest.raises(JaxsftError, match=rf"^rows\.jsonl:7: .*{sentence}"):
      classify.encode(row(label="a", **fields), letters())


# --- what is said of a row, and of all rows ----------------------------------------------


def found_of(logits, gold=None):
  """tasks.Found of one example each."""
  golds = [None] * len(logits) if gold is None else gold
  return [
    tasks.Found(None, [{"label": g}], [{"logits": np.asarray(x, np.float32)}])
    for x, g in zip(logits, golds, strict=True)
  ]


def test_scores_of_one_label():
  one = found_of([[1.0, 3.0, 2.0]])[0]
  said = classify.decode(one, words())
  e = np.exp([1.0, 3.0, 2.0])
  assert said["label"] == "b" and said["score"] == pytest.approx(e[1] / e.sum())
  assert said["scores"] == pytest.approx(dict(zip("abc", e / e.sum(), strict=True)))
  cooler = classify.decode(one, words(temperature=2.0))
  assert cooler["label"] == "b" and cooler["score"] == pytest.approx(
    math.exp(1.5) / np.exp([0.5, 1.5, 1.0]).sum()
  )


def test_scores_of_many_labels():
  one = found_of([[0.1, -0.1, -800.0]])[0]
  said = classify.decode(one, words(label_type="multi"))
  assert said["labels"] == ["a"]
  assert said["scores"]["a"] == pytest.approx(1 / (1 + math.exp(-0.1)))
  assert said["scores"]["c"] == 0.0
  both = classify.decode(one, words(label_type="multi", threshold=(0.4, 0.4, 0.4)))
  assert both["labels"] == ["a", "b"] and both["scores"] == said["scores"]
  assert classify.decode(one, words(label_type="multi", threshold=0.6))["labels"] == []


def test_numbers_of_one_label():
  logits = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0]])
  metrics = classify.metrics(found_of(logits, np.array([0, 1, 2, 2], np.int32)), words())
  nll = [math.log(math.e**2 + 2) - 2] * 2
  nll += [math.log(1 + math.e**3 + math.e) - 1, math.log(2 + math.e) - 1]
  assert metrics["loss"] == pytest.approx(np.mean(nll)) and metrics["accuracy"] == 0.75
  assert metrics["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
  assert metrics["temperature"] == metrics["calibration"]["temperature"] > 0
  measured = {k for k, v in metrics.items() if isinstance(v, float)} - {"temperature"}
  assert measured == set(classify.METRICS["single"])


def test_numbers_of_many_labels():
  logits = np.array([[2.0, -1.0, 0.5], [-2.0, 1.0, -0.5]])
  gold = np.array([[1, 0, 0], [0, 1, 0]], np.int32)
  context = words(label_type="multi")
  metrics = classify.metrics(found_of(logits, gold), context)
  sign = np.where(gold > 0, 1, -1)
  assert metrics["loss"] == pytest.approx(np.mean(np.log(1 + np.exp(-sign * logits))))
  assert metrics["hamming_loss"] == pytest.approx(1 / 6)
  assert {k for k, v in metrics.items() if isinstance(v, float)} == set(
    classify.METRICS["multi"]
  )
  strict = words(label_type="multi", threshold=(0.5, 0.5, 0.7))
  assert classify.metrics(found_of(logits, gold), strict)["hamming_loss"] == 0


def test_numbers_of_a_number():
  context = words(label_type="number", labels=("number",))
  gold = np.array([1.0, 2.0, 4.0], np.float32)
  metrics = classify.metrics(found_of([[1.5], [2.0], [3.0]], gold), context)
  assert metrics["loss"] == metrics["mse"] == pytest.approx(1.25 / 3)
  assert {k for k, v in metrics.items() if isinstance(v, float)} == set(
    classify.METRICS["number"]
  )


def test_the_preflight_report_says_labels_and_weights(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXSFT_CACHE", str(tmp_path / "cache"))
  model = tiny.checkpoint(tmp_path / "model", "bert")
  weights = {"classify": {"neg": 3.0}, "multi": "balanced", "masked_lm": "none"}
  for kind, expected in (
    ("classify", ("labels: neg", "→ pos", "class weights: neg 3, pos 1")),
    ("multi", ("(none)", "→ pos, the", "class weights: film 3.")),
    ("masked_lm", ("the⟧\n", "every update hides 0.15 of its supervised tokens")),
  ):
    rows = tiny.rows(tmp_path / f"{kind}.jsonl", kind)
    made = tiny.config("bert", kind, model, rows, loss__class_weights=weights[kind])
    job = build.job(made, tiny.devices(1))
    data = job.data
    lines = "\n".join(
      preflight.report(data, made, job.network.shapes(), job.chosen, job.rule).lines()
    )
    for part in expected:
      assert part in lines, lines
    if kind == "multi":  # shares are of the examples, which may have several
      count = len(data.train.store)
      the = sum("the" in row.fields["label"] for row in data.rows.train)
      assert f"the {the} ({the / count:.1%})" in lines


def test_how_scores_are_made_can_be_said_to_predict(tmp_path):
  one = jaxsft.load(tiny.checkpoint(tmp_path / "one", "bert", labels=("a", "b", "c")))
  rows = [{"text": "the film was good"}, {"text": "a dull cast", "label": "unknown"}]
  plain, cool = one.predict(rows), one.predict(rows, temperature=3.0)
  for ours, theirs in zip(plain, cool, strict=True):
    logits = np.log(list(ours["scores"].values())) / 3
    expected = np.exp(logits) / np.exp(logits).sum()
    assert list(theirs["scores"].values()) == pytest.approx(expected, rel=1e-5)
  with pytest.raises(UsageError, match=r"threshold is 0.3, but the model does not give many"):
    one.predict(rows, threshold=0.3)
  many = dataclasses.replace(one, context=dataclasses.replace(one.context, label_type="multi"))
  low = many.predict(rows, threshold={"a": 1e-6})
  assert all("a" in said["labels"] for said in low)
  assert [s["labels"] for s in many.predict(rows, threshold=1e-6)] == [["a", "b", "c"]] * 2
  for wrong in ({"temperature": 2.0}, {"temperature": 0.0}, {"threshold": 1.0}):
    with pytest.raises(UsageError, match=next(iter(wrong))):
      many.predict(rows, **wrong)


def test_a_threshold_of_one_label_leaves_the_others():
  own = words(label_type="multi", threshold=(0.2, 0.3, 0.4))
  assert labels.scoring(own, threshold={"b": 0.9}).threshold == (0.2, 0.9, 0.4)
  assert labels.scoring(words(label_type="multi"), threshold={"b": 0.9}).threshold == (
    0.5,
    0.9,
    0.5,
  )
  assert labels.scoring(own, threshold=0.6).threshold == 0.6
  assert labels.scoring(own).threshold == (0.2, 0.3, 0.4)
  with pytest.raises(UsageError, match="threshold: found the label 'x'"):
    labels.scoring(own, threshold={"x": 0.9})


def test_a_conversation_is_classified(tmp_path):
  model = jaxsft.load(tiny.checkpoint(tmp_path / "llama", "llama", labels=("a", "b")))
  talk = turns("hi", "yes", "why")
  said = model.predict([{"messages": talk}, {"text": "hi"}])
  ids = model.tokenizer.apply_chat_template(talk)["input_ids"]
  logits = model.logits(np.array([ids], np.int32))[0].astype(np.float64)
  expected = np.exp(logits) / np.exp(logits).sum()
  assert list(said[0]["scores"].values()) == pytest.approx(expected, abs=1e-5)
  assert said[0]["scores"] != said[1]["scores"]
  with pytest.raises(JaxsftError, match="row 0: is too long for the model's 512 tokens"):
    model.predict([{"messages": turns("a" * 600)}, {"text": "hi"}])
