"""Rows stay, go and are counted; labels are names; the split is a function of the id."""

import math

import pytest

from jaxsft.data import clean, read
from jaxsft.errors import JaxsftError, UsageError

FIELDS = ("text", "label")


def row(i, **fields):
  return read.Row(f"r{i}", f"f.csv:{i}", fields)


def cleaned(rows, **settings):
  defaults = {
    "keep": None,
    "labels": None,
    "label_type": "single",
    "separator": ",",
    "limit": None,
    "task_fields": FIELDS,
  }
  return clean.clean(rows, **(defaults | settings))


def refused(rows, *parts, error=JaxsftError, **settings):
  with pytest.raises(error) as caught:
    cleaned(rows, **settings)
  for part in parts:
    assert part in str(caught.value), str(caught.value)


def labels_of(values, **settings):
  rows = [row(i, text="x", label=value) for i, value in enumerate(values, 1)]
  return [r.fields["label"] for r in cleaned(rows, **settings).rows]


def test_counts_add_up():
  rows = [row(i, text=t, rating=r) for i, (t, r) in enumerate(TEXTS, 1)]
  result = cleaned(
    iter(rows),
    keep="abs(rating) >= 0.5",
    labels={"negative": "rating < 0", "positive": "rating > 0"},
  )
  assert result.read == 6
  assert result.left_out == {"keep rule": 2, "empty text": 2}
  assert [r.id for r in result.rows] == ["r1", "r3"]
  assert [r.fields["label"] for r in result.rows] == ["positive", "negative"]
  assert result.rows[0].fields["rating"] == "2.5" and "label" not in rows[0].fields
  assert result.read == len(result.rows) + sum(result.left_out.values())


TEXTS = [("a", "2.5"), ("b", "0"), ("c", "-0.5"), (" \n", "1"), (None, "1"), ("", "0.1")]


def test_plain_text_of_a_chat_may_be_empty():
  lines = [row(1, text="a"), row(2, text=" "), row(3, text=None), row(4, text="b")]
  result = cleaned(lines, task_fields=())
  assert [r.id for r in result.rows] == ["r1", "r4"]
  assert result.left_out == {"empty text": 2}
  # Beside another form, text is a column like any other.
  chat = {"instruction": "a", "output": "b"}
  assert len(cleaned([row(1, text="", **chat)], task_fields=()).rows) == 1
  refused([row(1, text=5)], "f.csv:1", "expected text", task_fields=())


def test_nothing_left_says_what_took_the_rows():
  rows = [row(1, text="a", n=1), row(2, text="", n=5)]
  refused(rows, "no row is left of 2 read", "keep rule: 1", "empty text: 1", "data.keep",
          keep="n > 4", task_fields=("text",))  # fmt: skip
  refused([], "no row is left of 0 read")


def test_limit_stops_reading():
  rows = iter([row(i, text="x", n=i) for i in range(1, 100)])
  result = cleaned(rows, keep="n % 2 == 0", limit=3, task_fields=("text",))
  assert next(rows).id == "r7"
  assert [r.id for r in result.rows] == ["r2", "r4", "r6"]
  assert (result.read, result.left_out) == (6, {"keep rule": 3})
  refused([], "data.limit is 0", error=UsageError, limit=0)


def test_fields_of_the_task():
  refused([row(7, txt="x")], "f.csv:7", "no field 'text'", "'txt'", "data.columns")
  refused([row(7, text=3, label="a")], "f.csv:7", "'text' is 3 (int)", "data.columns")
  refused([row(7, text="x", lable="a")], "f.csv:7", "no field 'label'", "'lable'")
  pairs = [
    row(1, text="x", text_pair=" ", label="a"),
    row(2, text="x", text_pair="y", label="a"),
  ]
  assert cleaned(pairs).left_out == {"empty text_pair": 1}
  refused([row(3, text="x", text_pair=1, label="a")], "f.csv:3", "'text_pair' is 1")
  chat = [row(1, messages=[{"role": "user"}], text="")]
  assert cleaned(chat, task_fields=("messages",)).rows == chat
  two = [row(1, prompt="x", completion="")]
  refused(two, "empty completion: 1", task_fields=("prompt", "completion"))


