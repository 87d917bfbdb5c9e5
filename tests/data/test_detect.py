"""A JSON file is read by what it holds, under whichever of the two names."""

import json

import pytest

from jaxsft import sources, tasks
from jaxsft.config import Data
from jaxsft.data import read
from jaxsft.errors import JaxsftError

ROWS = [{"text": "a", "label": "x"}, {"text": "[b\n]", "label": "y"}]
LIST, LINES = json.dumps(ROWS), "\n".join(map(json.dumps, ROWS))
SPREAD = "\n" + json.dumps(ROWS, indent=1) + "\n"
SQUAD = {"data": [{"paragraphs": [{"context": "a b", "qas": []}]}]}
SQUAD["data"][0]["paragraphs"][0]["qas"] = [{"id": "q", "question": "?", "answers": []}]


def rows_of(path, format="auto", encoding="utf-8"):
  settings = dict(header=None, quoting=True, columns=None, id=None)
  return list(read.read_rows(path, format=format, encoding=encoding, **settings))


@pytest.mark.parametrize("text", [LIST, SPREAD, f"\ufeff{LIST}", f"[\n{LIST[1:]}"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
def test_a_list_under_any_name(write, name, text):
  assert [row.fields for row in rows_of(write(name, text))] == ROWS


@pytest.mark.parametrize("text", [LINES, f"\n\n{LINES}\n\n", LINES.replace("\n", "\r\n\r\n")])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_objects_a_line_under_any_name(write, name, text):
  assert [row.fields for row in rows_of(write(name, text))] == ROWS


def test_compressed_and_in_other_encodings(write):
  file = write("a.json.gz", LINES.encode("utf-16"))
  assert [row.fields for row in rows_of(file, encoding="utf-16")] == ROWS


def test_one_line_with_one_object_is_what_its_name_says(write):
  for text in (json.dumps(SQUAD), json.dumps(SQUAD, indent=1)):
    assert [row.fields["question"] for row in rows_of(write("a.json", text))] == ["?"]
  assert rows_of(write("a.jsonl", json.dumps(SQUAD)))[0].fields == SQUAD


def test_a_format_that_is_set_is_not_doubted(write):
  for name, text, format in (("a.jsonl", LIST, "jsonl"), ("a.json", LINES, "json")):
    with pytest.raises(JaxsftError, match=r"set data\.format to"):
      rows_of(write(name, text), format)


def test_lines_that_are_lists_are_no_list_of_rows(write):
  with pytest.raises(
    JaxsftError, match=r"a\.jsonl:1: found a list, expected one object a line"
  ):
    rows_of(write("a.jsonl", '["a", "x"]\n["b", "y"]\n'))


@pytest.mark.parametrize(
  ("files", "said"),
  [
    ({"a.jsonl": LINES}, "jsonl"),
    ({"a.jsonl": LINES, "b.jsonl": LINES}, "jsonl (2 files)"),
    ({"a.json": LINES}, "jsonl by the content of {0}, not by its name"),
    ({"a.jsonl": LIST}, "json by the content of {0}, not by its name"),
    (
      {"a.json": LINES, "b.jsonl": LINES, "c.json": LINES, "d.json": LIST},
      "json, jsonl (3 files) by the content of {0} and 1 more, not by its name",
    ),
  ],
)
def test_the_report_names_the_format(write, tmp_path, files, said):
  paths = [write(name, text) for name, text in files.items()]
  path = paths[0] if len(paths) == 1 else "*.json*"
  rows = sources.read_data(Data(path=path, split=0.0), tasks.TASKS["classify"])
  assert rows.sources[0].format == said.format(paths[0]) and rows.read == 2 * len(files)


def test_rows_to_evaluate_on_are_named_by_themselves(write):
  a, b = write("a.jsonl", LINES), write("b.jsonl", LIST)
  data = Data(path=a, eval_path=b, split=0.0)
  first, second = sources.read_data(data, tasks.TASKS["classify"]).sources
  said = f"json by the content of {b}, not by its name"
  assert (first.format, second.format) == ("jsonl", said)
