"""From the data keys to rows, and what is said of where they came from; no model is needed."""

import json

import pytest

from jaxsft import config, sources, tasks
from jaxsft.data import audit, read
from tests.data.conftest import write  # noqa: F401


def settings(task, path, **values):
  made = config.override(config.Config(), "task", task)
  for key, value in {"data.path": path, "data.split": 0.0, **values}.items():
    made = config.override(made, key, value)
  return made


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SQUAD = {"context": "In 1066.", "qas": [{"id": "q", "question": "When?", "answers": []}]}
ROWS = {
  "chat": (
    "a.jsonl.bz2",
    json.dumps({"messages": TURNS, "text": "aside"}) + '\n{"text": "b"}\n' + '{"text": "c"}\n',
    "jsonl, 3 rows, 1 messages, 2 text",
  ),
  "classify": ("a.csv", "text,label,n\na,x,1\nb,y,2\n", "csv, 2 rows, text, label"),
  "seq2seq": ("a.json", '[{"source": "a", "target": "b"}]', "json, 1 rows, source, target"),
  "tag": ("a.conll", "EU ORG\n", "conll, 1 rows, tokens, tags"),
  "answer": (
    "a.json",
    json.dumps({"data": [{"paragraphs": [SQUAD]}]}),
    "squad, 1 rows, question, context, answers",
  ),
  "masked_lm": ("a.txt", "one\n", "text, 1 rows, text"),
}


@pytest.mark.parametrize("task", ROWS)
def test_how_rows_were_read(write, task):  # noqa: F811
  name, content, words = ROWS[task]
  made = settings(task, write(name, content))
  (found,) = sources.read_data(made.data, tasks.TASKS[task]).sources
  assert (found.key, found.path, found.found, found.words) == ("data.path", name, name, words)
  assert sum(found.forms.values()) <= found.rows


def test_of_every_set(write):  # noqa: F811
  for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
    write(name, '{"text": "a", "label": "x"}\n')
  write("d.csv", "text,label\na,x\n")
  values = {"data.eval_path": "[bd].*", "evaluate.sets": {"more": "c.jsonl"}}
  made = settings("classify", "a.jsonl", **values)
  rows = sources.read_data(made.data, tasks.TASKS["classify"])
  more = sources.further_sets(made)["more"]
  found = [(one.key, one.path, one.format) for one in (*rows.sources, *more.sources)]
  assert found == [
    ("data.path", "a.jsonl", "jsonl"),
    ("data.eval_path", "[bd].*", "csv, jsonl"),
    ("evaluate.sets['more']", "c.jsonl", "jsonl"),
  ]
  assert rows.sources[1].words == "csv, jsonl, 2 rows, text, label"


def test_formats_of_a_path(write):  # noqa: F811
  write("list.json", " \n[]")
  write("squad.json", '\n {"paragraphs": []}')
  formats = lambda path, format="auto": read.formats_of(path, format, "utf-8")
  assert formats("tfds:a/train") == "tfds"
  assert formats("*.json") == "json, squad"
  assert formats("list.json", "jsonl") == "jsonl"
  write("x.en", "a\n")
  write("x.de", "b\n")
  assert formats("x.{en,de}") == "parallel"


def test_the_report_says_it():
  one = audit.Source("data.path", "hf:a/b/train", "/cache/x", "parquet", 1234, {"alpaca": 9})
  rows = audit.Rows(1234, 9, {"no text": 1225}, sources=(one,))
  report = audit.Audit(rows, {}, {}, {"updates": 1, "epochs": 1, "tokens": 1, "efficiency": 1,
    "shapes": []}, {}, (), (), ())  # fmt: skip
  assert report.lines()[1] == "           data.path read as: parquet, 1,234 rows, alpaca"
  (kept,) = json.loads(json.dumps(report.as_dict()))["rows"]["sources"]
  assert kept["path"] == "hf:a/b/train" and kept["forms"] == {"alpaca": 9}
