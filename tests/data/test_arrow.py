"""Parquet, Arrow, and the directories of `datasets`: plain values, class names, damage."""

import datetime
import decimal
import io
import json
import os
import shutil

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from jaxsft.data import arrow, fetch
from jaxsft.data.read import Row, files_of
from jaxsft.errors import JaxsftError
from tests.data.test_read import fields_of, refused, rows_of

CLASSES = {"names": ["neg", "pos"], "_type": "ClassLabel"}
FEATURES = {
  "text": {"dtype": "string", "_type": "Value"},
  "label": CLASSES,
  "tags": {"feature": CLASSES, "_type": "Sequence"},
  "old": [CLASSES],
  "meta": {"kind": CLASSES, "n": {"dtype": "int64", "_type": "Value"}},
  "feature": {"feature": CLASSES},  # a struct of that very name
  "turns": {"feature": {"who": CLASSES, "said": {"dtype": "string"}}, "_type": "Sequence"},
}
TABLE = [
  {
    "text": "a",
    "label": 1,
    "tags": [0, 1],
    "old": [1],
    "meta": {"kind": 0, "n": 1},
    "feature": {"feature": 0},
    "turns": {"who": [1, 0], "said": ["x", "y"]},
  },
  {"text": "b", "label": -1, "tags": [], "old": None, "meta": None},
  {"text": "c", "label": None, "tags": [-1], "old": [], "meta": {"kind": None, "n": 0}},
]
READ = [
  {
    "text": "a",
    "label": "pos",
    "tags": ["neg", "pos"],
    "old": ["pos"],
    "meta": {"kind": "neg", "n": 1},
    "feature": {"feature": "neg"},
    "turns": {"who": ["pos", "neg"], "said": ["x", "y"]},
  },
  {"text": "b", "label": None, "tags": [], "old": None, "meta": None},
  {
    "text": "c",
    "label": None,
    "tags": [None],
    "old": [],
    "meta": {"kind": None, "n": 0},
  },
]


def named(fields):
  """Fields without the columns that Arrow fills up with None."""
  return {k: v for k, v in fields.items() if v is not None or k not in ("feature", "turns")}


def stream(table, kind=pyarrow.ipc.new_stream, rows=None):
  """The bytes of a table as an Arrow stream, or another kind, in batches of some rows."""
  buffer = io.BytesIO()
  with kind(buffer, table.schema) as out:
    out.write_table(table, rows)
  return buffer.getvalue()


def saved(write, directory, tables, features=None, noted=False):
  """A split as `datasets.save_to_disk` lays it out; noted: the schema tells the features."""
  names = [f"data-{n:05}-of-{len(tables):05}.arrow" for n in range(len(tables))]
  for name, rows in zip(names, tables, strict=True):
    table = pyarrow.Table.from_pylist(rows)
    if noted:
      info = json.dumps({"info": {"features": features}})
      table = table.replace_schema_metadata({"huggingface": info})
    write(f"{directory}/{name}", stream(table))
  state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
  write(f"{directory}/state.json", json.dumps(state))
  write(f"{directory}/dataset_info.json", json.dumps({} if noted else {"features": features}))
  return directory


def test_parquet_values_are_plain(write):
  """What JSON has no word for is written as text, or refused by its column."""
  day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30)
  row = {
    "text": b"\xc3\xa9t\xc3\xa9",
    "day": day,
    "moment": moment,
    "price": decimal.Decimal("1.10"),
    "took": datetime.timedelta(hours=1),
    "nested": [{"day": day, "n": 1, "none": None, "yes": True, "f": 0.5}],
  }
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), buffer)
  (fields,) = fields_of(write("a.parquet", buffer.getvalue()))
  assert json.loads(json.dumps(fields)) == {
    "text": "été",
    "day": "2024-02-29",
    "moment": "2024-02-29T12:30:00",
    "price": "1.10",
    "took": "1:00:00",
    "nested": [{"day": "2024-02-29", "n": 1, "none": None, "yes": True, "f": 0.5}],
  }
  buffer = io.BytesIO()
  table = pyarrow.Table.from_pylist([{"text": b"a"}, {"text": b"\xff\xd8"}])
  pyarrow.parquet.write_table(table, buffer)
  file = write("b.parquet", buffer.getvalue())
  refused(
    file, "b.parquet:2", "the column 'text'", r"b'\xff\xd8' (bytes)", "without this column"
  )


def test_parquet(write):
  table = pyarrow.table({"text": ["a", "b", None], "label": [0, 1, 1]})
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(table, buffer, row_group_size=2)
  file = write("a.parquet", buffer.getvalue())
  rows = rows_of(file)
  assert rows[1] == Row("a.parquet:2", "a.parquet:2", {"text": "b", "label": 1})
  assert rows[2].fields["text"] is None
  refused(file, "a.parquet:1", "no column 'txt'", "'text'", columns={"t": "txt"})
  refused(write("b.parquet", buffer.getvalue()[:-9]), "b.parquet:1", "not readable as Parquet")


