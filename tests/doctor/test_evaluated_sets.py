"""Rows of evaluate.sets are looked at as held-out rows are."""

import json

import pytest

from jaxsft import preflight
from jaxsft.doctor import examination, findings
from jaxsft.errors import JaxsftError
from tests import tiny
from tests.doctor.test_findings import HELD, LONG, by_code, sentences


def test_evaluate_sets_are_held_to_the_same_as_held_out_rows(prepared, tmp_path):
  """By the report before a run, which refuses, and by the doctor; both count what is lost."""
  lines = [{"name": f"s{i}", **row} for i, row in enumerate(sentences(50, start=900))]
  more = tmp_path / "more.jsonl"

  def examined(**settings):
    more.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings |= {"evaluate__sets": {"more": str(more)}, "data__max_length": 12}
    data, config = prepared("classify", sentences(), HELD, **settings)
    result = examination.examine(config)
    refuses = [one["text"] for one in result["findings"] if one["grade"] == "refuses"]
    report = lambda: preflight.report(data, config, {}, frozenset(), tiny.RULE)
    if refuses:
      with pytest.raises(JaxsftError) as error:
        report()
      assert [str(error.value)] == refuses
      return refuses[0], result
    made = report()
    assert made.as_dict()["sets"]["more"].items() <= result["sets"]["more"].items()
    assert any(line.startswith("more       ") for line in made.lines())
    return made, result

  lines[4] |= LONG
  said, result = examined(data__too_long="drop")
  rows = "rows of config.evaluate.sets['more']"
  assert said.startswith(f"1 of 50 {rows} (2.0%) would be dropped: 1 dropped: too long; at")
  assert result["sets"]["more"]["dropped"] == {"dropped: too long": 1}
  made, result = examined(data__too_long="drop", data__max_dropped=0.02)
  assert made.sets["more"]["dropped"] == {"dropped: too long": 1}
  assert any(f"1 of 50 {rows} are left out" in one["text"] for one in result["findings"])
  made, _ = examined(data__too_long="truncate")
  assert any(text.startswith(f"1 of 50 {rows} are truncated: s4") for text in made.warnings)


def test_rows_of_evaluate_sets_that_are_left_out_are_counted(prepared, tmp_path):
  lines = [{"name": f"s{i}", **row} for i, row in enumerate(sentences(50, start=900))]
  for line in lines[:3]:
    line["text"] = " "
  more = tmp_path / "more.jsonl"
  more.write_text("".join(json.dumps(line) + "\n" for line in lines))
  settings = {"evaluate__sets": {"more": str(more)}}
  data, config = prepared("classify", sentences(), HELD, **settings)
  report = preflight.report(data, config, {}, frozenset(), tiny.RULE)
  assert "           3 left out: evaluate.sets['more']: empty text" in report.lines()
  assert report.lines()[0] == "rows       160 read, 160 kept"
  said = by_code(findings.findings(data, config))["many-left-out"].text
  assert said.startswith(
    "3 of 50 rows read of evaluate.sets['more'] (6.0%) are left out for an"
  )


def test_rows_of_evaluate_sets_are_compared_with_those_of_training(prepared, tmp_path):
  """By their ids, where these are the rows' own, and by their texts."""
  lines = [{"name": f"s{i}", **row} for i, row in enumerate(sentences(9, start=900))]
  lines[2]["name"], lines[5]["text"] = "r7", "The  THE good"  # that row, and what r0 says
  more = tmp_path / "more.jsonl"
  more.write_text("".join(json.dumps(line) + "\n" for line in lines))
  settings = {"evaluate__sets": {"more": str(more)}}
  found = by_code(findings.findings(*prepared("classify", sentences(), HELD, **settings)))
  said = found["ids-in-a-set"]
  assert said.rows == ("r7",) and said.grade == "warns"
  assert said.text.startswith("1 ids of evaluate.sets['more'] are trained on: r7; ")
  assert found["leakage"].rows == ("s5",) and found["leakage"].grade == "warns"
  said = "1 of 9 rows of config.evaluate.sets['more'] say what a training row says: s5 as r0"
  assert said in found["leakage"].text
  # Ids that only say where a row stands are no one's own.
  same = tmp_path / "other" / "rows.jsonl"
  same.parent.mkdir()
  same.write_text(more.read_text())
  settings = {"evaluate__sets": {"more": str(same)}, "data__id": None}
  found = by_code(findings.findings(*prepared("classify", sentences(), HELD, **settings)))
  assert "ids-in-a-set" not in found and "leakage" in found
