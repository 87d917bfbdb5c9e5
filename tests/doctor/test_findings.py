"""Each finding on a mini data set that shows it, and on one that does not."""

import re

import numpy as np
import pytest

from jaxsft import preflight
from jaxsft.data import audit
from jaxsft.data.read import Row
from jaxsft.doctor import codes, findings, of_texts, parts
from jaxsft.errors import JaxsftError
from tests import tiny
from tests.tiny_rows import BAD, FILLERS, GOOD

ANY = ("few-held-out", "few-updates", "rare-labels", "no-held-out")  # of sets this small
REPEATED = ("too-many-dropped", "label-conflicts", "little-supervised", "much-padding")
ALSO = {code: {"duplicates"} for code in REPEATED} | {"rare-labels": {"imbalance"}}
ALSO["cleaning"] = {"duplicates", "label-conflicts"}


def text(i):
  """Words of the tokenizer, others for each i."""
  return f"{FILLERS[i % 12]} {FILLERS[i // 12 % 12]} {(GOOD + BAD)[i // 144 % 10]}"


def sentences(count=100, start=0):
  return [{"text": text(start + i), "label": ("neg", "pos")[i % 2]} for i in range(count)]


def chats(count=40, system=False):
  before = [{"role": "system", "content": "be kind"}] * system
  told = lambda i: [
    {"role": "user", "content": f"say {i}"},
    {"role": "assistant", "content": f"it is {i}"},
  ]
  return [{"messages": before + told(i)} for i in range(count)]


def tagged(count=60):
  return [{"tokens": [*text(i).split()], "tags": ["O", "O", "B-X"]} for i in range(count)]


def asked(count=60):
  rows = [{"question": "the end was", "context": text(i)} for i in range(count)]
  return [
    row | {"answers": [answer(row["context"].split()[2], row["context"])]} for row in rows
  ]


def answer(word, context):
  return {"text": word, "start": context.index(word)}


def numbers(values):
  return [{"text": text(i), "label": float(value)} for i, value in enumerate(values)]


def changed(rows, **at):
  """The rows with other fields in some: r3={...}."""
  rows = [dict(row) for row in rows]
  for name, fields in at.items():
    rows[int(name[1:])] |= fields
  return rows