def test_labels_by_rule():
  rules = {"neg": "rating <= 0", "pos": "rating >= 0"}
  refused([row(4, text="x", rating="0")], "f.csv:4", "neg and pos hold", "rating='0'",
          "data.keep", labels=rules)  # fmt: skip
  rules = {"neg": "rating < 0", "pos": "rating > 0"}
  refused(
    [row(4, text="x", rating="0")], "f.csv:4", "no rule holds", "data.labels", labels=rules
  )
  refused([row(4, text="x", rating="x")], "f.csv:4", "data.labels['neg']", labels=rules)
  refused([], "data.labels['b']", "not a rule", error=UsageError, labels={"a": "x", "b": "x >"})


def test_labels_among_names():
  names = ("neg", "pos")
  assert labels_of(["pos", "neg"], labels=names) == ["pos", "neg"]
  assert labels_of([0, "1", 1.0], labels=list(names)) == ["neg", "pos", "pos"]
  for value in ("post", "Pos", True):
    refused([row(5, text="x", label=value)], "f.csv:5", "unknown label", "neg", "pos",
            "data.labels", labels=names)  # fmt: skip
  for value in (2, -1, "2"):
    refused([row(5, text="x", label=value)], "f.csv:5", f"label is {value}", "outside 0 … 1",
            labels=names)  # fmt: skip
  # Where a name is a number, numbers are names: 1 is "1" here, not the second label.
  assert labels_of([1, "2"], labels=("1", "2")) == ["1", "2"]
  refused([row(5, text="x", label=0)], "f.csv:5", "unknown label '0'", labels=("1", "2"))
  for value in (None, "", float("nan"), ["a"]):
    refused([row(5, text="x", label=value)], "f.csv:5", "the label is", labels=names)
  for wrong in (("a",), ("a", "a"), "ab", ()):
    refused([], "data.labels", "two or more different", error=UsageError, labels=wrong)


def test_true_and_false_are_names_of_their_own():
  """Which of two other names is true must not hang on their order."""
  assert labels_of([True, False]) == ["True", "False"]
  advice = 'data.labels={"neg": "not label", "pos": "label"}'
  rows = [row(5, text="x", label=True)]
  refused(rows, "f.csv:5", "unknown label 'True'", advice, labels=("neg", "pos"))
  rules = {"neg": "not label", "pos": "label"}
  assert labels_of([True, False], labels=rules) == ["pos", "neg"]


def test_labels_that_look_like_ratings():
  for value in ("1.0", 3.5, "-.5", "2.", "1.5e3"):
    refused([row(5, text="x", label=value)], "f.csv:5", "decimal point", "'number'")
    refused([row(5, text="x", label=value)], "decimal point", labels=("1", "2"))
  assert labels_of(["1.0", "1.5"], labels=("1.0", "1.5")) == ["1.0", "1.5"]
  assert labels_of(["v1.0", "1.0.1", "e", "a.b"]) == ["v1.0", "1.0.1", "e", "a.b"]


def test_many_labels():
  many = lambda values, **settings: labels_of(values, label_type="multi", **settings)
  assert many([["a", "b"], [], "a, b ,c", "", "a", 3]) == [
    ["a", "b"], [], ["a", "b", "c"], [], ["a"], ["3"]
  ]  # fmt: skip
  assert many(["a|b,c"], separator="|") == [["a", "b,c"]]
  assert many([{"a": 1, "b": 0, "c": True, "d": False}]) == [["a", "c"]]
  assert many([[0, "2"], ["pos"]], labels=("neg", "pos", "new")) == [["neg", "new"], ["pos"]]
  assert many([[], ["only"]], labels=("only",)) == [[], ["only"]]
  rules = {"long": "len(label) > 2", "x": "startswith(label, 'x')"}
  assert many(["xyz", "x", "a"], labels=rules) == [["long", "x"], ["x"], []]
  found = [row(i, text="x", label=v) for i, v in enumerate([["10"], [], "2,1"])]
  assert clean.label_names(cleaned(found, label_type="multi").rows) == ("1", "2", "10")


