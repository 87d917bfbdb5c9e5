"""Whatever bytes a file holds: rows that account for all of it, or a sentence with a place."""

import csv
import json
import re

import hypothesis
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from jaxsft.data import read
from jaxsft.errors import JaxsftError
from tests.data.fuzzed import KINDS, PIECES, spoilt
from tests.data.test_read import DEFAULTS, rows_of

QUICK, FULL = 12, 400
"""Cases of each format and test."""


def profile(cases, derandomize):
  return hypothesis.settings(
    max_examples=cases,
    derandomize=derandomize,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


every = pytest.mark.parametrize("kind", KINDS)
SIZES = [
  pytest.param(profile(QUICK, True), id="quick"),
  pytest.param(profile(FULL, False), id="full", marks=pytest.mark.full),
]


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path_factory.mktemp("fuzz"))
    yield


def put(kind, content, rows=None):
  """Writes the file, or both sides of parallel text, and returns its name."""
  if kind.name == "a.{en,de}":
    other = content if rows is None else "".join(row["de"] + "\n" for row in rows).encode()
    for name, text in (("a.en", content), ("a.de", other)):
      with open(name, "wb") as file:
        file.write(text)
    return kind.name
  with open(kind.name, "wb") as file:
    file.write(content)
  return kind.name


def outcome(kind, name):
  """(rows read, sentence or None); anything else that is raised fails the test."""
  found = []
  try:
    for row in read.read_rows(name, **(DEFAULTS | dict(kind.settings))):
      found.append(row)
  except JaxsftError as error:
    assert "\n" not in str(error) and "a." in str(error), str(error)
    return found, str(error)
  return found, None


def stands(kind, content, before=None):
  """How many rows stand in a file, or before a line of a line format."""
  if kind.lines is not None:
    content = content.removeprefix(b"\xef\xbb\xbf")  # the mark of the byte order
    lines = content.split(b"\n")
    lines = (lines[:-1] if lines[-1] == b"" else lines)[: before and before - 1]
    return max(0, sum(map(kind.lines, lines)) - kind.header)
  return COUNTS[kind.name.rpartition(".")[2]](content.decode().removeprefix("\ufeff"))


def delimited(delimiter):
  lines = lambda text: [line for line in re.split("(?<=\n)", text) if line]
  records = lambda text: csv.reader(lines(text), delimiter=delimiter)
  return lambda text: sum(bool(record) for record in records(text)) - 1


def in_json(text):
  found = json.loads(text)
  if isinstance(found, list):
    return len(found)
  articles = found["data"] if "data" in found else [found]
  return sum(len(p["qas"]) for article in articles for p in article["paragraphs"])


def in_either(text):
  try:
    found = json.loads(text)
    return len(found) if isinstance(found, list) else 1
  except json.JSONDecodeError:
    return sum(bool(line.strip()) for line in text.split("\n"))


COUNTS = {
  "json": in_json,
  "ndjson": in_either,
  "csv": delimited(","),
  "tsv": delimited("\t"),
  "{en,de}": lambda text: len(text.removesuffix("\n").split("\n")),
}


def in_records(content):
  """Records of a TFRecord file, whose last one ends where the file does."""
  count = at = 0
  while at < len(content):
    at, count = at + 16 + int.from_bytes(content[at : at + 8], "little"), count + 1
  assert at == len(content)
  return count


def check_sentences(rows, text):
  """Every line that is not blank, and no comment or such, is a token of a row."""
  lines = [line for line in text.split("\n") if line.strip()]
  apart = re.compile(r"# |-DOCSTART-|\d+[-.]\d+\t")
  tokens = sum(len(row.fields["tokens"]) for row in rows)
  assert sum(not apart.match(line) for line in lines) <= tokens <= len(lines)


def check(kind, content):
  rows, sentence = outcome(kind, put(kind, content))
  place = re.search(r"a\.\w+:(\d+)", sentence or "")
  if sentence is None:
    if kind.name == "a.conll":
      check_sentences(rows, content.decode().removeprefix("\ufeff"))
    elif kind.name.endswith((".parquet", ".arrow", ".feather")):
      assert len(rows) == TABLES[kind.name](kind.name)
    elif kind.name == "a.tfrecord":
      assert len(rows) == in_records(content)
    else:
      assert len(rows) == stands(kind, content)
  elif kind.lines is not None and place:
    assert len(rows) == stands(kind, content, int(place[1])), sentence
  elif "no rows" in sentence and kind.lines is not None:
    assert stands(kind, content) == 0


def in_stream(name):
  with pyarrow.ipc.open_stream(name) as found:
    return found.read_all().num_rows


def in_file(name):
  with pyarrow.ipc.open_file(name) as found:
    return found.read_all().num_rows


TABLES = {
  "a.parquet": lambda name: pyarrow.parquet.read_metadata(name).num_rows,
  "a.arrow": in_stream,
  "a.feather": in_file,
}


@every
@pytest.mark.parametrize("settings", SIZES)
def test_what_is_written_is_read(kind, settings):
  kind = KINDS[kind]

  @settings
  @hypothesis.given(kind.rows)
  def holds(rows):
    name = put(kind, kind.content(rows), rows)
    assert [row.fields for row in rows_of(name, **dict(kind.settings))] == rows

  holds()


@every
@pytest.mark.parametrize("settings", SIZES)
def test_spoilt_files(kind, settings):
  kind = KINDS[kind]

  @settings
  @hypothesis.given(st.data())
  def holds(data):
    check(kind, data.draw(spoilt(kind.content(data.draw(kind.rows)))))

  holds()


@every
@pytest.mark.parametrize("settings", SIZES)
def test_any_bytes(kind, settings):
  kind = KINDS[kind]

  @settings
  @hypothesis.given(st.binary(max_size=60) | st.lists(st.sampled_from(PIECES)).map(b"".join))
  @hypothesis.example(b"a\n\r\r")
  def holds(content):
    check(kind, content)

  holds()