LONG = {"text": " ".join(["film"] * 30)}
HELD = sentences(60, start=500)
CASES = {
  "overlapping-ids": (
    ("classify", sentences(), "SAME", {"data__id": "name"}), "1 ids are both .*: r0;",
  ),
  "too-many-dropped": (
    ("classify", changed(sentences(), r3=LONG, r5=LONG), HELD,
     {"data__max_length": 12, "data__too_long": "drop"}),
    r"2 of 100 train rows \(2.0%\) would be dropped: 2 dropped: too long",
  ),
  "some-dropped": (
    ("classify", changed(sentences(200), r3=LONG), HELD,
     {"data__max_length": 12, "data__too_long": "drop"}),
    "1 of 200 train rows are left out: 1 dropped: too long",
  ),
  "truncated": (
    ("classify", changed(sentences(), r3=LONG), HELD,
     {"data__max_length": 12, "data__too_long": "truncate"}),
    "1 of 100 train rows are truncated: r3",
  ),
  "odd-rows": (
    ("answer", changed(asked(), r7={
      "context": "the " * 30 + "lovely " * 28,
      "answers": [{"text": "lovely " * 27 + "lovely", "start": 120}],
    }), None, {}),
    "1 of .* train rows are with an answer longer than what windows share.*: r7",
  ),
  "many-left-out": (
    ("classify", changed(sentences(), **{f"r{i}": {"text": ""} for i in range(9)}), HELD, {}),
    r"9 of 160 rows read",
  ),
  "leakage": (
    ("classify", sentences(), changed(HELD, r7={"text": "The  THE good"}), {}),
    "1 of 60 held out rows say what a training row says: h7 as r0",
  ),
  "duplicates": (
    ("classify", changed(sentences(), r9={"text": "THE the  good", "label": "neg"}), HELD, {}),
    "1 of 100 training rows say what another says: r9 as r0",
  ),
  "label-conflicts": (
    ("classify", changed(sentences(), r9={"text": "the the good"}), HELD, {}),
    "1 texts .*: r9 says pos, r0 says neg",
  ),
  "cleaning": (
    ("classify", changed(sentences(), r9={"text": "the the good"}), HELD,
     {"clean__duplicates": "drop"}),
    "r9.*r0|r0.*r9",
  ),
  "unseen-labels": (
    ("classify", sentences(), changed(HELD, r1={"label": "odd"}),
     {"data__labels": ("neg", "pos", "odd")}),
    "training never shows: odd",
  ),
  "unused-labels": (
    ("classify", sentences(), HELD, {"data__labels": ("neg", "pos", "odd")}),
    "1 of 3 labels occur in no row: odd",
  ),
  "rare-labels": (
    ("classify", changed(sentences(), r1={"label": "odd"}), HELD, {}),
    "1 labels have fewer than 10 training rows: odd 1",
  ),
  "imbalance": (
    ("classify", [row | {"label": "pos" if i % 25 else "neg"}
                  for i, row in enumerate(sentences(200))], HELD, {}),
    "pos has 192 training rows, neg 8: always answering pos is right in 96%",
  ),
  "one-label-held-out": (
    ("classify", sentences(), [row | {"label": "pos"} for row in HELD], {}),
    "all held-out rows have the label pos",
  ),
  "constant-number": (
    ("number", numbers([2] * 80), None, {}), "every training row has the label 2",
  ),
  "number-outliers": (
    ("number", numbers([*np.arange(80) % 7, 900]), None, {"data__split": 0.0}),
    "1 labels are more than 6 .*: r80 900",
  ),
  "no-held-out": (("classify", sentences(), None, {"data__split": 0.0}), "no row is held out"),
  "few-held-out": (
    ("classify", sentences(), HELD[:20], {}), "20 rows are held out: .* about ±22%",
  ),
  "little-supervised": (
    ("chat", [{"messages": [{"role": "user", "content": "a b c d e " * 40},
                            {"role": "assistant", "content": "f"}]}] * 9, None,
     {"data__split": 0.0}),
    r"are learnt from",
  ),
  "unknown-tokens": (
    ("classify", changed(sentences(), r4={"text": "zzz " * 9}), HELD, {}),
    r"9 of \d+ training tokens .* are '\[UNK\]'",
  ),
  "unwritten": (
    ("chat", [row | ({"tools": [{"name": "f"}]} if i == 3 else {})
              for i, row in enumerate(chats(30))], None,
     {"data__split": 0.0, "data__unwritten": "leave_out"}),
    "1 of 30 train rows are with tools that the chat template does not write: r3; set another",
  ),
  "mixed-system": (
    ("chat", chats(30) + chats(3, system=True), None, {"data__split": 0.0}),
    "3 training conversations have a system message, 30 do not: r30, r31, r32",
  ),
  "max-length-far-above": (
    ("classify", sentences(), HELD, {"data__max_length": 20}),
    "data.max_length is 20, the longest training example has 5 tokens",
  ),
  "batch-larger-than-data": (
    ("classify", sentences(), HELD, {"batch_size": 101}), r"batch_size 101 is larger .*100",
  ),
  "few-updates": (("classify", sentences(), HELD, {"steps": 9}), "the run has 9 updates"),
  "warmup-covers-run": (
    ("classify", sentences(), HELD, {"steps": 20, "optim__warmup": 20.0}),
    "which is 20 updates of 20",
  ),
  "patience-without-effect": (
    ("classify", sentences(), HELD,
     {"steps": 20, "evaluate__every": 10, "evaluate__patience": 2}),
    r"patience is 2, but the run has 2 evaluations",
  ),
  "much-padding": (
    ("classify", changed(sentences(), **{f"r{i}": LONG for i in range(0, 96, 12)}), HELD,
     {"data__packing": "none"}),
    r"\d+% of the places",
  ),
}  # fmt: skip


def by_code(found):
  return {one.code: one for one in found}


@pytest.mark.parametrize("code", CASES)
def test_a_finding_where_it_is(prepared, code):
  (kind, rows, held_out, settings), pattern = CASES[code]
  if held_out == "SAME":
    held_out = [row | {"name": f"h{i}"} for i, row in enumerate(HELD)]
    held_out[4]["name"] = "r0"
  found = by_code(findings.findings(*prepared(kind, rows, held_out, **settings)))
  one = found[code]
  assert re.search(pattern, one.text), one.text
  assert one.grade == codes.CODES[code].grade
  assert set(found) - {code, *ANY} == ALSO.get(code, set())


def test_sound_rows_have_no_finding(prepared):
  data, config = prepared("classify", sentences(), HELD, steps=20)
  assert findings.findings(data, config) == []