@pytest.mark.parametrize("kind", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_arrow(write, kind):
  table = pyarrow.Table.from_pylist([{"t": str(n), "n": n} for n in range(2500)])
  rows = rows_of(write("a.arrow", stream(table, kind, 1500)))
  assert rows[2499] == Row("a.arrow:2500", "a.arrow:2500", {"t": "2499", "n": 2499})
  assert [row.fields for row in rows] == table.to_pylist()
  assert fields_of(write("b.dat", stream(table, kind)), format="arrow") == table.to_pylist()


def test_feather(tmp_path):
  table = pyarrow.table({"t": ["a", "b"]})
  pyarrow.feather.write_feather(table, tmp_path / "a.feather")  # compressed with LZ4
  assert fields_of(tmp_path / "a.feather") == table.to_pylist()


def test_a_stream_that_is_cut_off_or_goes_on(write):
  """pyarrow takes a cut between two batches for the end, and reads one stream of two."""
  content = stream(pyarrow.table({"t": ["a", "b", "c", "d"]}), rows=2)
  for cut in range(len(content)):
    refused(write("a.arrow", content[:cut]), "a.arrow:", "not readable as Arrow")
  refused(write("a.arrow", content + content), "a.arrow:5: not readable", "cut off")


def test_rows_before_the_damage_are_read(write):
  content = stream(pyarrow.table({"t": ["a", "b", "c", "d"]}), rows=2)
  records = arrow.ipc(write("a.arrow", content[:-8]))
  assert [next(records).fields["t"] for _ in range(4)] == ["a", "b", "c", "d"]
  with pytest.raises(JaxsftError, match=r"a\.arrow:5: not readable as Arrow"):
    next(records)


@pytest.mark.parametrize("noted", [False, True])
def test_saved_directory(write, tmp_path, noted):
  directory = saved(write, "d/train", [TABLE[:2], TABLE[2:]], FEATURES, noted)
  shutil.copy(f"{directory}/data-00000-of-00002.arrow", f"{directory}/data-old.arrow")
  rows = rows_of(directory)
  assert [named(row.fields) for row in rows] == READ
  assert rows[2].where == "d/train/data-00001-of-00002.arrow:1"
  assert rows[2].id == "train/data-00001-of-00002.arrow:1"
  assert rows_of(str(tmp_path / "d/train/"))[0].id == rows[0].id
  assert len(files_of(directory, "auto")) == 2
  assert fetch.resolve(directory, None) == fetch.Path(directory)
  # The shard by itself is read the same, and Parquet that tells its features too.
  (last,) = rows_of("d/train/data-00001*.arrow")
  assert named(last.fields) == READ[2]


def test_parquet_with_features(write):
  table = pyarrow.Table.from_pylist(TABLE)
  info = json.dumps({"info": {"features": FEATURES}})
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": info}), buffer)
  rows = fields_of(write("a.parquet", buffer.getvalue()))
  assert [named(fields) for fields in rows] == READ
  odd = table.replace_schema_metadata({"huggingface": "{no json"})
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(odd, buffer)
  assert fields_of(write("b.parquet", buffer.getvalue()))[0]["label"] == 1


def test_directories_that_do_not_work(write):
  train = saved(write, "d/train", [TABLE], FEATURES)
  write("d/dataset_dict.json", '{"splits": ["train", "test"]}')
  refused("d", "d holds the splits train, test", os.path.join("d", "train"))
  refused(train, "d/train is a directory", format="jsonl")
  write("d/train/state.json", '{"_data_files": [{"filename": "data-9.arrow"}]}')
  refused(train, "state.json names data-9.arrow, which is not there")
  for state in ("[]", "{", "{}", '{"_data_files": []}', '{"_data_files": [{"filename": 1}]}'):
    write("d/train/state.json", state)
    refused(train, "d/train/state.json", "save")
  state = {"_data_files": [{"filename": "../train/data-00000-of-00001.arrow"}]}
  write("d/train/state.json", json.dumps(state))
  refused(train, "state.json: found")
  state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
  write("d/train/state.json", json.dumps(state | {"_indices_data_files": [{}]}))
  refused(train, "state.json: found")  # the rows would be others, or in another order
  write("d/train/state.json", json.dumps(state))
  write("d/train/dataset_info.json", "no")
  refused(train, "dataset_info.json: malformed JSON")


def test_arrow_that_does_not_work(write):
  refused(write("a.arrow", b"no arrow at all"), "a.arrow:1: not readable as Arrow")
  refused(write("a.arrow", b""), "a.arrow:1: not readable as Arrow")
  table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
  refused(write("a.arrow", stream(table)), "a.arrow: the column 'a' stands twice")
  empty = pyarrow.table({"a": pyarrow.array([], pyarrow.int64())})
  refused(write("a.arrow", stream(empty)), "a.arrow holds no rows")
  wrong = saved(write, "d", [[{"label": 0}, {"label": 2}]], {"label": CLASSES})
  refused(wrong, "d/data-00000-of-00001.arrow:2: the column 'label' holds 2", "2 classes")
  bytes_ = pyarrow.table({"t": [b"\xff"]})
  refused(write("a.arrow", stream(bytes_)), "a.arrow:1: the column 't'", "(bytes)")
