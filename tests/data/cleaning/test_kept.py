"""Rows that say again what an earlier one says: which are duplicates, and which contradict."""

import random

import pytest

from jaxsft.config import Clean
from jaxsft.data.cleaning import near
from tests.data.cleaning.test_rows import labelled, read_data


def kept_ids(tmp_path, rows, task="classify", **cleaning):
  found = read_data(tmp_path, rows, task, Clean(**({"duplicates": "drop"} | cleaning)))
  assert found.read == len(found.train) + sum(found.left_out.values())
  return [int(r.id.split(":")[1]) for r in found.train], found.warnings


def test_the_first_of_equal_rows_stays(tmp_path):
  rows = [{"text": t, "label": y} for t, y in ("aa", "Aa", "ab", "aa", "aa")]
  rows[4]["note"] = "another column"
  found = read_data(tmp_path, rows, cleaning=Clean(duplicates="drop"))
  assert [r.id for r in found.train] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
  assert found.left_out == {"duplicates": 2}
  (change,) = found.changes
  assert change.samples[0] == {"row": "rows.jsonl:4", "before": "a"}
  assert found.warnings == (
    "1 rows have the text of an earlier row, case and spaces aside, but another answer, and "
    "stay: rows.jsonl:3 and rows.jsonl:1",
  )


def test_answers_that_are_written_count_for_equality(tmp_path):
  rows = [{"source": "a", "target": t} for t in ("x", "y", "X", "x ", "x")]
  assert kept_ids(tmp_path, rows, "seq2seq") == ([1, 2, 3, 4], ())
  rows = [{"source": "a", "targets": t} for t in (["x", "y"], ["x"], ["x", "y"])]
  assert kept_ids(tmp_path, rows, "seq2seq") == ([1, 2], ())


def call(arguments, name="find"):
  return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def chat(*turns, **more):
  return {"messages": [{"role": role, "content": said} for role, said in turns]} | more


ASKED = chat(("user", "a"), ("assistant", "b"))
OTHER_CHATS = {
  "roles": chat(("system", "a"), ("assistant", "b")),
  "case": chat(("user", "a"), ("assistant", "B")),
  "spaces": chat(("user", "a"), ("assistant", "b\n")),
  "calls": {
    "messages": [*ASKED["messages"][:1], {"role": "assistant", "tool_calls": call({})}]
  },
  "older calls": {
    "messages": [*ASKED["messages"][:1], {"role": "assistant", "function_call": 1}]
  },
  "tools": ASKED | {"tools": [{"name": "find"}]},
  "train": {"messages": [*ASKED["messages"], {**ASKED["messages"][1], "train": False}]},
  "thoughts": {"messages": [ASKED["messages"][0], ASKED["messages"][1] | {"thinking": "c"}]},
}


@pytest.mark.parametrize("what", OTHER_CHATS)
def test_conversations_that_differ_in_anything_are_no_duplicates(tmp_path, what):
  turned = {"messages": [dict(reversed(m.items())) for m in ASKED["messages"]]}
  rows = [ASKED, OTHER_CHATS[what], turned | {"id": 7}]
  assert kept_ids(tmp_path, rows, "chat") == ([1, 2], ())


def test_other_arguments_are_another_call_and_near_ones_too(tmp_path):
  asks = {"role": "user", "content": "please look for it " * 9}
  made = [call({"q": "one"}), call({"q": "two"}), call('{"q":"one"}'), call({"q": "one"}, "g")]
  rows = [
    {"messages": [asks, {"role": "assistant", "content": None, "tool_calls": one}]}
    for one in made
  ]
  assert kept_ids(tmp_path, rows, "chat")[0] == [1, 2, 3, 4]
  # The same call as JSON is nearly the same, whatever the threshold; another call is not.
  assert kept_ids(tmp_path, rows, "chat", near_duplicates=1.0)[0] == [1, 2, 4]


