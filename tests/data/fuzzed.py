"""Valid files of every format, drawn with the rows that stand in them, and their spoiling."""

import csv
import io
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from tests.data.test_arrow import stream
from tests.data.test_records import example, records


class Kind(NamedTuple):
  """How a file of one format is drawn and read."""

  name: str
  """Of the file; of parallel text, of its two sides."""
  rows: st.SearchStrategy
  content: Callable
  """Rows -> the bytes of a file, written by something that jaxsft did not write."""
  settings: tuple = ()
  """(name, value) of `Data`."""
  lines: Callable | None = None
  """Line formats: bytes of a line -> whether something stands there."""
  header: int = 0
  """Lines of these that are no rows."""


characters = st.characters(exclude_categories=["Cs"])
text = st.text(characters, max_size=12)
inline = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t,\ufeff")
cell = st.text(inline, max_size=8)
token = st.text(inline, min_size=1, max_size=6).filter(
  lambda t: t.strip() == t and not t.startswith(("#", "-"))
)
number = st.integers(-(2**63), 2**63 - 1)
real = st.floats(allow_nan=False, allow_infinity=False)
value = st.recursive(
  st.none() | st.booleans() | number | real | text,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
  max_leaves=6,
)
objects = st.lists(st.dictionaries(text, value, max_size=4), min_size=1, max_size=5)
columns = st.fixed_dictionaries(
  {
    "text": st.none() | text,
    "n": st.none() | number,
    "x": st.none() | real,
    "yes": st.none() | st.booleans(),
    "words": st.none() | st.lists(text, max_size=3),
    "inner": st.none() | st.fixed_dictionaries({"a": text, "b": st.lists(number, max_size=2)}),
  }
)
SCHEMA = pyarrow.schema(
  {
    "text": pyarrow.string(),
    "n": pyarrow.int64(),
    "x": pyarrow.float64(),
    "yes": pyarrow.bool_(),
    "words": pyarrow.list_(pyarrow.string()),
    "inner": pyarrow.struct({"a": pyarrow.string(), "b": pyarrow.list_(pyarrow.int64())}),
  }
)
tables = st.lists(columns, min_size=1, max_size=5)
several = lambda one: st.none() | one | st.lists(one, min_size=2, max_size=3)
features = st.dictionaries(
  text, several(text) | several(number) | several(st.floats(width=32, allow_nan=False)),
  min_size=1, max_size=4,
)  # fmt: skip


def jsonl(rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter, quoting):
  def content(rows):
    if not quoting:
      lines = [["text", "label"], *([row["text"], row["label"]] for row in rows)]
      return "".join(delimiter.join(line) + "\n" for line in lines).encode()
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["text", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()

  return content


def two(cells):
  return st.lists(
    st.fixed_dictionaries({"text": cells, "label": cells}), min_size=1, max_size=5
  )


def conll(rows):
  of = lambda row: "".join(
    f"{a}\t{b}\n" for a, b in zip(row["tokens"], row["tags"], strict=True)
  )
  return "\n".join(map(of, rows)).encode()


@st.composite
def sentences(draw):
  rows = []
  for _ in range(draw(st.integers(1, 4))):
    size = draw(st.integers(1, 4))
    both = [draw(st.lists(token, min_size=size, max_size=size)) for _ in range(2)]
    rows.append(dict(zip(("tokens", "tags"), both, strict=True)))
  return rows


@st.composite
def questions(draw):
  rows = []
  for n in range(draw(st.integers(1, 3))):
    context = draw(text) + draw(st.text("abc", min_size=1, max_size=5)) + draw(text)
    answers = []
    for _ in range(draw(st.integers(0, 2))):
      start = draw(st.integers(0, len(context) - 1))
      stop = draw(st.integers(start + 1, len(context)))
      if context[start:stop].strip():
        answers.append({"text": context[start:stop], "start": start})
    row = {"id": f"q{n}", "title": None, "context": context, "question": draw(text)}
    rows.append(row | {"answers": answers, "impossible": not answers})
  return rows


def squad(rows):
  paragraphs = []
  for row in rows:
    answers = [{"text": a["text"], "answer_start": a["start"]} for a in row["answers"]]
    asked = {"id": row["id"], "question": row["question"], "answers": answers}
    paragraphs.append({"context": row["context"], "qas": [asked]})
  return json.dumps({"data": [{"paragraphs": paragraphs}]}).encode()


def parquet(rows):
  buffer = io.BytesIO()
  found = pyarrow.Table.from_pylist(rows, SCHEMA)
  pyarrow.parquet.write_table(found, buffer, row_group_size=2)
  return buffer.getvalue()


def arrow(kind):
  return lambda rows: stream(pyarrow.Table.from_pylist(rows, SCHEMA), kind, 2)


def tfrecord(rows):
  import tensorflow as tf

  return records(pathlib.Path("made.tfrecord"), [example(tf, row) for row in rows])


full_line = lambda line: bool(line.decode().strip())
KINDS = {
  "jsonl": Kind("a.jsonl", objects, jsonl, (("format", "jsonl"),), full_line),
  "json": Kind(
    "a.json", objects, lambda rows: json.dumps(rows).encode(), (("format", "json"),)
  ),
  "jsonl or json": Kind("a.ndjson", objects, jsonl),
  "csv": Kind("a.csv", two(text), table(",", True)),
  "tsv": Kind("a.tsv", two(cell), table("\t", True)),
  "csv, quotes are text": Kind(
    "a.csv",
    two(cell),
    table(",", False),
    (("quoting", False),),
    lambda line: bool(line.strip(b"\r")),
    header=1,
  ),
  "text": Kind(
    "a.txt",
    st.lists(st.fixed_dictionaries({"text": cell}), min_size=1),
    lambda rows: "".join(row["text"] + "\n" for row in rows).encode(),
    lines=lambda line: True,
  ),
  "conll": Kind("a.conll", sentences(), conll),
  "squad": Kind("a.json", questions(), squad, (("format", "squad"),)),
  "parallel": Kind(
    "a.{en,de}",
    st.lists(st.fixed_dictionaries({"en": cell, "de": cell}), min_size=1),
    lambda rows: "".join(row["en"] + "\n" for row in rows).encode(),
  ),
  "parquet": Kind("a.parquet", tables, parquet),
  "arrow stream": Kind("a.arrow", tables, arrow(pyarrow.ipc.new_stream)),
  "arrow file": Kind("a.feather", tables, arrow(pyarrow.ipc.new_file)),
  "tfrecord": Kind("a.tfrecord", st.lists(features, min_size=1, max_size=3), tfrecord),
}


PIECES = [
  b"\n",
  b"\r\n",
  b"\r",
  b'"',
  b",",
  b"\t",
  b"\0",
  b"\xff",
  b"\xc3",
  b"{",
  b"}",
  b"[",
  b"]",
]
PIECES += [
  b"\\ud800",
  b"NaN",
  b"1e999",
  b"\xef\xbb\xbf",
  b"\xe2\x80\xa8",
  b"\n\n",
  b" ",
  b"9" * 5000,
]


@st.composite
def spoilt(draw, content):
  """Bytes with a few cuts, changes, insertions and repetitions."""
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, len(content)))
    size = draw(st.integers(0, 9))
    end = at + size
    new = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
    ways = (
      content[:at],
      content[:at] + content[end:],
      content[:at] + content[at:end] * 2 + content[end:],
      content + content[at:],
      content[:at] + new + content[at + len(new) :],
      content[:at] + new + content[at:],
    )
    content = draw(st.sampled_from(ways))
  return content
