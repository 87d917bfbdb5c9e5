"""Rows with their texts changed and others left out, all of it counted."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft import sources, tasks
from jaxsft.config import Clean, Data
from jaxsft.data import read, squad, words
from jaxsft.data.cleaning import fields, overlap, record, text
from jaxsft.errors import JaxsftError, UsageError

CLASSIFY, TAG, ANSWER = (tasks.TASKS[name] for name in ("classify", "tag", "answer"))
CHAT, SEQ2SEQ = tasks.TASKS["chat"], tasks.TASKS["seq2seq"]


def row(**found):
  return read.Row("r", "rows:1", found)


def cleaned(task, steps, **found):
  noted = record.Record()
  (new,) = fields.normalised([row(**found)], task, text.program(steps), noted)
  return new.fields


def read_data(tmp_path, rows, task="classify", cleaning=None, **settings):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
  data = Data(path=str(path), **({"split": 0.0} | settings))
  return sources.read_data(data, tasks.TASKS[task], cleaning=cleaning)


def labelled(*texts):
  return [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(texts)]


# --- texts wherever they stand ---------------------------------------------------------


def test_all_texts_of_a_task_and_no_other_field():
  found = cleaned(CLASSIFY, ("lower",), text="A", text_pair="B", label="C", other="D")
  assert found == {"text": "a", "text_pair": "b", "label": "C", "other": "D"}
  found = cleaned(SEQ2SEQ, ("lower",), source=["A", "B"], targets=["C", "D"], label="E")
  assert found == {"source": ["a", "b"], "targets": ["c", "d"], "label": "E"}


def test_messages_in_every_form():
  mark = lambda one: f"<b>{one}</b>"
  messages = [
    {"role": "<b>user</b>", "content": [{"type": "text", "text": mark("a")}], "train": False},
    {"role": "assistant", "content": mark("b"), "reasoning_content": mark("c")},
    {"role": "assistant", "content": None, "tool_calls": [{"function": mark("d")}]},
  ]
  (first, second, third) = cleaned(CHAT, ("markup",), messages=messages)["messages"]
  assert first == {**messages[0], "content": [{"type": "text", "text": "a"}]}
  assert second == {"role": "assistant", "content": "b", "reasoning_content": "c"}
  assert third == messages[2]
  found = cleaned(
    CHAT, ("markup",), instruction=mark("a"), output=mark("b"), history=[[mark("c"), mark("d")]]
  )
  assert found == {"instruction": "a", "output": "b", "history": [["c", "d"]]}
  found = cleaned(CHAT, ("markup",), conversations=[{"from": "human", "value": mark("x")}])
  assert found == {"conversations": [{"from": "human", "value": "x"}]}


def test_entities_and_answers_move_along():
  found = cleaned(
    TAG, ("markup", "whitespace"), text="<p>Hi,  <b>Ada</b> Love ", entities=[[11, 14, "PER"]]
  )
  assert found["text"] == "Hi, Ada Love"
  assert words.entities(found) == [words.Entity("PER", 4, 7)]
  found = cleaned(
    ANSWER,
    ("stop_words:english", "lower"),
    question="Who was it?",
    context="It was the Duke of York.",
    answers={"text": ["the Duke of York"], "answer_start": [7]},
  )
  assert found["context"] == "duke york."
  assert squad.question(found)["answers"] == [{"text": "duke york", "start": 0}]


def test_an_entity_of_which_nothing_is_left_is_an_error():
  with pytest.raises(JaxsftError, match=r"rows:1: .*nothing of 'The'.*entities.*config.clean"):
    cleaned(TAG, ("stop_words:english",), text="The band", entities=[[0, 3, "BAND"]])
  with pytest.raises(JaxsftError, match=r"rows:1: .*in a text of 1"):
    cleaned(TAG, ("lower",), text="A", entities=[[0, 3, "BAND"]])


def test_tokens_keep_their_tags():
  found = cleaned(
    TAG, ("punctuation", "lower"), tokens=["EU", ",", "U.N."], tags=["B-O", "O", "B-O"]
  )
  assert found == {"tokens": ["eu", "u n"], "tags": ["B-O", "B-O"]}
  found = cleaned(TAG, ("punctuation",), tokens=["EU", ",", "UN"], tags=["I-O", "O", "I-O"])
  assert found == {"tokens": ["EU", "UN"], "tags": ["I-O", "B-O"]}  # still two entities
  with pytest.raises(JaxsftError, match=r"rows:1: .*nothing of the token ','.*'I-O'"):
    cleaned(TAG, ("punctuation",), tokens=["EU", ","], tags=["B-O", "I-O"])
  for tokens in (["EU", ","], ("EU", ","), np.array(["EU", ","])):
    assert cleaned(TAG, ("punctuation",), tokens=tokens) == {"tokens": ["EU"]}
  assert cleaned(TAG, ("lower",), tokens=np.array(["a"]))["tokens"] == ["a"]


WORDS = st.lists(
  st.sampled_from("Ada  <b>lives</b> the in &amp; Rome, ﬁn ...".split(" ")), max_size=9
)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, st.permutations(text_steps := list(text.PLAIN)), st.integers(1, 4))
def test_spans_of_rows_follow(before, after, steps, count):
  """A name that no step touches is what its span says, in entities and in answers."""
  left = " ".join(before) + " "
  whole, span = f"{left}ada {' '.join(after)}", (len(left), len(left) + 3)
  steps = steps[:count]
  found = cleaned(TAG, steps, text=whole, entities=[[*span, "PER"]])
  (entity,) = words.entities(found)
  assert found["text"][entity.start : entity.end] == "ada"
  answers = [{"text": "ada", "start": span[0]}]
  found = cleaned(ANSWER, steps, question="who", context=whole, answers=answers)
  (answer,) = squad.question(found)["answers"]
  assert answer["text"] == "ada"


def test_arrays_are_read_as_lists():
  found = cleaned(CLASSIFY, ("lower",), text=np.str_("A"), text_pair=np.array("B"))
  assert found == {"text": "a", "text_pair": "b"} and type(found["text"]) is str
  parts = np.array([{"type": "text", "text": np.str_("<b>A</b>")}], dtype=object)
  turns = np.array([{"role": "user", "content": parts}] * 2, dtype=object)
  found = cleaned(CHAT, ("markup",), messages=turns)
  assert found == {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "A"}]}] * 2
  }
  answers = {"text": np.array(["Ada"]), "answer_start": np.array([3])}
  found = cleaned(ANSWER, ("lower",), question="Q", context="It Ada", answers=answers)
  assert squad.question(found)["answers"] == [{"text": "ada", "start": 3}]
  given = row(tokens=np.array(["A", "B"]), other=np.arange(3))
  (seen,), differ = fields.as_trained([given], TAG, ("lower",))
  assert (seen.fields["tokens"], differ) == (["a", "b"], {0: {"read": {"tokens": ["a", "b"]}}})
  assert fields.prompt(turns, ("markup",))[0]["content"][0]["text"] == "A"
  assert fields.exact(given.fields, TAG) == fields.exact({"tokens": ["A", "B"]}, TAG)
  assert cleaned(TAG, ("lower",), tokens=np.arange(3))["tokens"] == [0, 1, 2]  # words refuses


# --- rows left out ---------------------------------------------------------------------


def test_nothing_happens_by_default(tmp_path):
  rows = labelled("A <b>", "A <b>", "key sk-abcdefghijklmnopqrstu1", "x@y.de")
  found = read_data(tmp_path, rows, cleaning=Clean())
  assert [r.fields for r in found.train] == rows
  assert (found.read, found.left_out, found.changes, found.warnings) == (4, {}, (), ())
  assert sources.text_steps(Clean()) == ()


def test_changes_are_counted_with_samples(tmp_path):
  rows = labelled("One", "two", "THREE " * 40, "Four", "Five")
  found = read_data(tmp_path, rows, cleaning=Clean(text=("lower", "whitespace")))
  lowered, spaced = found.changes
  assert (lowered.what, lowered.rows) == ("changed by lower", 4)
  assert lowered.samples[0] == {"row": "rows.jsonl:1", "before": "One", "after": "one"}
  assert len(lowered.samples) == record.SAMPLES
  assert lowered.samples[1]["before"].startswith("THREE") and len(lowered.line()) < 400
  assert (spaced.what, spaced.rows) == ("changed by whitespace", 1)
  assert [r.fields["text"] for r in found.train][:2] == ["one", "two"]


def test_lengths(tmp_path):
  rows = [{"text": "ab", "text_pair": "c", "label": "a"}, *labelled("abcd", "ab", "abcdefgh")]
  found = read_data(tmp_path, rows, cleaning=Clean(min_chars=3, max_chars=7))
  assert [r.id for r in found.train] == ["rows.jsonl:1", "rows.jsonl:2"]
  assert found.left_out == {"fewer than 3 characters": 1, "more than 7 characters": 1}
  assert found.read == len(found.train) + sum(found.left_out.values())
  with pytest.raises(JaxsftError, match=r"config.clean leaves none of 4 rows .4 fewer than 99"):
    read_data(tmp_path, rows, cleaning=Clean(min_chars=99))


def test_language(tmp_path):
  rows = labelled(
    "The weather is lovely today and we went to the park",
    "Das Wetter ist heute schön und wir gingen in den Park",
    "Le temps est magnifique aujourd'hui et nous sommes allés au parc",
  )
  found = read_data(tmp_path, rows, cleaning=Clean(language="de"))
  assert [r.id for r in found.train] == ["rows.jsonl:2"]
  assert found.left_out == {"language en, not de": 1, "language fr, not de": 1}
  with pytest.raises(UsageError, match=r"config.clean.language: found 'deutsch'.*ISO 639-1"):
    read_data(tmp_path, rows, cleaning=Clean(language="deutsch"))


# --- what is measured is not trained on ------------------------------------------------


def split_rows(tmp_path, held, train, **cleaning):
  path = tmp_path / "held.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in labelled(*held)))
  return read_data(tmp_path, labelled(*train), cleaning=Clean(**cleaning), eval_path=str(path))


def test_overlap(tmp_path):
  held = ["b C", "l m n o p q r s t", "b c"]
  train = ["a", "B  c", "l m n o p q r s", "x"]
  at = lambda found: [r.fields["text"] for r in found.train]
  assert at(split_rows(tmp_path, held, train)) == train
  found = split_rows(tmp_path, held, train, overlap="drop")
  assert at(found) == ["a", "l m n o p q r s", "x"]
  assert found.left_out == {"overlap with held-out rows": 1}
  assert [r.fields["text"] for r in found.held_out] == held  # never left out
  found = split_rows(tmp_path, held, train, overlap="drop", near_duplicates=0.8)
  assert at(found) == ["a", "x"]
  found = split_rows(tmp_path, held, train, near_duplicates=0.8)
  assert at(found) == train and not found.left_out
  assert "1 training rows nearly equal held-out rows: rows.jsonl:3" in found.warnings[0]
  with pytest.raises(JaxsftError, match=r"1 training rows.*rows.jsonl:2 and .*held.jsonl:1"):
    split_rows(tmp_path, held, train, overlap="error")
  with pytest.raises(JaxsftError, match="leaves no training row"):
    split_rows(tmp_path, held, ["b c"], overlap="drop")


def test_benchmarks(tmp_path):
  file = tmp_path / "bench.jsonl"
  file.write_text('{"q": "One two, three FOUR five.", "o": {"a": ["six seven"]}, "n": 1}\n')
  train = ["so one TWO three; four.", "one two three", "six seven"]
  found = split_rows(tmp_path, ["x"], train, benchmarks=(str(file),), ngram=4)
  assert [r.fields["text"] for r in found.train] == ["one two three", "six seven"]
  assert found.left_out == {"4 words in a row of bench.jsonl": 1}
  assert found.warnings == (
    "1 of 2 texts of bench.jsonl have fewer than 4 words and were not looked for "
    "(config.clean.ngram)",
  )
  (change,) = found.changes
  assert change.samples == [{"row": "rows.jsonl:1", "before": "one two three four"}]
  (tmp_path / "none.jsonl").write_text('{"a": 1}\n')
  with pytest.raises(JaxsftError, match=r"none.jsonl holds no text"):
    split_rows(tmp_path, ["x"], train, benchmarks=(str(tmp_path / "none.jsonl"),))


def test_calls_of_tools_are_looked_through():
  said = {"name": "f", "arguments": '{"q": "One two, three"}'}
  turns = [{"role": "assistant", "content": "", "tool_calls": [{"function": said}]}]
  rows = [row(messages=turns), row(messages=[{"role": "user", "content": "one"}])]
  noted = record.Record()
  stays, _ = overlap.unknown_to(rows, CHAT, {"b": ["two three"]}, 2, noted)
  assert stays == rows[1:] and noted.left_out() == {"2 words in a row of b": 1}
  other = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": said | {"name": "g"}}]}
  ]
  drop = Clean(overlap="drop")
  assert overlap.apart(rows[:1], [row(messages=other)], CHAT, drop, noted)[0] == rows[:1]
  assert overlap.apart(rows[:1], [row(messages=turns)], CHAT, drop, noted)[0] == []


def test_words_of_a_run():
  assert list(overlap.runs("A b-c D", 3)) == ["a b c", "b c d"]
  assert list(overlap.runs("我们use它", 2)) == ["我 们", "们 use", "use 它"]


def test_rows_that_are_only_measured_change_but_stay(tmp_path):
  held = ["DUP", "dup", "mail me@x.de", "a"]
  found = split_rows(
    tmp_path, held, ["X y", "Z z"], text=("lower",), duplicates="drop", min_chars=2,
    personal="mask",
  )  # fmt: skip
  assert [r.fields["text"] for r in found.held_out] == ["dup", "dup", "mail [email]", "a"]
  assert found.left_out == {}


@pytest.mark.parametrize(
  ("package", "settings", "said"),
  [
    ("datasketch", {"near_duplicates": 0.8}, "config.clean.near_duplicates=0.8 needs"),
    ("py3langid", {"language": "en"}, "config.clean.language='en' needs"),
  ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, settings, said):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UsageError) as caught:
    read_data(tmp_path, labelled("a", "b"), cleaning=Clean(**settings))
  assert said in str(caught.value) and package in str(caught.value)
  assert "pip install 'jaxsft[clean]'" in str(caught.value)