def test_every_code_is_found_by_a_test():
  elsewhere = {
    "unreadable", "nothing-supervised", "repeated-ids", "near-leakage", "near-duplicates",
    "pad-is-eos", "label-suspects", "ids-in-a-set",
  }  # fmt: skip
  assert set(CASES) | elsewhere == set(codes.CODES)
  assert {code.grade for code in codes.CODES.values()} == set(codes.GRADES)


def test_the_gravest_comes_first_and_is_raised(prepared):
  held_out = [row | {"name": f"r{i}"} for i, row in enumerate(HELD)]
  found = findings.findings(*prepared("classify", sentences(), held_out, steps=2))
  assert [one.grade for one in found[:2]] == ["refuses", "warns"]
  with pytest.raises(JaxsftError, match="60 ids are both trained on and held out"):
    findings.refuse(found)
  findings.refuse(found[1:])


def test_no_more_than_a_few_rows_are_named(prepared):
  rows = [row | {"text": "the film"} for row in sentences(80)]
  found = by_code(findings.findings(*prepared("classify", rows, HELD)))
  assert found["duplicates"].rows == tuple(f"r{i}" for i in range(1, 21))
  assert "79 of 80" in found["duplicates"].text and "and 76 more" in found["duplicates"].text


def test_a_token_that_pads_and_ends_is_fine(prepared, monkeypatch):
  data, config = prepared("chat", chats(), None, data__split=0.0)
  assert "pad-is-eos" not in by_code(findings.findings(data, config))
  data.context.tokenizer.pad_token = data.context.tokenizer.eos_token
  assert by_code(findings.findings(data, config))["pad-is-eos"].grade == "notes"


@pytest.mark.parametrize("kind, rows, other", [
  ("multi", [{"text": text(i), "label": ["a", "b"]} for i in range(40)], {"label": ["b", "a"]}),
  ("tag", tagged(), {"tags": ["O", "B-X", "O"]}),
  ("answer", asked(), {"answers": [{"text": "the", "start": 0}]}),
])  # fmt: skip
def test_answers_that_contradict_each_other(prepared, kind, rows, other):
  rows = changed(rows, r1=rows[0] | other)
  found = by_code(findings.findings(*prepared(kind, rows, None, data__split=0.0)))
  assert ("label-conflicts" in found) == (kind != "multi")  # the order of labels is none
  assert "duplicates" in found
  if kind == "tag":
    assert "r1 says B-X of 'the', r0 says O;" in found["label-conflicts"].text
    assert found["label-conflicts"].rows == ("r1", "r0")


def test_rows_that_are_nearly_the_same(prepared):
  rows = changed(sentences(), r9={"text": "the, the: good!", "label": "neg"})
  data, _ = prepared("classify", rows, changed(HELD, r7={"text": "the - a good"}))
  found = by_code(of_texts.near(data, parts.all_described(data)))
  assert "r9 as r0" in found["near-duplicates"].text
  assert "h7 as r12" in found["near-leakage"].text
  data, _ = prepared("classify", sentences(), HELD)
  assert list(of_texts.near(data, parts.all_described(data))) == []


def test_exact_ones_are_not_near_ones(prepared):
  rows = changed(sentences(), r9={"text": "the the good", "label": "neg"})
  data, _ = prepared("classify", rows, changed(HELD, r7={"text": "THE a good"}))
  assert list(of_texts.near(data, parts.all_described(data))) == []


# --- of plain values -------------------------------------------------------------------


def examples(**changes):
  values = {"ids": list("abcd"), "lengths": np.array([4, 9, 5, 12])}
  return audit.Examples(**(values | {"supervised": np.array([2, 3, 1, 4])} | changes))


def test_many_examples_without_supervision_are_named_in_part():
  ids = [f"r{i}" for i in range(50)]
  many = examples(ids=ids, lengths=np.ones(50, int), supervised=np.zeros(50, int))
  (one,) = findings.unsupervised("train", many)
  assert (
    "50 of 50 examples of train rows have nothing supervised" in one.text
    and "r0, r1, r2 and 47 more; expected" in one.text
  )
  assert one.rows == tuple(ids[:20])