def test_tags_and_answers_count(tmp_path):
  rows = [{"tokens": ["a", "b"], "tags": tags} for tags in (["O", "B-X"], ["O", "O"])]
  ids, (warning,) = kept_ids(tmp_path, [*rows, *rows], "tag", near_duplicates=0.9)
  assert ids == [1, 2] and "rows.jsonl:2 and rows.jsonl:1" in warning
  context = " ".join(f"w{i}" for i in range(60))
  rows = [
    {"question": q, "context": context, "answers": [{"text": f"w{i}", "start": 3 * i}]}
    for q, i in (("which one", 1), ("which two", 2), ("Which  one", 1), ("which one", 3))
  ]
  ids, (warning,) = kept_ids(tmp_path, rows, "answer", near_duplicates=0.8)
  assert ids == [1, 2, 4] and "rows.jsonl:4 and rows.jsonl:1" in warning


def shuffled(rng, count):
  """Texts of which some nearly equal others."""
  vocabulary = [f"w{i}" for i in range(50)]
  texts = []
  for _ in range(count):
    if texts and rng.random() < 0.6:
      one = rng.choice(texts).split()
      for _ in range(rng.randrange(4)):
        one[rng.randrange(len(one))] = rng.choice(vocabulary)
    else:
      one = rng.choices(vocabulary, k=rng.randrange(8, 40))
    texts.append(" ".join(one))
  return texts


def brute(texts, threshold):
  """Of all pairs: the texts that stay, by words' runs and Python's sets."""
  sets = []
  stays = []
  for one in texts:
    parts = one.split()
    runs = {tuple(parts[i : i + 5]) for i in range(max(len(parts) - 4, 1))}
    if all(len(runs & other) < threshold * len(runs | other) for other in sets):
      sets.append(runs)
      stays.append(one)
  return stays


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
def test_near_duplicates_are_those_of_all_pairs(threshold):
  texts = shuffled(random.Random(7), 300)
  for _ in range(2):  # and the same ones every time
    index = near.Index(threshold)
    stays = [one for one in texts if index.find_or_add(one, one) is None]
    assert stays == brute(texts, threshold)


def test_a_candidate_that_is_none_is_not_taken(monkeypatch):
  """Whatever the bands say, the exact index decides."""
  index = near.Index(0.5)
  monkeypatch.setattr(index._bands, "query", lambda hashed: list(range(len(index._known))))
  assert index.find_or_add("a b c d e f", 1) is None
  assert index.find_or_add("g h i j k l", 2) is None
  assert index.find_or_add("a b c d e f g", 3) == 1


def test_scripts_without_spaces_are_compared_by_characters():
  one, other = "今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步了"
  expected = 9 / 11
  assert near.jaccard(near.shingles(one), near.shingles(other)) == pytest.approx(expected)
  assert len(near.shingles("one two three four five six")) == 2


def test_near_duplicates_of_rows(tmp_path):
  rows = labelled("a b c d e f g h i j", "z y x w v u", "a b c d e f g h i J k")
  rows += [rows[2] | {"label": "b"}]
  assert kept_ids(tmp_path, rows, near_duplicates=0.7)[0] == [1, 2, 4]  # of another label
  found = read_data(tmp_path, rows[:3], cleaning=Clean(near_duplicates=0.7))
  assert [r.id for r in found.train] == ["rows.jsonl:1", "rows.jsonl:2"]
  assert found.left_out == {"near duplicates": 1}


def test_near_duplicates_are_kept_apart_only_by_what_the_task_reads(tmp_path):
  asked = "a b c d e f g h i j"
  rows = [{"text": asked, "label": ["x", "y"]}, {"text": f"{asked} k", "label": ["y", "x"]}]
  rows += [{"text": f"{asked} l", "label": ["x"]}]
  found = read_data(
    tmp_path, rows, cleaning=Clean(near_duplicates=0.7), label_type="multi"
  ).train
  assert [r.fields["label"] for r in found] == [["x", "y"], ["x"]]
  rows = [
    {"source": asked, "target": "t", name: i} for name in ("label", "tools") for i in "12"
  ]
  rows = [row | {"source": f"{asked} {i}"} for i, row in enumerate(rows)]
  assert kept_ids(tmp_path, rows, "seq2seq", near_duplicates=0.5)[0] == [1]