@pytest.mark.parametrize(
  ("value", "parts"),
  [
    (None, ("the label is None", "[] for none", "data.keep")),
    ([0, 1, 0], ("the label 0 stands twice in [0, 1, 0]", "{name: 0 or 1}")),
    ("a,b,a", ("'a' stands twice",)),
    ("a,,b", ("the label is ''",)),
    ([["a"]], ("the label is ['a']", "expected a name")),
    ({"a": 2}, ("expected a list of names",)),
    ({"a": None}, ("expected a list of names",)),
    ("1.5", ("decimal point",)),
    (float("nan"), ("the label is nan",)),
  ],
)
def test_many_labels_that_are_wrong(value, parts):
  refused([row(5, text="x", label=value)], "f.csv:5", *parts, label_type="multi")


def test_many_labels_among_names():
  refused([row(5, text="x", label=["a", "d"])], "f.csv:5", "unknown label 'd'",
          label_type="multi", labels=("a", "b"))  # fmt: skip
  refused([], "one or more different", error=UsageError, label_type="multi", labels=())


def test_a_text_may_be_missing_but_not_empty():
  rows = [
    row(1, messages=[], label="a"),
    row(2, text=" ", label="a"),
    row(3, text=4, label="a"),
  ]
  labelled = {"task_fields": ("label",)}
  assert [r.id for r in cleaned(rows[:2], **labelled).rows] == ["r1"]
  assert cleaned(rows[:2], **labelled).left_out == {"empty text": 1}
  refused(rows, "f.csv:3", "'text' is 4", **labelled)


def test_labels_from_the_rows():
  found = cleaned([row(i, text="x", label=v) for i, v in enumerate(["b", "a", "b", 3])]).rows
  assert clean.label_names(found) == ("3", "a", "b")
  found = cleaned([row(i, text="x", label=v) for i, v in enumerate([10, "2", 1.0])]).rows
  assert clean.label_names(found) == ("1", "2", "10")  # by value: not "1", "10", "2"


def test_number_labels():
  assert labels_of(["2.5", -1, "1e-3"], label_type="number") == [2.5, -1.0, 0.001]
  for value, word in [("x", "expected a number"), (None, "expected a number"),
                      (True, "expected a number"), ("nan", "finite"),
                      (math.inf, "finite")]:  # fmt: skip
    refused([row(2, text="x", label=value)], "f.csv:2", word, label_type="number")
  refused([], "data.labels", "data.label_type", error=UsageError, label_type="number",
          labels=("a", "b"))  # fmt: skip


PAIR = ("source", "target")


def test_sources_and_targets():
  rows = [
    row(0, source="a", target="b"),
    row(1, source=["a b.", "c."], targets=["x", "y"]),
    row(2, source=" ", target="b"),
    row(3, source=["", " "], target="b"),
    row(4, source="a", target=""),
    row(5, source="a", targets=["x", " "]),
    row(6, source="a", target="b", targets=["c", "d"]),
  ]
  found = cleaned(rows, task_fields=PAIR)
  assert [one.id for one in found.rows] == ["r0", "r1", "r6"]
  assert found.left_out == {"empty source": 2, "empty target": 1, "empty targets": 1}
  assert clean.joined(found.rows[1].fields["source"]) == "a b. c."
  for fields, part in (
    ({"source": "a"}, "no field 'target'"),
    ({"source": ["a", 3], "target": "b"}, "'source' is ['a', 3]"),
    ({"source": "a", "target": ["b"]}, "'target' is ['b']"),
    ({"source": "a", "targets": "b"}, "'targets' is 'b', expected a list"),
    ({"source": "a", "targets": ["b", None]}, "'targets'"),
  ):
    refused([row(2, **fields)], "f.csv:2", part, task_fields=PAIR)
