"""Every format becomes the same rows; every broken file names its line and the way out."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxsft.data import formats, read
from jaxsft.errors import JaxsftError, UsageError
from tests.data.conftest import COMPRESS

DEFAULTS = {
  "format": "auto",
  "encoding": "utf-8",
  "header": None,
  "quoting": True,
  "columns": None,
  "id": None,
}


def rows_of(path, **settings):
  return list(read.read_rows(path, **(DEFAULTS | settings)))


def fields_of(path, **settings):
  return [row.fields for row in rows_of(path, **settings)]


def refused(path, *parts, error=JaxsftError, **settings):
  """Reading fails with a sentence that holds all parts."""
  with pytest.raises(error) as caught:
    rows_of(path, **settings)
  for part in parts:
    assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_jsonl(write, name):
  file = write(name, '\ufeff{"text": "é\\u2028x", "n": 1}\r\n\n{"text": "y", "n": [2]}')
  first, second = rows_of(file)
  assert first == read.Row(f"{name}:1", f"{name}:1", {"text": "é\u2028x", "n": 1})
  assert second == read.Row(f"{name}:3", f"{name}:3", {"text": "y", "n": [2]})


def test_where_is_as_given_and_the_id_is_not(write, tmp_path):
  write("sub/a.jsonl", '{"text": "x"}\n')
  for given in ("sub/a.jsonl", "./sub/a.jsonl", str(tmp_path / "sub/a.jsonl")):
    (row,) = rows_of(given)
    assert (row.id, row.where) == ("a.jsonl:1", f"{given}:1")


def test_json_list(write):
  text = '[\n {"text": "a [,]\\n"},\n\n {"text":\n "b"}, {"text": "c"}\n]\n'
  first, second, third = rows_of(write("a.json", text))
  assert (first.id, first.where) == ("a.json:1", "a.json:2 (item 1)")
  assert (second.id, second.where) == ("a.json:2", "a.json:4 (item 2)")
  assert (third.where, third.fields) == ("a.json:5 (item 3)", {"text": "c"})


def test_csv(write):
  file = write("a.csv", 'text,label\n"a ""b"", c",1\n"two\nlines",2\n\nx,3\n')
  rows = rows_of(file)
  assert [row.fields["text"] for row in rows] == ['a "b", c', "two\nlines", "x"]
  assert [row.where for row in rows] == ["a.csv:2", "a.csv:3", "a.csv:6"]
  assert rows[2].fields == {"text": "x", "label": "3"}


def test_tsv_without_header_and_with_quotes_that_are_text(write):
  file = write("a.txt", '1\t0.5\t"So they say\n2\t-1\tgood" film\x85 yes\n')
  settings = {"format": "tsv", "quoting": False, "columns": {"text": 2, "id": 0}, "id": "id"}
  first, second = rows_of(file, **settings)
  assert first == read.Row("1", "a.txt:1", {"text": '"So they say', "id": "1", "1": "0.5"})
  assert second.fields["text"] == 'good" film\x85 yes'


def test_header_and_columns_agree(write):
  file = write("a.csv", "a,b,c\n1,2,3\n")
  assert fields_of(file) == [{"a": "1", "b": "2", "c": "3"}]
  assert fields_of(file, header=False)[0] == {"0": "a", "1": "b", "2": "c"}
  assert len(fields_of(file, columns={"x": 0})) == 2
  assert fields_of(file, columns={"x": 1}, header=True) == [{"x": "2", "a": "1", "c": "3"}]
  # A mapped field hides a column of the same name; a mapped column goes by its new name.
  assert fields_of(file, columns={"a": "b"}) == [{"a": "2", "c": "3"}]
  refused(file, "data.columns", "positions", error=UsageError, header=False, columns={"x": "a"})
  refused(file, "a.csv:1", "no column 3", "'x'", "there are 3", columns={"x": 3})
  refused(file, "no column -1", columns={"x": -1})


def test_text(write):
  file = write("a.txt", "one \r\n\nthree")
  rows = rows_of(file)
  assert [row.fields["text"] for row in rows] == ["one ", "", "three"]
  assert rows[2].where == "a.txt:3"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "cp1252", "gb18030"])
def test_encodings(write, encoding):
  # Ċ is U+010A: in UTF-16 it holds the byte of a line feed.
  text = "Ċ\n中\n" if encoding not in ("cp1252",) else "é\n“\n"
  file = write("a.txt", text.encode(encoding))
  assert [f["text"] for f in fields_of(file, encoding=encoding)] == text.split()


def test_glob_reads_all_files_and_keeps_ids_apart(write):
  for part in ("p2/a.jsonl", "p10/a.jsonl"):
    write(f"data/{part}", json.dumps({"from": part}) + "\n")
  rows = rows_of("data/*/a.jsonl")
  assert [row.id for row in rows] == ["p10/a.jsonl:1", "p2/a.jsonl:1"]
  assert [row.where for row in rows] == ["data/p10/a.jsonl:1", "data/p2/a.jsonl:1"]
  write("data/p3/a.jsonl", "")
  refused("data/*/a.jsonl", "data/p3/a.jsonl holds no rows")


def test_files_of_a_path(write, tmp_path):
  for name in ("a.jsonl", "b.jsonl", "t.en", "t.de"):
    write(name, "{}")
  names = lambda path, **kw: [os.path.basename(f) for f in read.files_of(tmp_path / path, **kw)]
  assert names("*.jsonl", format="auto") == ["a.jsonl", "b.jsonl"]
  assert names("t.{en,de}", format="auto") == ["t.en", "t.de"]
  assert names("a.jsonl", format="jsonl") == ["a.jsonl"]
  assert read.files_of("tfds:name/train", "auto") == []


def test_ids(write):
  file = write("a.jsonl", '{"k": 7, "t": "x"}\n{"k": "8", "t": "y"}\n')
  assert [row.id for row in rows_of(file, id="k")] == ["7", "8"]
  assert [row.id for row in rows_of(file, id="key", columns={"key": "k"})] == ["7", "8"]
  refused(file, "a.jsonl:1", "no field 'kk'", "'k'", "data.id", id="kk")
  write("b.jsonl", '{"k": 7}\n{"k": "7"}\n')
  refused("b.jsonl", "b.jsonl:2", "'7'", "b.jsonl:1", "data.id", id="k")
  refused("[ab].jsonl", "b.jsonl:1", "a.jsonl:1", id="k")
  for value in ("null", '" "', "[1]"):
    refused(write("c.jsonl", f'{{"k": {value}}}\n'), "c.jsonl:1", "the id", "data.id", id="k")


BROKEN = {
  "json line": ("a.jsonl", '{"t": 1}\n{"t": "x",}\n', "a.jsonl:2", "malformed JSON", "column"),
  "cut json line": ("a.jsonl", '{"t": 1}\n{"t": "x', "a.jsonl:2", "Unterminated"),
  "spread list": ("a.jsonl", '[\n{"t": 1},\n', "a.jsonl:3", "malformed JSON in item 2"),
  "number": ("a.jsonl", '{"t": 1}\n5\n', "a.jsonl:2", "found 5", "expected an object"),
  "null": ("a.jsonl", "null\n", "a.jsonl:1", "found None", "expected an object"),
  "key twice": ("a.jsonl", '{"t": 1, "t": 2}\n', "a.jsonl:1", "'t' stands twice"),
  "half a character": ("a.jsonl", '{"t": "\\ud83d"}\n', "a.jsonl:1", "half a character"),
  "deep": ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl:1", "malformed JSON"),
  "object in json": ("a.json", '{"data": []}', "a.json:1", "expected a list", "'jsonl'"),
  "cut json": ("a.json", '[{"t": 1},\n{"t": 2}', "a.json:2", "after item 2", "cut off"),
  "comma": ("a.json", '[{"t": 1},\n]', "a.json:2", "malformed JSON in item 2"),
  "no comma": ("a.json", '[{"t": 1}\n{"t": 2}]', "a.json:2", "after item 1"),
  "rest": ("a.json", '[{"t": 1}]\n[]', "a.json:1", "the file goes on"),
  "item": ("a.json", '[{"t": 1},\n 3]', "a.json:2 (item 2)", "found 3"),
  "empty": ("a.jsonl", "", "a.jsonl holds no rows", "data.path"),
  "blank": ("a.jsonl", "\n \n", "a.jsonl holds no rows"),
  "empty list": ("a.json", "[]", "a.json holds no rows"),
  "empty json": ("a.json", " \n", "a.json holds no rows"),
  "header only": ("a.csv", "a,b\n", "a.csv holds no rows"),
  "a mark alone": ("a.txt", "\ufeff", "a.txt holds no rows"),
  "empty text": ("a.txt", "", "a.txt holds no rows"),
  "few": ("a.csv", "a,b\n1,2\n3\n", "a.csv:3", "found 1 fields", "expected 2", "line 1"),
  "many": ("a.csv", "a,b\n1,2,3\n", "a.csv:2", "found 3 fields", "data.format"),
  "quote": ("a.csv", 'a,b\n"x"y,2\n', "a.csv:2", "data.quoting to False"),
  "open quote": ("a.csv", 'a,b\n1,"x\n2,y\n', "a.csv:2", "data.quoting to False"),
  "swallowing": ("a.tsv", 'a\tb\n1\t"x\n2\ty"\n', "a.tsv:2 to 3", "data.quoting to False"),
  "names": ("a.csv", "a,a\n1,2\n", "a.csv:1", "'a' stands twice", "data.header"),
  "byte": ("a.jsonl", b'{"t": 1}\n{"t": "\xe9"}\n', "a.jsonl:2", "0xe9", "data.encoding"),
  "cut byte": ("a.txt", b"x\n\xc3", "a.txt:2", "0xc3", "data.encoding"),
  "utf-16": ("a.txt", "x\n".encode("utf-16"), "a.txt:1", "data.encoding", "(utf-16)"),
  "suffix": ("a.dat", "x", "'.dat'", "data.format", "jsonl, json, csv", "text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(write, case):
  name, content, *parts = BROKEN[case]
  refused(write(name, content), *parts)


def test_missing_columns(write):
  file = write("a.jsonl", '{"text": 1, "lab": 2}\n{"text": 1}\n')
  refused(file, "a.jsonl:2", "no column 'lab'", "'label'", "text", columns={"label": "lab"})
  refused(file, "a.jsonl:1", "did you mean 'text'", columns={"t": "txet"})
  refused(file, "position", "a.jsonl is jsonl", error=UsageError, columns={"t": 0})


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed(write, suffix):
  rows = [{"t": "é" * n} for n in range(1, 900)]
  lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  file = write(f"a.jsonl{suffix}", lines)  # several chunks
  assert fields_of(file) == rows
  assert rows_of(file)[-1].where == f"a.jsonl{suffix}:899"
  content = lines.encode()
  parts = COMPRESS[suffix](content[:77]) + COMPRESS[suffix](content[77:])
  with open(file, "wb") as stream:  # two streams, the first of which ends inside a character
    stream.write(parts)
  assert fields_of(file) == rows
  assert fields_of(write(f"b.csv{suffix}", "a,b\n1,2\n")) == [{"a": "1", "b": "2"}]
  assert fields_of(write(f"c.json{suffix}", '[{"a": 1}]')) == [{"a": 1}]
  assert fields_of(write(f"d.conll{suffix}", "EU ORG\n"))[0]["tokens"] == ["EU"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_streams(write, suffix):
  """No cut, no rest and no second stream that is damaged passes for the end of the file."""
  content = b'{"t": "some text"}\n{"t": "more"}\n'
  whole = COMPRESS[suffix](content)
  names = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
  cuts = [whole[:cut] for cut in range(1, len(whole))]
  for spoilt in (*cuts, whole + b"rest", whole + whole[:9], b"no such stream", whole + b"x"):
    with open(f"a.jsonl{suffix}", "wb") as stream:
      stream.write(spoilt)
    with pytest.raises(JaxsftError) as caught:
      rows_of(f"a.jsonl{suffix}")
    assert f"the {names[suffix]} stream is damaged or cut off here" in str(caught.value)
    assert str(caught.value).startswith(f"a.jsonl{suffix}:")


def test_settings_that_do_not_fit(write):
  file = write("a.jsonl", '{"t": 1}\n')
  refused(file, "data.format", "did you mean 'jsonl'", error=UsageError, format="jsnl")
  refused(file, "data.format", "tfds:NAME/SPLIT", error=UsageError, format="tfds")
  refused("tfds:a/b", "data.format is 'csv'", error=UsageError, format="csv")
  refused(file, "data.encoding is 'utf9'", error=UsageError, encoding="utf9")
  refused("none.jsonl", "data.path", "names no file")
  refused(".", "is a directory", "*.jsonl")


def test_long_fields_and_memory(write):
  long = "x" * 200_000  # beyond csv's own limit
  assert fields_of(write("a.csv", f"t\n{long}\n"))[0]["t"] == long
  stream = read.read_rows(write("b.jsonl", '{"t": 1}\nbroken\n'), **DEFAULTS)
  assert next(stream).fields == {"t": 1}  # before the rest is looked at
  with pytest.raises(JaxsftError, match=r"b\.jsonl:2"):
    next(stream)


def test_near():
  assert read.near("txet", ["label", "text"]).startswith("; did you mean 'text'?")
  assert read.near("q", []) == ""
  assert read.near("q", [f"n{i}" for i in range(20)]).endswith("n11, …)")


def test_reading_files_needs_no_tensorflow(write):
  file = write("a.jsonl", '{"t": 1}\n')
  code = (
    "import sys; from jaxsft.data import clean, fetch, read;"
    f"list(read.read_rows({file!r}, **{DEFAULTS!r}));"
    "assert not {'tensorflow', 'pyarrow', 'unearth', 'jax'} & set(sys.modules)"
  )
  root = os.path.dirname(os.path.dirname(os.path.dirname(formats.__file__)))
  environment = os.environ | {"PYTHONPATH": root}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
  """A prepared data set of three reviews, as TFDS lays it out on disk."""
  import tensorflow as tf  # late: seconds to import
  import tensorflow_datasets as tfds

  root = tmp_path_factory.mktemp("tfds")
  directory = root / "tiny_reviews" / "1.0.0"
  directory.mkdir(parents=True)
  class_label, sequence = tfds.features.ClassLabel, tfds.features.Sequence
  features = tfds.features.FeaturesDict(
    {
      "text": tfds.features.Text(),
      "label": class_label(names=["neg", "pos"]),
      "score": np.float32,
      "words": sequence(tfds.features.Text()),
      "meta": {"tags": sequence(class_label(names=["x", "y"])), "n": np.int64},
    }
  )
  with tf.io.TFRecordWriter(
    str(directory / "tiny_reviews-train.tfrecord-00000-of-00001")
  ) as out:
    for text, label in [("good é", 1), ("bad", 0), ("so so", 1)]:
      words = text.split()
      meta = {"tags": [label], "n": 3}
      example = {"text": text, "label": label, "score": 0.5, "words": words, "meta": meta}
      out.write(features.serialize_example(features.encode_example(example)))
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=features,
    split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[3], num_bytes=0)],
    filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  )
  return root


def test_tfds(tfds_directory):
  by_name = rows_of("tfds:tiny_reviews/train", data_dir=str(tfds_directory))
  assert [row.fields["text"] for row in by_name] == ["good é", "bad", "so so"]
  assert [row.fields["label"] for row in by_name] == ["pos", "neg", "pos"]
  first = by_name[0]
  assert first.fields["words"] == ["good", "é"]
  assert first.fields["meta"] == {"tags": ["y"], "n": 3}
  assert type(first.fields["score"]) is float
  assert first.where == f"tfds:tiny_reviews/train:{first.id}"
  assert len({row.id for row in by_name}) == 3
  by_place = rows_of(f"tfds:{tfds_directory}/tiny_reviews/1.0.0/train", columns={"t": "text"})
  assert [row.id for row in by_place] == [row.id for row in by_name]
  assert by_place[1].fields["t"] == "bad"
  sliced = rows_of("tfds:tiny_reviews/train[:1]", data_dir=str(tfds_directory))
  assert [row.id for row in sliced] == [first.id]


def test_tfds_names_that_do_not_work(tfds_directory):
  where = {"data_dir": str(tfds_directory)}
  refused("tfds:tiny_reviews/dev", "tfds:tiny_reviews/dev", "splits", **where)
  refused("tfds:tiny_reviws/train", "cannot be read by TFDS", "NAME/SPLIT", **where)
  refused("tfds:train", "expected tfds:NAME/SPLIT", error=UsageError, **where)
  refused("tfds:huggingface:glue/train", "expected tfds:", error=UsageError, **where)
