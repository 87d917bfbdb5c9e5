import json

import numpy as np
import pytest

from jaxsft.data import audit, order
from jaxsft.errors import JaxsftError

LENGTHS = np.array([4, 9, 5, 12])


def examples(**changes):
  values = {
    "ids": ["a", "b", "c", "d"],
    "lengths": LENGTHS,
    "supervised": np.array([2, 3, 1, 4]),
  }
  return audit.Examples(**(values | changes))


def held(**changes):
  return examples(
    **({"ids": ["v", "w"], "lengths": LENGTHS[:2], "supervised": np.array([1, 1])} | changes)
  )


def plan(**changes):
  made = order.plan_training(
    LENGTHS, seed=0, batch_size=3, batch_unit="examples", packing="pack",
    max_length=16, epochs=2,
  )  # fmt: skip
  return made.summary() | changes


def report(train=None, held_out=None, **changes):
  left_out = {"abs(rating) >= 0.5": 2, "no text": 1}
  source = audit.Source("data.path", "a*", "a*", "jsonl (2 files)", 9, {"alpaca": 9})
  rows = audit.Rows(read=9, kept=6, left_out=left_out, sources=(source,))
  return audit.audit(rows, train or examples(), held_out, plan(), **changes)


def test_the_report_in_full():
  leaves = [
    audit.Leaf(
      "layers/attn/q/kernel", (5, 12, 8), "float32", 288, [0, 3, 4], True, [0.5, 0.9, 1.0], 7
    ),
    audit.Leaf("norm/scale", (8,), "float32", 8, None, False, 1.0),
    audit.Leaf("embed/tokens/embedding", (64, 8), "float32", 0, None, True, 1.0),
  ]
  labels = {"neg": 3, "pos": 1}
  found = report(
    examples(labels=labels, dropped={"too long": 0}, truncated={"cut to 12": 1}),
    held(forms={"messages": 1, "alpaca": 1200}),
    rates={"start": 0.0, "peak": 2e-5, "end": 0},
    leaves=leaves,
    samples=[audit.mark("user: hi\nbot: yes", [(14, 17)])],
  )
  text = "\n".join(found.lines())
  for part in (
    "9 read, 6 kept",
    "data.path read as: jsonl (2 files), 9 rows, alpaca",
    "2 left out: abs(rating) >= 0.5",
    "1 left out: no text",
    "4 examples, 30 tokens (shortest 4, median 9, 90% 12, 99% 12, longest 12)",
    "10 supervised tokens (33.3%)",
    "neg 3 (75.0%), pos 1 (25.0%)",
    "1 truncated: cut to 12",
    "held out   2 examples, 13 tokens",
    "written as: 1,200 alpaca, 1 messages",
    "4 updates over 2 epochs, 60 tokens",
    "of the places filled",
    "one compilation each",
    "start 0, peak 2e-05, end 0",
    "296 of 1,000 train",
    "5 x 12 x 8       trains in layers 0, 3-4, decays, 0.5 to 1 x lr, from update 7\n",
    "norm/scale            8                trains\n",
    "frozen: 1 more, 512 numbers (parameters.json)\n",
    "bot: ⟦yes⟧",
  ):
    assert part in text, part
  assert "dropped" not in text and "duplicates" not in text
  assert all("\n" not in line for line in found.lines()[:12])


def test_the_report_is_json():
  leaves = [audit.Leaf("a", (), "float32", 1, None, False, 1.0)]
  data = report(held_out=held(labels={"x": 1}), leaves=leaves, warnings=["no x is trained on"])
  table = json.loads(json.dumps(data.parameters()))
  assert (table["trained"], table["total"], table["leaves"][0]["path"]) == (1, 1, "a")
  data = json.loads(json.dumps(data.as_dict(), allow_nan=False))
  assert data["sets"]["train"]["supervised"] == 10 and "leaves" not in data
  assert data["sets"]["train"]["lengths"]["longest"] == 12
  assert data["rows"]["left_out"] == {"abs(rating) >= 0.5": 2, "no text": 1}
  assert data["plan"]["updates"] == 4
  assert data["warnings"] == ["no x is trained on"]


def test_notes_of_the_plan_and_warnings_are_lines():
  found = audit.audit(
    audit.Rows(6, 6), examples(), None, plan(notes=["one batch"]), warnings=["beware"]
  )
  assert found.lines()[-2:] == ["note       one batch", "warning    beware"]


def test_labels_are_not_a_share_of_tokens():
  ones = np.ones(4, int)
  text = "\n".join(report(examples(supervised=ones, unit="labels")).lines())
  assert "4 supervised labels\n" in text


def test_what_is_odd_is_neither_cut_nor_dropped():
  found = report(examples(noted={"with words of no token": 2, "never": 0}))
  assert "           2 with words of no token" in found.lines()
  assert "never" not in "\n".join(found.lines())
  assert found.as_dict()["sets"]["train"]["noted"]["with words of no token"] == 2


def test_duplicates_across_the_split_are_counted():
  keys = lambda *texts: [audit.key(text) for text in texts]
  train = examples(keys=keys("One", "two", "three", "TWO "))
  found = report(train, held(keys=keys("one ", "four")))
  assert found.duplicates == {"within train": 1, "held out and also trained on": 1}
  assert "1 held out and also trained on" in "\n".join(found.lines())
  assert report(examples(keys=keys(*"pqrs")), held(keys=keys(*"tu"))).duplicates == {}


@pytest.mark.parametrize(
  "spans, expected",
  [
    ([], "abcdef"),
    ([(0, 6)], "⟦abcdef⟧"),
    ([(1, 2), (4, 6)], "a⟦b⟧cd⟦ef⟧"),
    ([(4, 5), (1, 3), (3, 4)], "a⟦bcde⟧f"),
    ([(1, 5), (2, 3)], "a⟦bcde⟧f"),
  ],
)
def test_mark(spans, expected):
  assert audit.mark("abcdef", spans) == expected


@pytest.mark.parametrize("span", [(-1, 2), (4, 7), (3, 3)])
def test_mark_refuses_spans_outside_the_text(span):
  with pytest.raises(JaxsftError, match="not in a text of 6"):
    audit.mark("abcdef", [span])


def test_sources_and_targets():
  lengths = np.array([[4, 2], [9, 3], [5, 1], [12, 4]])
  made = order.plan_training(
    lengths, seed=0, batch_size=3, batch_unit="examples", packing="pack",
    max_length=(16, 8), epochs=2,
  )  # fmt: skip
  rows = audit.Rows(read=4, kept=4)
  found = audit.audit(rows, examples(lengths=lengths), held(), made.summary())
  text = "\n".join(found.lines())
  for part in (
    "4 examples, 40 tokens (sources: shortest 4, median 9, 90% 12, 99% 12, longest 12; "
    "targets: shortest 1, median 3, 90% 4, 99% 4, longest 4)",
    "10 supervised tokens (25.0%)",
    "held out   2 examples, 13 tokens (shortest 4",
    " x 24 + 8 (",
    "% of the places filled (source ",
  ):
    assert part in text, part
  filled = made.summary()["filled"]
  assert f"source {filled['source']:.1%}, target {filled['target']:.1%}" in text
  assert json.loads(json.dumps(found.as_dict()))["sets"]["train"]["source_lengths"]["longest"]