def test_one_in_a_hundred_may_be_dropped():
  size = {"ids": [f"r{i}" for i in range(198)], "supervised": np.ones(198, int)}
  dropped = lambda examples, noted=(), most=0.01: list(
    findings.dropped("train", examples, dict(noted), most)
  )
  (one,) = dropped(examples(**size, dropped={"too long": 2}))
  assert one.code == "some-dropped"  # 1 % exactly
  more = examples(**size, dropped={"too long": 2, "no answer": 1})
  noted = {"too long": ["x", "y"], "no answer": ["z"]}
  (one,) = dropped(more, noted)
  assert one.code == "too-many-dropped" and one.rows == ("x", "y", "z")
  assert "3 of 201" in one.text and "2 too long, 1 no answer" in one.text
  assert "at most 1.0% may be (data.max_dropped)" in one.text
  assert dropped(examples()) == []
  (one,) = dropped(more, noted, 0.02)  # unless the config says otherwise
  assert one.code == "some-dropped"
  (one,) = dropped(examples(**size, dropped={"too long": 1}), most=0.0)
  assert one.code == "too-many-dropped" and "at most 0.0%" in one.text


def test_the_share_that_may_be_dropped_is_the_config_s(prepared):
  rows = changed(sentences(), r3=LONG, r5=LONG)
  settings = {"data__max_length": 12, "data__too_long": "drop", "data__max_dropped": 0.02}
  found = by_code(findings.findings(*prepared("classify", rows, HELD, **settings)))
  assert "some-dropped" in found and "too-many-dropped" not in found


def test_ids_on_both_sides():
  assert list(findings.overlap(examples(), examples(ids=list("vwxy")))) == []
  (one,) = findings.overlap(examples(), examples(ids=list("vcwa")))
  assert one.rows == ("a", "c") and "2 ids are both" in one.text


def test_repeated_ids():
  (one,) = findings.repeated_ids(examples(ids=list("aaab")))
  assert "2 training examples share" in one.text and one.rows == ("a",)
  assert list(findings.repeated_ids(examples())) == []


def test_training_says_what_warns_and_refuses_what_must_not_run(prepared):
  held_out = changed(HELD, r7={"text": "The  THE good"})
  data, config = prepared("classify", sentences(), held_out, batch_size=101, steps=20)
  report = preflight.report(data, config, {}, frozenset(), tiny.RULE)
  found = by_code(findings.findings(data, config))
  assert report.warnings == (found["leakage"].text,)
  assert f"warning    {found['leakage'].text}" in report.lines()
  assert sum("batch_size 101 is larger" in line for line in report.lines()) == 1
  same = [row | {"name": f"r{i}"} for i, row in enumerate(HELD)]
  data, config = prepared("classify", sentences(), same)
  with pytest.raises(JaxsftError, match="60 ids are both trained on and held out"):
    preflight.report(data, config, {}, frozenset(), tiny.RULE)


def test_rows_are_left_out_of_rows_however_many_examples_they_make():
  """10 of 100 rows are dropped, the others make 100 examples each."""
  ids = [f"r{i}#{k}" for i in range(90) for k in range(100)]
  many = audit.Examples(
    ids=ids, lengths=np.ones(len(ids), int), supervised=np.ones(len(ids), int), rows=90,
    dropped={"dropped: too long": 10},
  )  # fmt: skip
  (one,) = findings.dropped("train", many, {}, 0.05)
  assert one.code == "too-many-dropped" and "10 of 100 train rows (10.0%)" in one.text


def test_what_a_setting_asks_for_is_no_finding():
  asked = audit.Examples(
    ids=["a"], lengths=np.ones(1, int), supervised=np.ones(1, int),
    noted={
      "with control tokens escaped": 1, "words without a token": 1,
      "divided by turns, without 12 parts that have nothing to learn": 1,
      "divided by turns, words without a token": 1,
    },
  )  # fmt: skip
  found = [one.text.partition(" are ")[2] for one in findings.cut("train", asked, {})]
  assert [text.partition(":")[0] for text in found] == [
    "words without a token",
    "divided by turns, words without a token",
  ]


def test_a_line_break_makes_no_other_text():
  row = lambda **fields: Row("r", "rows:1", fields)
  same = [
    row(text="Hello there\nYou "),
    row(text="hello  there you"),
    row(text="hello there, you"),
  ]
  plain = [audit.key(parts.content(one)) for one in same]
  assert plain[0] == plain[1] != plain[2]
  pair = [row(text="a", text_pair="b c"), row(text="a b", text_pair="c")]
  assert len({audit.key(parts.content(one)) for one in pair}) == 2
