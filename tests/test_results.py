"""What an evaluation leaves for people: predictions, the worst errors, slices."""

import json

import numpy as np
import pytest

from jaxsft import report, results, tasks
from jaxsft.data.read import Row
from jaxsft.errors import UsageError
from jaxsft.tasks import classify
from tests.found_rows import CONTEXT, found


def test_the_files_say_what_was_found(tmp_path):
  rows = found([2.0, -1.0, -3.0], [1, 1, 0], [{"by": "a"}, {"by": "b"}, {"by": "a"}])
  metrics = {"accuracy": 2 / 3}
  said = results.write(tmp_path / "out", rows, classify, CONTEXT, metrics, ("by", "length"))
  lines = [json.loads(x) for x in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
  assert [x["id"] for x in lines] == ["r0", "r1", "r2"]
  assert [(x["gold"], x["label"]) for x in lines] == [
    ("pos", "pos"),
    ("pos", "neg"),
    ("neg", "neg"),
  ]
  assert lines[1]["text"] == "t1" and lines[1]["by"] == "b"
  assert lines[1]["loss"] == pytest.approx(np.log(1 + np.e))
  worst = [json.loads(x) for x in (tmp_path / "out/errors.jsonl").read_text().splitlines()]
  assert [x["id"] for x in worst] == ["r1", "r0", "r2"]
  assert json.loads((tmp_path / "out/metrics.json").read_text()) == json.loads(json.dumps(said))
  assert said["accuracy"] == 2 / 3 and said["intervals"]["accuracy"]["n"] == 3
  by = {part["slice"]: part for part in said["slices"]["by"]}
  assert (by["a"]["value"], by["a"]["n"]) == (1.0, 2) and (by["b"]["value"], by["b"]["n"]) == (
    0.0,
    1,
  )
  assert sum(part["n"] for part in said["slices"]["length"]) == 3
  shown = dict(report.parts(said))
  assert shown["accuracy by by"] == [("a", ("1", "1 to 1", "2")), ("b", ("0", "", "1"))]


def test_gold_answers_stand_beside_generated_ones():
  """A conversation holds its answer itself; it is shown where there is one to compare."""
  turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
  outputs = [{"nll": 2.0, "tokens": 1.0, "right": 0.0}]
  rows = [Row(str(i), "rows:1", {"messages": turns}) for i in range(2)]
  pair = [tasks.Found(rows[0], [], outputs, ("b",)), tasks.Found(rows[1], [], outputs)]
  lines = results.lines(pair, tasks.TASKS["chat"], CONTEXT)
  assert [(x.get("gold"), x.get("text")) for x in lines] == [("a", "b"), (None, None)]
  source = tasks.Found(Row("s", "rows:1", {"source": "q", "target": "a"}), [], outputs)
  (line,) = results.lines([source], tasks.TASKS["seq2seq"], CONTEXT)
  assert line["gold"] == "a"


def test_rows_are_written_as_the_user_wrote_them(tmp_path):
  """Offsets are of the text that stands there; a number that is none is null."""
  text = "see https://me:pass@host/?token=a1B2a1B2a1B2 and hf_a1B2a1B2a1B2a1B2a1B2a1B2"
  rows = found([1.0], [1], [{"text": text, "n": float("nan")}])
  results.write(tmp_path, rows, classify, CONTEXT, {})
  for name in ("predictions.jsonl", "errors.jsonl"):
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    (line,) = (tmp_path / name).read_text().splitlines()
    said = json.loads(line, parse_constant=refuse)
    assert said["text"] == text and said["n"] is None


def test_slices_of_numbers_are_quarters_and_rare_values_are_together():
  rows = found(
    [1.0] * 100, [1] * 100, [{"n": i, "name": f"n{i}", "few": i % 3} for i in range(100)]
  )
  quarters = results.groups(rows, "n")
  assert len(set(quarters)) == 4 and all(quarters.count(q) == 25 for q in set(quarters))
  assert quarters[0] == "0 to 24"
  names = results.groups(rows, "name")
  assert len(set(names)) == 21 and names.count("(other)") == 80
  assert sorted(set(results.groups(rows, "few"))) == ["0", "1", "2"]
  rows[3].row.fields.pop("few")
  assert results.groups(rows, "few")[3] == "(none)"
  with pytest.raises(UsageError, match=r"evaluate\.slices.*'nmae'.*name"):
    results.groups(rows, "nmae")


def test_rows_without_a_number_are_apart_from_its_quarters():
  """Large numbers that differ in their last digits are not one slice."""
  numbers = [1_700_000_000 + i for i in range(40)]
  gaps = [{"n": None}, {"n": float("nan")}, {}]
  rows = found([1.0] * 43, [1] * 43, [*({"n": n} for n in numbers), *gaps])
  said = results.groups(rows, "n")
  assert said[40:] == ["(none)"] * 3
  assert said[0] == "1700000000 to 1700000009" and said[39] == "1700000030 to 1700000039"
  assert [said.count(name) for name in dict.fromkeys(said)] == [10, 10, 10, 10, 3]
  parts = results.summary(rows, classify, CONTEXT, {}, ("n",))["slices"]["n"]
  assert {part["slice"]: part["n"] for part in parts}["(none)"] == 3
  lists = found([1.0] * 2, [1] * 2, [{"n": [1]}, {"n": [2]}])
  assert results.groups(lists, "n") == ["[1]", "[2]"]


def test_slices_by_length_are_of_the_source_where_there_is_one():
  make = lambda n: {"inputs": np.zeros(3, np.int32), "source": np.zeros(n, np.int32)}
  rows = [tasks.Found(Row(str(n), "", {}), [make(n)], []) for n in (10, 20, 30, 40)]
  assert results.groups(rows, "length") == [f"{n} to {n} tokens" for n in (10, 20, 30, 40)]
